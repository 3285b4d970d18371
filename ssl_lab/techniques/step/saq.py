"""SAQ (Liu et al. 2021, arXiv 2111.12273): sharpness-aware minimization at the quantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from ssl_lab.batch import At, Loss
from ssl_lab.data import Pool
from ssl_lab.methods import Method
from ssl_lab.nets.quantized import check_bits
from ssl_lab.optim import Closure
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import along, gradients, learning, moved
from ssl_lab.techniques.term.qnn import Rounded, clip_signs, rounded_of
from ssl_lab.techniques.term.quantizing import Quantizing, check_quantized, quantize
from ssl_lab.techniques.weights.invariant import nets_of


class SAQ(StepTechnique):
    """The step at w by grad L(Q(w) + e),    e = rho g / (||g|| + 1e-12),    g = dL/dQ(w)

    Q rounds weights, and inputs of layers, as `qnn` does. The second pass rounds the same w, and adds e after it; the
    gradient passes straight, so that g is also the gradient of w. Biases and BatchNorm have their e, without rounding;
    one norm is of all together. rho = 0 is `qnn`. No argument turns it off.

    Checked against their code (`utils/qsam.py`) by a summary; its quantizer, of standardized weights with learned
    limits, and its search for bit widths are left out.

    Args:
        rho: 0.4 is the authors' for ResNet-20 on CIFAR, from a trained net.
        weights, inputs: bits.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=2, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> torch.allclose(head(sl.SAQ(rho=0.0, weights=4)), head(sl.QNN(weights=4)), atol=1e-6)  # rounding alone
    True
    >>> torch.allclose(head(sl.SAQ(rho=0.4, weights=4)), head(sl.QNN(weights=4)), atol=1e-6)
    False
    """

    name = "saq"
    paper = "Sharpness-aware Quantization for Deep Neural Networks"
    arxiv = "2111.12273"
    serves = "size"
    excludes: ClassVar[Mapping[str, str]] = {**Quantizing.excludes, "qnn": "both round weights; saq does by itself"}

    def __init__(self, rho: Scalar = 0.4, weights: int = 4, inputs: int = 8) -> None:
        super().__init__()
        check_bits(self.name, weights=weights, inputs=inputs)
        self.rho, self.weights, self.inputs = rho, weights, inputs

    def check(self, method: Method, pool: Pool) -> None:
        check_quantized(self.name, method, pool, self.inputs)

    def begin(self, method: Method, seed: int) -> None:
        quantize(nets_of(method), lambda _, __, edge: Rounded(max(self.weights, 8) if edge else self.weights),
                 self.inputs)
        self._rounded = rounded_of(method.net)

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        loss = closure()
        weights = learning(optimizer)
        shifts = along(gradients(weights), at.value(self.rho))
        plain = [i for i, weight in enumerate(weights) if id(weight) not in self._rounded]
        offsets = {id(weight): shift for weight, shift in zip(weights, shifts, strict=True)}
        with self._added(offsets), moved([weights[i] for i in plain], [shifts[i] for i in plain]):
            closure()
        optimizer.step()
        if self.weights == 1:
            clip_signs(weights, self._rounded)
        return loss

    @contextmanager
    def _added(self, offsets: Mapping[int, Tensor]) -> Iterator[None]:
        parts: Sequence[tuple[int, Rounded]] = list(self._rounded.items())
        for key, part in parts:
            part.offset = offsets.get(key)
        try:
            yield
        finally:
            for _, part in parts:
                part.offset = None
