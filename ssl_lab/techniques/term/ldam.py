"""LDAM (Cao et al. 2019, arXiv 1906.07413) with deferred re-weighting, as in Rangwani et al. 2022."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import learner_and_averages
from ssl_lab.techniques.term.deferred import DEFERRED, Deferred


class LDAM(Deferred):
    """H(y, softmax(scale (c - m_y e_y))),    c_k = <f, w_k> / (|f| |w_k|),    m_k = margin (n_min / n_k)^(1/4)

    with f the features, w_k the head's weights of class k and n_k its labeled images: rare classes are to win by more.
    Rows weigh as `Deferred` says. With SAM (`--with "sam(rho=0.8)"`, 0.5 for VS) it is Rangwani's recipe for long
    tails.

    The net gets that head: its logits are scale c, without bias, in targets and predictions too, and what comes out is
    {net}+unit, a net of unit features with a plain head. It starts from the directions of the head's first weights.

    Checked against the authors' code (kaidic/LDAM-DRW at 2536330: `losses.py`, `models/resnet_cifar.py`) and Rangwani's
    (val-iisc/Saddle-LongTail at 48328fb), who has the margin 0.3 for ImageNet-LT.

    Args:
        margin: that of the rarest class.
        scale: s in the paper; None leaves the net its own head, from whose logits m is then taken as it is.
        beta: of the weights.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.LDAM(margin=0.5).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> term.net.name, bool(term(batch, sl.At(0, 100)).total > 0)
    ('tiny_4+unit', True)
    """

    name = "ldam"
    paper = "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss"
    arxiv = "1906.07413"

    def __init__(self, margin: Scalar = 0.5, scale: float | None = 30.0, beta: Scalar = DEFERRED) -> None:
        super().__init__()
        if scale is not None and scale <= 0:
            raise UsageError(f"ldam: scale={scale}; expected a positive number, or None for the net's own head")
        self.margin, self.scale, self.beta = margin, scale, beta

    @property
    def overwrites(self) -> str:
        return "keeps the directions alone of the head's weights" if self.scale is not None else ""

    def check(self, method: Method, pool: Pool) -> None:
        super().check(method, pool)
        if self.scale is None:
            return
        if parametrize.is_parametrized(method.net.head) and _length(method.net).requires_grad:
            raise UsageError("ldam gives the head's weights a fixed length, and weight_norm one that learns; leave one "
                             "of them out, or take ldam(scale=None)")
        known = {part for net in learner_and_averages(method) for part in net.modules()}
        if any(isinstance(part, nn.Linear) and part.out_features == method.net.classes and part not in known
               and part.weight.requires_grad for part in method.modules()):
            raise UsageError(f"ldam makes cosines of the logits of the net, and {method.name} trains other classifiers "
                             "beside it; take ldam(scale=None)")

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        if self.scale is not None:
            for net in learner_and_averages(self.base):
                make_cosine(net, self.scale, seed)

    def idle(self, at: At) -> bool:
        return at.value(self.margin) == at.value(self.beta) == 0

    def adjusted(self, logits: Tensor, targets: Tensor, at: At) -> Tensor:
        return logits - (self.scale or 1.0) * margins(self.counts, targets, at.value(self.margin))


def margins(counts: Tensor, targets: Tensor, margin: float) -> Tensor:
    """margin (n_min / n_k)^(1/4) in the column of a row's label, 0 in the others, float [B, C]; by shares of targets
    that are mixed. counts: float [C], above 0."""
    shares = targets if targets.ndim == 2 else F.one_hot(targets, len(counts))
    return shares * (margin * (counts.min() / counts) ** 0.25)


@torch.no_grad()
def make_cosine(net: Net, scale: float, seed: int) -> None:
    """Makes the net's logits scale times the cosines of features and head weights, in place. A class whose weights are
    all 0, which have no direction, gets one by the seed."""
    head = net.head
    if not net.unit:
        net.unit, net.name = True, f"{net.name}+unit"
    if not parametrize.is_parametrized(head):
        drawn = torch.randn(head.weight.shape, generator=generator(seed, "ldam")).to(head.weight)
        head.weight.copy_(torch.where(head.weight.any(dim=1, keepdim=True), head.weight, drawn))
        parametrizations.weight_norm(head, dim=0)
    _length(net).fill_(scale)
    _length(net).requires_grad_(False)
    head.bias.zero_()
    head.bias.requires_grad_(False)


def _length(net: Net) -> Tensor:
    return net.head.get_parameter("parametrizations.weight.original0")
