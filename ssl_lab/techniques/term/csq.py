"""CSQ (Xiao et al. 2022, arXiv 2212.02770): how many bits each layer has is learned with the bits themselves."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets.parametrized import baked
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.quantizing import Quantizing, Tempered

SHARPEST = 200.0


class CSQ(Quantizing):
    """w = s / (2^n - 1) sum_b 2^b sig(beta m_b) [sig(beta p_b) - sig(beta q_b)],    beta = 200^(t / until)

    L + weight (r - target / n) sum sig(beta m),    r the share of gates m >= 0, without gradient

    n = 8. For each weight p and q, one number for each bit, begin as the bits of +w0 and -w0 less 1/2, s = max |w0| of
    the layer, and each layer's m as 0. After the fraction `until` of training m is held hard. What is evaluated and
    exported is the net of the last step, not an average, with steps in place of sigmoids: weights of as many bits as a
    layer's m are positive. p and q are 16 numbers for each weight: take small nets. No argument turns it off.

    Checked against the authors' code (`bits/bitcs.py`) by a summary; there beta goes by epochs, and p, q begin as the
    bits themselves: those that are 0 stay about there in short runs, half open, and on which side is chance.

    Args:
        target: mean bits that the gates are to come to.
        weight: 0.001 in the paper.
        inputs: bits of layers' inputs.
        until: fraction of training from which on gates are held hard, in (0, 1].

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.CSQ(target=4.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['bits', 'labeled']
    """

    name = "csq"
    paper = "CSQ: Growing Mixed-Precision Quantization Scheme with Bi-level Continuous Sparsification"
    arxiv = "2212.02770"
    serves = "size"

    def __init__(self, target: float = 4.0, weight: Scalar = 0.001, inputs: int = 8, until: float = 0.8) -> None:
        super().__init__(inputs)
        if not 0 < target <= 8 or not 0 < until <= 1:
            raise UsageError(f"csq: target={target}, until={until}; expected bits above 0 to 8, and until above 0 to 1")
        self.target, self.weight, self.until = target, weight, until

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        for layer in self.net.modules():
            if isinstance(layer, nn.utils.parametrize.ParametrizationList):
                layer.original.requires_grad_(False)  # its bits learn

    def quantizer(self, name: str, layer: nn.Module, edge: bool) -> nn.Module:
        return Bits(layer.get_parameter("weight").detach(), self.until)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        parts = [part for part in self.net.modules() if isinstance(part, Bits)]
        share = torch.cat([part.m.detach() >= 0 for part in parts]).float().mean()
        opened = torch.stack([part.gates().sum() for part in parts]).sum()
        loss.terms["bits"] = at.value(self.weight) * (share - self.target / 8) * opened
        loss.logs["bits"] = 8 * share
        return loss

    def predictor(self) -> Net:
        net = copy.deepcopy(self.net)  # the bits of averaged p, q and m are those of no net that was trained
        for part in net.modules():
            if isinstance(part, Bits):
                part.hard = True
        return baked(net)


class Bits(Tempered):
    """A weight of 8 bits, from one [...] whose value no longer counts."""

    powers: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, until: float) -> None:
        super().__init__()
        self.until, self.hard = until, False
        self.register_buffer("powers", 2.0 ** torch.arange(8, device=weight.device))
        self.register_buffer("scale", weight.abs().max().clamp(min=1e-12))
        whole = (weight / self.scale * 255).round().long()
        bits = [((sign * whole).flatten().clamp(min=0).unsqueeze(-1) >> torch.arange(8, device=weight.device)) & 1
                for sign in (1, -1)]
        self.p, self.q = (nn.Parameter(each.to(weight.dtype) - 0.5) for each in bits)
        self.m = nn.Parameter(torch.zeros(8, device=weight.device, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        signed = (self._open(self.p) - self._open(self.q)) * self.gates() * self.powers
        return (self.scale / 255 * signed.sum(-1)).view_as(weight)

    def gates(self) -> Tensor:
        """Of the bits of the layer, float [8]; hard, without gradient, once training is so far."""
        soft = self._open(self.m)
        return torch.where(self.now >= self.until, (self.m >= 0).to(soft.dtype), soft)

    def _open(self, x: Tensor) -> Tensor:
        if self.hard:
            return (x >= 0 if x is self.m else x > 0).to(x.dtype)
        return torch.sigmoid(SHARPEST ** (self.now / self.until).clamp(max=1) * x)
