"""SatNL (Park et al. 2022, arXiv 2208.00338): activations that saturate leave no outliers to a coarse grid."""

from __future__ import annotations

import torch

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets.parametrized import layers_of
from ssl_lab.nets.saturated import SAT, saturate
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.images import as_seen
from ssl_lab.techniques.weights.invariant import nets_of

IMAGES = 64


class SatNL(TermTechnique):
    """Layers see limit * tanh(x / limit),    limit = deviations * sqrt(E x^2) of their inputs on 64 training images

    of the net as training begins; the first layer sees the image as it is. The net is then called {net}+sat. With 0
    deviations nothing saturates. As with `symreg`, rounding comes afterwards, or beside with `qnn`.

    Of the paper only the abstract was read (a saturating nonlinearity on activations); the function, its place before
    each layer and the limits are ours.

    Args:
        deviations: 0 or more.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.SatNL(deviations=4.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> term.predictor().name
    'tiny_4+sat'
    """

    name = "satnl"
    paper = "Symmetry Regularization and Saturating Nonlinearity for Robust Quantization"
    arxiv = "2208.00338"
    serves = "size"

    def __init__(self, deviations: float = 4.0) -> None:
        super().__init__()
        if not deviations >= 0:
            raise UsageError(f"satnl: deviations={deviations}; expected 0 or more")
        self.deviations = deviations

    def check(self, method: Method, pool: Pool) -> None:
        if len(layers_of(method.net)) < 2 or SAT in method.net.name:
            raise UsageError(f"satnl saturates what layers after the first see, and {method.net.name} "
                             f"{'does so already' if SAT in method.net.name else 'has none'}")

    @torch.no_grad()
    def begin(self, pool: Pool, seed: int) -> None:
        if not self.deviations:
            return
        net, sizes = self.net, dict[str, torch.Tensor]()
        handles = [layer.register_forward_pre_hook(
            lambda _, given, name=name: sizes.update({name: given[0].detach().float().square().mean().sqrt()}))
            for name, layer in list(layers_of(net).items())[1:]]
        training = net.training
        net.eval()(as_seen(self.base, pool, IMAGES, seed, self.name))
        net.train(training)
        for handle in handles:
            handle.remove()
        for each in nets_of(self):
            saturate(each)
            for name, size in sizes.items():
                each.get_submodule(name).get_buffer("input_limit").copy_(self.deviations * size.clamp(min=1e-6))
