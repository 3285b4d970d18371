"""Taylor pruning (Molchanov et al. 2019, arXiv 1906.10771): channels go whose loss, to first order, would be least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.techniques.weights.pruning import Pruning, contributions


class Taylor(Pruning):
    """I_c = mean over steps of (dL/dz_c)^2,    z_c = 1 a gate that multiplies channel c after its BatchNorm

    (L(z_c = 0) - L(z_c = 1))^2 to first order. With BatchNorm's y = gamma x + beta, dL/dz = gamma dL/dgamma + beta
    dL/dbeta, so that nothing is added to the net; of a layer without BatchNorm it is <w, dL/dw> of its filter, and one
    gate stands for channels that residual connections add up. Steps since the last round count.

    The gate after BatchNorm is the paper's best criterion (`Taylor_gate` of the authors' code, of which a summary was
    read; its weight variant sums (g w)^2). It prunes every few batches, in rounds of equal count, as here.

    Args:
        ratio: of all channels that go.
        rounds, until: see `Pruning`.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> rule = sl.Taylor(ratio=0.5, rounds=1)
    >>> trainer = sl.Trainer(steps=4, out="run", techniques=[rule], device="cpu", callbacks=[])
    >>> small = trainer.fit(method, pool, labeled=8, unlabeled=0).method.predictor()
    >>> small.name, sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in sl.net("tiny_4").parameters())
    ('tiny_4+slim', True)
    """

    name = "taylor"
    paper = "Importance Estimation for Neural Network Pruning"
    arxiv = "1906.10771"
    serves = "size"

    def __init__(self, ratio: float = 0.5, rounds: int = 10, until: float = 0.5) -> None:
        super().__init__(ratio, rounds, until)

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        self._gates = list(dict.fromkeys(member.name for group in self._groups for member in group.gates))
        self._before: dict[str, list[Tensor]] = {}

    def forward(self, batch: Batch, at: At) -> Loss:
        if at.frac < self.until:  # gradients are of these weights, and not of those after the step
            self._before = {name: [p.detach().clone() for p in self._of(name)] for name in self._gates}
        return super().forward(batch, at)

    def _of(self, gate: str) -> list[nn.Parameter]:
        return list(self.net.get_submodule(gate).parameters(recurse=False))

    def measured(self, at: At) -> Tensor:
        if at.frac < self.until:
            slopes = {name: gate_slopes(before, [p.grad for p in self._of(name)]) for name, before in
                      self._before.items()}
            self.importance.add_(contributions(self.net, self._groups, slopes).square())
        return self.importance  # a sum of as many steps for all


def gate_slopes(parameters: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
    """dL/dz float [rows] of gates that multiply a layer's output channels: sum of w dL/dw of what writes each."""
    total = torch.zeros(len(parameters[0]), device=parameters[0].device, dtype=parameters[0].dtype)
    for w, g in zip(parameters, gradients, strict=True):
        if g is not None:  # of a head that the loss does not reach there is none
            total += (w * g).flatten(1).sum(1) if w.ndim > 1 else w * g
    return total
