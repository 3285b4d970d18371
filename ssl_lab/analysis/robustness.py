"""How a net stands attacks, corruptions and noise: accuracy and calibration under each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ssl_lab.batch import Style
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.engine.evaluate import rates, tallies
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.seeds import generator
from ssl_lab.techniques.attack import pgd
from ssl_lab.techniques.images import some
from ssl_lab.views.corruptions import KINDS, corrupt

ROWS = 128  # images that pass at a time
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)  # standard deviations of Gaussian noise, of pixels in [0, 1]
STRENGTHS = range(6)  # of corruptions; 0 is the clean image

Attack = Callable[[Tensor, Tensor], Tensor]
"""(images, float [n, C, H, W] in [0, 1], and their classes, int64 [n]) -> images that the net tells wrong, as far as it
finds them."""


class Score(NamedTuple):
    """Shares in [0, 1]."""

    accuracy: float
    ece: float


@dataclass(frozen=True)
class Trial:
    """A net, and the images that it is tried on: x uint8 [n, C, H, W], y int64 [n]."""

    net: Net
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, net: Net, pool: Pool, images: int, seed: int, runtime: Runtime) -> Trial:
        """On so many test images of known class, drawn by the seed; where there is none, on validation images.

        UsageError if there are none of these either. The net itself moves to the device, in evaluation mode.
        """
        rows: IntArray = pool.test if (pool.truth[pool.test] >= 0).any() else pool.valid
        rows = np.sort(some(rows[pool.truth[rows] >= 0], images, seed, "robustness"))
        if not len(rows):
            raise UsageError(f"{pool.name} has no test image whose class is known, and the run no validation images")
        return cls(net.eval().to(runtime.device), pool.images.take(rows).to(runtime.device),
                   torch.from_numpy(pool.truth[rows]).to(runtime.device))

    def score(self, pixels: Tensor) -> Score:
        """Of images as they have become, float [n, C, H, W] in [0, 1]."""
        with torch.inference_mode():
            logits = torch.cat([self.net(part.to(self.y.device)).logits for part in torch.split(pixels, ROWS)])
        found = rates(tallies(logits.double().softmax(dim=1).cpu().numpy(), self.y.cpu().numpy()))
        return Score(found["accuracy"], found["ece"])

    def attacked(self, attack: Attack) -> Score:
        parts = zip(torch.split(self.x / 255, ROWS), torch.split(self.y, ROWS), strict=True)
        return self.score(torch.cat([attack(x, y) for x, y in parts]))


@dataclass(frozen=True)
class Stand:
    """What a trial gave on `count` images. attacks: name -> radius (0: clean) -> score. corrupted: kind -> score by
    strength, 0 to 5. noisy: by `LEVELS`."""

    count: int
    clean: Score
    attacks: Mapping[str, Mapping[float, Score]]
    corrupted: Mapping[str, Sequence[Score]]
    noisy: Sequence[Score]


def stand(trial: Trial, radii: Sequence[float], steps: int, seed: int) -> Stand:
    """How the net stands attacks of these radii (of pixels in [0, 1]) and of so many steps, 15 corruptions and noise.

    Attacks: PGD (Madry et al. 2018, arXiv 1706.06083), and those of torchattacks and autoattack, where installed.
    """
    clean = trial.score(trial.x / 255)
    makers = {f"PGD-{steps}": _ours(trial.net, steps, seed)} | foreign(trial.net, steps)
    attacks = {name: {0.0: clean} | {radius: trial.attacked(make(radius)) for radius in radii if radius}
               for name, make in makers.items()}
    corrupted = {kind: [clean, *(trial.score(corrupt(trial.x, kind, strength, seed)) for strength in STRENGTHS[1:])]
                 for kind in KINDS}
    noisy = [trial.score(noise(trial.x, level, seed)) for level in LEVELS]
    return Stand(len(trial.y), clean, attacks, corrupted, noisy)


def read_radii(text: str, style: Style) -> list[float]:
    """Of attacks, numbers from 0 to 1 with commas. Without any: 1, 2, 4 and 8 of 255; of gray images 0.05, 0.1, 0.2 and
    0.3. UsageError for other texts."""
    if not text:
        return [0.05, 0.1, 0.2, 0.3] if style.channels == 1 else [each / 255 for each in (1, 2, 4, 8)]
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= each <= 1 for each in found):
        raise UsageError(f"--radii {text}: expected numbers from 0 to 1 with commas, as in 0.01,0.03")
    return found


def _ours(net: Net, steps: int, seed: int) -> Callable[[float], Attack]:
    def make(radius: float) -> Attack:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            draw = torch.rand(x.shape, generator=generator(seed, "pgd")).to(x.device)
            return pgd(net, x, y, radius, steps, noise=2 * draw - 1)
        return attack
    return make


def foreign(net: Net, steps: int) -> dict[str, Callable[[float], Attack]]:
    """Attacks of other packages, by name, as far as they are installed: radius -> attack."""
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x).logits
            return logits

    found: dict[str, Callable[[float], Attack]] = {}
    if importlib.util.find_spec("torchattacks"):
        torchattacks: Any = importlib.import_module("torchattacks")
        found[f"torchattacks PGD-{steps}"] = lambda radius: torchattacks.PGD(
            Logits().eval(), eps=radius, alpha=2.5 * radius / steps, steps=steps)
    if importlib.util.find_spec("autoattack"):
        autoattack: Any = importlib.import_module("autoattack")
        found["AutoAttack"] = lambda radius: lambda x, y: autoattack.AutoAttack(
            Logits().eval(), norm="Linf", eps=radius, device=str(x.device),
            verbose=False).run_standard_evaluation(x, y, bs=len(x))
    return found


def noise(images: Tensor, level: float, seed: int) -> Tensor:
    """float [n, C, H, W]: with Gaussian noise of this standard deviation, the same draw for each level.

    images: uint8 [n, C, H, W]."""
    draw = torch.randn(images.shape, generator=generator(seed, "noise")).to(images.device)
    return (images / 255 + level * draw).clamp(0, 1)
