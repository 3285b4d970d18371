"""ICT (Verma et al. 2019, arXiv 1903.03825): between two images the prediction is between those of a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.smoothness import beta_share
from ssl_lab.methods.mixture import Mix, Mixture, check_mix, mixture
from ssl_lab.nets import Ema, Net
from ssl_lab.schedule import Scalar, ramp_up
from ssl_lab.views import Weak


class ICT(Method):
    """L = H(Mix(y), p(Mix(x))) + weight * (1/BC) sum_b |p(Mix(u)_b) - softmax(Mix(z'(u))_b)|^2

    with Mix(v)_b = share * v_b + (1 - share) * v_partner(b), share ~ Beta(alpha, alpha), one for all labeled and
    one for all unlabeled rows of a step; z' the logits of Mean Teacher's teacher (see there), without
    gradient, which is evaluated. As in the authors' code, logits are mixed, labeled images are mixed alike
    with their labels, and each kind of rows passes the nets alone. alpha 0 mixes nothing.

    Args:
        weight: by default 100 after a ramp-up over 1/4 of the run.
        alpha: 1 for CIFAR-10, 0.1 for SVHN.
        mix: with "cutmix" Mix(x) is x with a rectangle of its partner, of a share of 1 - share of the pixels (as
            French et al. 2020, arXiv 1906.01916, have it for segmentation), and all else is mixed by the pixels'
            shares.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.ICT(sl.net("tiny_4", classes=10, style=pool.style), weight=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['consistency', 'labeled']
    """

    name = "ict"
    family = "consistency"
    paper = "Interpolation Consistency Training for Semi-Supervised Learning"
    arxiv = "1903.03825"
    unmixable = "mixes images itself: give it mix='cutmix', or its alpha"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak})

    def __init__(self, net: Net, weight: Scalar = ramp_up(100.0, until=0.25), alpha: Scalar = 1.0,
                 ema: Scalar = 0.999, mix: Mix = "mixup") -> None:
        super().__init__(net)
        check_mix(mix)
        self.ema = Ema(net, ema, teacher=True)
        self.weight = weight
        self.alpha, self.mix = alpha, mix

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        mixed_x, mixed_u = self._mixture("labeled", x["weak"], at), self._mixture("unlabeled", u["weak"], at)
        labeled = self.net(mixed_x.images(x["weak"])).logits
        label = F.one_hot(x.targets, self.net.classes).float()
        with torch.no_grad():
            teacher = self.ema.net(u["weak"]).logits.float()
        between = self.net(mixed_u.images(u["weak"])).logits
        target = losses.probabilities(mixed_u.targets(teacher))
        distance = losses.squared_error(losses.probabilities(between), target)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, mixed_x.targets(label)),
                "consistency": at.value(self.weight) * distance,
            },
            logs={"pseudo_label_accuracy": losses.accuracy(teacher.argmax(dim=1), u.truth)},
        )

    def _mixture(self, kind: str, x: Tensor, at: At) -> Mixture:
        """What the rows of x, float [B, C, H, W], are mixed with."""
        share, order = beta_share(at, f"ict/{kind}", at.value(self.alpha)), at.draw(f"ict/{kind}", len(x))
        height, width = x.shape[2:]
        return mixture([(order, torch.full((len(x), 1), share))], order, self.mix, (height, width), x.device)
