"""SVI (Xu et al. 2022, arXiv 2202.08876): layers that move without their own activation's derivative."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.ranks import mean_over_ranks
from ssl_lab.nets import frozen_statistics
from ssl_lab.nets.residual import Residual
from ssl_lab.optim import Closure, plain
from ssl_lab.techniques.base import StepTechnique

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class SVI(StepTechnique):
    """The optimizer's step of layer l by d/dtheta_l <z_l(theta_l), G_l>,    G_l = dL/dx_(l+1),    x_(l+1) = act(z_l)

    in place of dL/dtheta_l = d/dtheta_l <z_l, act'(z_l) G_l>: a monotone operator, which leaves out the layer's
    own activation's derivative. G_l is a constant, from ordinary backpropagation; z_l is the pre-activation after the
    layer's norm. With activations that are the identity it is the plain step.

    A layer is a convolution or linear layer, perhaps a norm, and an activation behind each other in a Sequential; in a
    residual block, its last convolution and its shortcut's, whose sum is activated. The head and all else move by the
    ordinary gradient, and the loss is the method's own. Gradients are not clipped. A net without such layers is
    refused.

    Checked against the authors' notebook (hamrel-cxu/SVI-NN-training at ef43667, `SVI_OGB_128width.ipynb`), whose
    layers are graph convolutions with BatchNorm and ReLU. Its loss is the squared error of softmax outputs, where
    softmax counts as the head's activation: the head's direction is then 2 (p - y) in place of cross-entropy's p - y,
    which ours is, and only what it hands back differs.

    Args:
        until: the fraction of training in which it acts; plain steps after it. The paper claims quicker first
            steps, and a tenth is the authors' warm start. Of 500 steps of FixMatch (MNIST, 40 labels, 3 seeds) it
            gave 95.2 ± 0.5% so, all the way 87.3 ± 1.1; FixMatch alone has 95.8 ± 0.8.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def trained(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=1, techniques=rules, device="cpu", callbacks=[])
    ...     return dict(trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.named_parameters())
    >>> plain, other = trained(), trained(sl.SVI(until=1.0))
    >>> moved = [name for name in plain if not torch.equal(plain[name], other[name])]
    >>> "head.weight" in moved, len(moved) > 10  # the head moves as ever, layers before it otherwise
    (False, True)
    """

    name = "svi"
    paper = "An alternative approach to train neural networks using monotone variational inequality"
    arxiv = "2202.08876"

    def __init__(self, until: float = 0.1) -> None:
        super().__init__()
        if not 0 <= until <= 1:
            raise UsageError(f"svi: until={until}; expected a fraction of training, from 0 to 1")
        self.until = until

    def check(self, method: Method, pool: Pool) -> None:
        if not any(True for _ in layers(method.net.backbone)):
            raise UsageError("svi knows convolutions and linear layers that an activation follows in a Sequential, and "
                             f"{method.net.name} has none")

    def begin(self, method: Method, seed: int) -> None:
        self._found: dict[Tensor, Tensor] = {}
        self._on = False
        for parts, activated in layers(method.net.backbone):
            watch = _Layer(self, parts)
            parts[0].register_forward_pre_hook(watch.given)
            activated.register_forward_hook(watch.gave)

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        if at.frac >= self.until:
            return plain(closure, optimizer, at)
        self._found.clear()
        self._on = True
        try:
            loss = closure()
        finally:
            self._on = False
        for weight, slope in self._found.items():
            weight.grad = mean_over_ranks(slope)
        optimizer.step()
        return loss


class _Layer:
    """What a layer was given, and its weights' direction, taken when the gradient of what it gave is known."""

    def __init__(self, rule: Any, parts: Sequence[nn.Module]) -> None:
        self.rule, self.parts = rule, parts
        self.input: Tensor | None = None

    def __deepcopy__(self, memo: object) -> _Layer:
        return self  # copies of the net, which learn nothing, have it too

    def given(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.rule._on and torch.is_grad_enabled():
            self.input = inputs[0].detach()

    def gave(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        x, self.input = self.input, None
        if self.rule._on and x is not None and output.requires_grad:
            output.register_hook(lambda slope: self.move(x, slope))  # type: ignore[no-untyped-call]

    def move(self, x: Tensor, slope: Tensor) -> None:
        weights = [w for part in self.parts for w in part.parameters() if w.requires_grad]
        if not weights:
            return
        with torch.enable_grad(), ExitStack() as frozen:
            z = x.to(weights[0].dtype)
            for part in self.parts:
                frozen.enter_context(frozen_statistics(part))
                z = part(z)
            found = torch.autograd.grad(z, weights, slope.to(z.dtype))
        for weight, each in zip(weights, found, strict=True):
            before = self.rule._found.get(weight)
            self.rule._found[weight] = each if before is None else before + each


def layers(backbone: nn.Module) -> Iterator[tuple[list[nn.Module], nn.Module]]:
    """The modules of each layer up to its pre-activation, and the module that gives what is activated."""
    for module in backbone.modules():
        if isinstance(module, nn.Sequential):
            parts: list[nn.Module] = []
            for part in module:
                if isinstance(part, ACTIVATIONS) and parts:
                    yield parts, part
                parts = ([part] if isinstance(part, nn.Conv2d | nn.Linear) else
                         [*parts, part] if parts and isinstance(part, NORMS) else [])
        if isinstance(module, Residual):
            yield list(module.branch)[-2:], module
            if isinstance(module.shortcut, nn.Sequential):
                yield list(module.shortcut), module
