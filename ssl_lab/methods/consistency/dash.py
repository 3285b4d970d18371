"""Dash (Xu et al. 2021, arXiv 2109.00650): keeps pseudo-labels whose loss is below a threshold that falls."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class Dash(Method):
    """L = H(y, p(weak(x))) + weight * (1 / kept) sum_b 1[-log max q_b < rho] H(target_b, p(strong(u_b)))

    with q_b = p(weak(u_b)) without gradient, and s_b the same sharpened, softmax(z_b / T). Training is cut into
    `epochs` equal parts t = 0, 1, ...; in the first `start` of them every row is kept. rho_0 is the mean of
    H(s_b, p(strong(u_b))) over the last pass of the unlabeled images in these, at most their last part; then
    rho = max(rho_0 gamma^-floor((t - 1) / every), least). The target is s_b, and the hard argmax q_b once rho has
    come down to `least`.

    Loss and settings are those of the command that the authors publish (idstcv/Dash at bbd13cc, start_train.sh, for
    SVHN with 40 labels), and rho_0 is that of their code: its list of losses is emptied after each epoch of the
    warm-up but the last, and cut to the last N. The bare defaults of its dash.py differ: gamma 1.004 in each epoch from
    the second on, T = 1. The paper's algorithm warms up on labeled images alone and takes rho_0 from them; so does USB
    (config/classic_cv/dash: the same gamma, T and least, a factor of 1.0001, ten epochs between falls), but from the
    loss of the test images.

    Args:
        gamma: how fast rho falls, above 1.
        every: parts of the run between two falls.
        start: parts that keep every row, one at least.
        epochs: parts of the run.
        temperature: T.
        least: the smallest rho, in nats.
        weight: of the unlabeled loss.
        unlabeled: how many unlabeled images there are, `len(pool.unlabeled)`; by default the whole last part of the
            warm-up counts in rho_0.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Dash(sl.net("tiny_4", classes=10, style=pool.style), start=10)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.logs["mask_rate"].item()  # in the warm-up every row is kept
    1.0
    """

    name = "dash"
    family = "consistency"
    paper = "Dash: Semi-Supervised Learning with Dynamic Thresholding"
    arxiv = "2109.00650"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True
    first_loss: Tensor

    def __init__(self, net: Net, gamma: Scalar = 1.27, every: int = 9, start: int = 10, epochs: int = 1024,
                 temperature: Scalar = 0.5, least: Scalar = 0.05, weight: Scalar = 0.9, unlabeled: int | None = None,
                 ema: Scalar = 0.999) -> None:
        if every < 1 or not 1 <= start <= epochs:
            raise UsageError(f"Dash with every={every}, start={start}, epochs={epochs}: expected 1 or more, and no "
                             "more parts at the start than there are")
        super().__init__(net, ema)
        self.gamma, self.temperature = gamma, temperature
        self.every, self.start, self.epochs = every, start, epochs
        self.least, self.weight, self.unlabeled = least, weight, unlabeled
        self.register_buffer("first_loss", torch.tensor(0.0))  # rho_0: the mean so far in the warm-up
        self.notes = Notes()
        self._rows = 0  # unlabeled ones of a step, of all ranks

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        q = losses.probabilities(weak.detach())
        confidence, pseudo = q.max(dim=1)
        target = losses.probabilities(weak.detach(), at.value(self.temperature))
        falling = self.first_loss * at.value(self.gamma) ** -((at.step * self.epochs // at.total - 1) // self.every)
        if at.step < self._first(self.start, at):
            falling = torch.full_like(falling, torch.inf)
        mask = -confidence.log() < falling.clamp(min=at.value(self.least))
        log_p = strong.log_softmax(dim=1, dtype=q.dtype)
        soft = -(target * log_p).sum(dim=1)
        hard = -log_p.gather(1, pseudo[:, None])[:, 0]
        per_row = torch.where(falling > at.value(self.least), soft, hard)
        self.notes.put(at, soft.mean())
        self._rows = len(u) * at.world
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * (per_row * mask).sum() / mask.sum().clamp(min=1),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        (loss,) = self.notes.mean()
        end = self._first(self.start, at)  # the step that ends the warm-up
        begin = self._first((end - 1) * self.epochs // at.total, at)
        if self.unlabeled is not None:
            begin = max(begin, end - -(-self.unlabeled // self._rows))
        if begin <= at.step < end:
            self.first_loss.lerp_(loss.to(self.first_loss.dtype), 1 / (at.step - begin + 1))

    def _first(self, part: int, at: At) -> int:
        """The first step of a part of the run; in a run of fewer steps than parts, some parts have none."""
        return -(-part * at.total // self.epochs)
