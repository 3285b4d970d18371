"""BiTAT (Park et al. 2022, arXiv 2207.01394): weights are made of signs in a basis that the task's inputs ask for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.nets.parametrized import layers_of
from ssl_lab.nets.quantized import straight
from ssl_lab.techniques.images import as_seen
from ssl_lab.techniques.term.quantizing import Quantizing, Tempered

IMAGES = 64


class BiTAT(Quantizing):
    """w = a sign(w V) V',    V the eigenvectors of E x x',    a = sum_j l_j |(w V)_j| / sum_j l_j for each output

    x what the layer sees of 64 training images, patch by patch, as training begins, l_j the eigenvalues: in the basis V
    inputs are uncorrelated, and a is the best scale for l-weighted squared errors. Layers become so one after another,
    from the first on, until the fraction `until` of training, and have float weights before; the gradient passes
    straight. Grouped convolutions, the first layer and the head stay in floats. Weights that come out are dense in the
    usual basis: to be small, a file has to hold the signs and V. No argument turns it off.

    Of the paper only the abstract was read (an orthonormal transform by input-dependent correlation, importance, from
    the bottom to the top); the formulas are ours, and V does not learn.

    Args:
        inputs: bits of layers' inputs.
        until: fraction of training at which the last layer becomes so, in [0, 1].

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.BiTAT().around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled']
    """

    name = "bitat"
    paper = "BiTAT: Neural Network Binarization with Task-dependent Aggregated Transformation"
    arxiv = "2207.01394"
    serves = "size"

    def __init__(self, inputs: int = 8, until: float = 0.5) -> None:
        super().__init__(inputs)
        if not 0 <= until <= 1:
            raise UsageError(f"bitat: until={until}; expected 0 to 1")
        self.until = until

    @torch.no_grad()
    def begin(self, pool: Pool, seed: int) -> None:
        net, self._seen = self.net, dict[str, Tensor]()
        layers = {name: layer for name, layer in list(layers_of(net).items())[1:-1] if _dense(layer)}
        handles = [layer.register_forward_pre_hook(
            lambda layer, given, name=name: self._seen.update({name: second_moments(layer, given[0].detach())}))
            for name, layer in layers.items()]
        training = net.training
        net.eval()(as_seen(self.base, pool, IMAGES, seed, self.name))
        net.train(training)
        for handle in handles:
            handle.remove()
        super().begin(pool, seed)
        del self._seen

    def quantizer(self, name: str, layer: nn.Module, edge: bool) -> nn.Module | None:
        if edge or name not in self._seen:
            return None
        place = list(self._seen).index(name)
        return Signs(self._seen[name], self.until * place / max(1, len(self._seen) - 1))


class Signs(Tempered):
    """A weight [out, ...], of signs in a basis of its inputs from the fraction `since` of training on."""

    basis: Tensor
    importance: Tensor

    def __init__(self, moments: Tensor, since: float) -> None:
        super().__init__()
        self.since = since
        values, vectors = torch.linalg.eigh(moments)
        self.register_buffer("basis", vectors.float())
        self.register_buffer("importance", (values.clamp(min=0) / values.clamp(min=0).sum()).float())

    def forward(self, weight: Tensor) -> Tensor:
        made = straight(weight, signs_in(weight.detach(), self.basis.to(weight.dtype),
                                         self.importance.to(weight.dtype)))
        return torch.where(self.now >= self.since, made, weight)


def signs_in(weight: Tensor, basis: Tensor, importance: Tensor) -> Tensor:
    """a sign(w V) V' of a weight [out, ...] of d entries an output. basis: V [d, d]. importance: [d], of sum 1."""
    turned = weight.flatten(1) @ basis
    scale = (turned.abs() * importance).sum(1, keepdim=True)
    return (scale * torch.where(turned >= 0, 1.0, -1.0) @ basis.T).view_as(weight)


def second_moments(layer: nn.Module, x: Tensor) -> Tensor:
    """E x x' float64 [d, d] of what each output of a layer is a product with: patches, or rows."""
    if isinstance(layer, nn.Conv2d):
        x = F.unfold(x.float(), layer.kernel_size, layer.dilation, tuple(map(int, layer.padding)), layer.stride)
        x = x.transpose(1, 2)
    rows = x.flatten(0, -2).double()
    return rows.T @ rows / len(rows)


def _dense(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1
                                            and not isinstance(layer.padding, str))
