"""Margins that changes of the weights do not use up (after Tsai et al. 2021, arXiv 2103.02200)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net, evaluating
from ssl_lab.nets.residual import Residual, ResNet
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.weights.invariant import BatchNorm

SAFE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten, nn.Dropout, nn.AvgPool2d, nn.MaxPool2d)
"""No value moves by more than the largest change of the input."""


class PerturbationMargin(TermTechnique):
    """L + weight * (1 / B) sum_b max(0, s(c_b) - s(m_b)),    m_b = f_y - max_(j != y) f_j,    c_b = `worst_change`

    over the labeled images under the method's first view, s(v) = sign(v) log(1 + |v|): c_b bounds by how much m_b can
    shrink when each layer's weights change by up to `radius` of their norm, so that a term of 0 says that no such
    change makes a right answer wrong. The bound is safe, and loose: it grows with the product of the layers' norms,
    for which its gradient would drown the loss; hence the logarithm.

    Args:
        weight, radius: the paper's penalties are on margins of pairs of classes and on the norms of layers; this
            bound, and how it enters the loss, are ours, and no code was read.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.PerturbationMargin(radius=1e-4).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled', 'perturbation_margin']
    """

    name = "perturbation_margin"
    paper = "Formalizing Generalization and Robustness of Neural Networks to Weight Perturbations"
    arxiv = "2103.02200"
    serves = "robustness"

    def __init__(self, weight: Scalar = 0.01, radius: Scalar = 1e-4) -> None:
        super().__init__()
        self.weight, self.radius = weight, radius

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies or not method.views.labeled:
            raise UsageError(f"perturbation_margin has margins of labeled images, and {method.name} has none")
        style = pool.style
        like = next(method.net.parameters())
        worst_change(method.net, torch.zeros(1, style.channels, style.height, style.width).to(like), 0.0)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        if not at.value(self.weight):
            loss.terms["perturbation_margin"] = torch.zeros_like(loss.total)
            return loss
        x, targets = next(iter(batch.labeled.views.values())), batch.labeled.targets
        logits, change = worst_change(self.net, x, at.value(self.radius))
        shortfall = (_log(change) - _log(margins(logits, targets))).clamp(min=0).mean()
        loss.terms["perturbation_margin"] = at.value(self.weight) * shortfall.float()
        return loss


def _log(values: Tensor) -> Tensor:
    return values.sign() * values.abs().log1p()


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """float [B]: by how much the right class's logit is above the largest other one."""
    right = logits.gather(1, targets[:, None])
    return (right - logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1, keepdim=True))[:, 0]


def worst_change(net: Net, x: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] in evaluation mode, and c [B]: |f_i - f_j| changes by at most c_b for any two classes, whatever
    change each weight W of a layer suffers of |change|_inf <= radius |W|_inf (the largest absolute sum of a row).
    radius: a number, or one for each image, [B].

    Layer by layer, d' = (1 + radius) |W|_inf d + radius |W|_inf |a|_inf of inputs a that change by up to d; branches
    add; activations do not stretch; c = 2 d of the logits. Of layers without biases whose inputs are as large as they
    can be, it is 2 |x|_inf [prod (|W_l|_inf + e_l) - prod |W_l|_inf]. UsageError for parts of which it is not known.
    """
    with evaluating(net):
        features, change = _through(net.backbone, (x - net.mean) / net.std, x.new_zeros(len(x)), radius)
        logits, change = _through(net.head, features, change, radius)
    return logits, 2 * change


def _through(part: nn.Module, x: Tensor, change: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """The part's output, and by how much any of its values can change, [B]."""
    if isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward:
        for each in part:
            x, change = _through(each, x, change, radius)
        return x, change
    if isinstance(part, Residual) and not isinstance(part.after, nn.Module):
        branch, one = _through(part.branch, x, change, radius)
        shortcut, other = _through(part.shortcut, x, change, radius)
        return torch.relu(branch + shortcut), one + other
    if isinstance(part, ResNet):
        x, change = _through(nn.Sequential(part.stem, part.blocks), x, change, radius)
        return x.mean((2, 3)), change
    if isinstance(part, nn.Conv2d | nn.Linear):
        norm = part.weight.abs().flatten(1).sum(dim=1).max()
        return part(x), norm * ((1 + radius) * change + radius * x.abs().flatten(1).amax(dim=1))
    if isinstance(part, BatchNorm) and part.running_var is not None:
        gain = (part.running_var + part.eps).rsqrt()
        return part(x), change * (gain if part.weight is None else (gain * part.weight).abs()).max()
    if isinstance(part, SAFE):
        return part(x), change
    raise UsageError(f"perturbation_margin knows no bound for {type(part).__name__}: it has nets of convolutions, "
                     "BatchNorm and residual blocks, such as tiny_16 and resnet18")
