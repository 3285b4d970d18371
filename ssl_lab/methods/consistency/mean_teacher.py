"""Mean Teacher (Tarvainen and Valpola 2017, arXiv 1703.01780): the average of the weights so far gives the targets."""

from __future__ import annotations

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Ema, Net
from ssl_lab.schedule import Scalar, ramp_up
from ssl_lab.views import Weak


class MeanTeacher(Method):
    """L = H(y, p(x)) + weight * (1/BC) sum_b |p(student_b) - p'(teacher_b)|^2 over labeled and unlabeled rows b

    with two weak views of each image, p of the net that learns and p' of the teacher, without gradient. After
    each step, teacher <- a * teacher + (1 - a) * net, a = min(1 - 1/(step + 1), ema). The teacher is in train
    mode (dropout, the batch's statistics), keeps BatchNorm statistics of its own passes, and is evaluated.

    Args:
        weight: of the consistency; by default 100 (the paper's 100 times the share of labels, with a labeled loss
            divided by all rows) after a ramp-up over 40 of 150 thousand steps.
        ema: decay of the teacher.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.MeanTeacher(sl.net("tiny_4", classes=10, style=pool.style))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms), method.predictor() is method.net  # the teacher is evaluated
    (['consistency', 'labeled'], False)
    """

    name = "mean_teacher"
    family = "consistency"
    paper = "Mean teachers are better role models"
    arxiv = "1703.01780"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"student": Weak, "teacher": Weak}, unlabeled={"student": Weak, "teacher": Weak})

    def __init__(self, net: Net, weight: Scalar = ramp_up(100.0, until=40 / 150),
                 ema: Scalar = 0.999) -> None:
        super().__init__(net)
        self.ema = Ema(net, ema, teacher=True)
        self.weight = weight

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, unlabeled = (out.logits for out in self.joint(x["student"], u["student"]))
        with torch.no_grad():
            target = self.ema.net(torch.cat([x["teacher"], u["teacher"]])).logits
        prediction = losses.probabilities(torch.cat([labeled, unlabeled]))
        distance = losses.squared_error(prediction, losses.probabilities(target))
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "consistency": at.value(self.weight) * distance,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "pseudo_label_accuracy": losses.accuracy(target[len(x):].argmax(dim=1), u.truth),
            },
        )
