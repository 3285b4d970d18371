"""ICT (Verma et al. 2019, arXiv 1903.03825): between two images the prediction is between those of a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.smoothness import beta_share, mix
from ssl_lab.nets import Ema, Net
from ssl_lab.schedule import Scalar, ramp_up
from ssl_lab.views import Weak


class ICT(Method):
    """L = H(Mix(y), p(Mix(x))) + weight * (1/BC) sum_b |p(Mix(u)_b) - softmax(Mix(z'(u))_b)|^2

    with Mix(v)_b = share * v_b + (1 - share) * v_partner(b), share ~ Beta(alpha, alpha), one for all labeled and
    one for all unlabeled rows of a step; z' the logits of Mean Teacher's teacher (see there), without
    gradient, which is evaluated. As in the authors' code, logits are mixed, labeled images are mixed alike
    with their labels, and each kind of rows passes the nets alone. alpha 0 mixes nothing.

    weight: by default 100 after a ramp-up over 1/4 of the run. alpha: 1 for CIFAR-10, 0.1 for SVHN.
    """

    name = "ict"
    family = "consistency"
    paper = "Interpolation Consistency Training for Semi-Supervised Learning"
    arxiv = "1903.03825"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak})

    def __init__(self, net: Net, weight: Scalar = ramp_up(100.0, until=0.25), alpha: Scalar = 1.0,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net)
        self.ema = Ema(net, ema, teacher=True)
        self.weight = weight
        self.alpha = alpha

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        share_x, share_u = (beta_share(at, f"ict/{kind}", at.value(self.alpha)) for kind in ("labeled", "unlabeled"))
        order_x, order_u = (draw.to_device(draw.uniform().argsort()) for draw in (
            at.draw("ict/labeled", len(x), x.targets.device), at.draw("ict/unlabeled", len(u), u.targets.device)))

        labeled = self.net(mix(x["weak"], share_x, order_x)).logits
        label = F.one_hot(x.targets, self.net.classes).float()
        with torch.no_grad():
            teacher = self.ema.net(u["weak"]).logits.float()
        between = self.net(mix(u["weak"], share_u, order_u)).logits
        target = losses.probabilities(mix(teacher, share_u, order_u))
        distance = losses.squared_error(losses.probabilities(between), target)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, mix(label, share_x, order_x)),
                "consistency": at.value(self.weight) * distance,
            },
            logs={"pseudo_label_accuracy": losses.accuracy(teacher.argmax(dim=1), u.truth)},
        )
