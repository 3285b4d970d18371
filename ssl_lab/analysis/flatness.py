"""How flat the loss is around a net's weights: sharpness, and local energy."""

from __future__ import annotations

import torch

from ssl_lab.analysis.landscape import Landscape
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator
from ssl_lab.techniques.step.nearby import along


def sharpness(land: Landscape, radius: float, m: int | None = None, steps: int = 1) -> float:
    """max over |e|_2 <= radius of L(w + e) - L(w), from below

    by so many steps of ascent, each of radius / steps along the gradient: one is what SAM looks at (Foret et al. 2021,
    arXiv 2010.01412).

    Radius 0 gives 0. By the papers' definitions; no code was read.

    Args:
        land: the loss, its weights and images.
        radius: of the ball, in the 2-norm over all weights; at least 0.
        m: the mean over groups of m images, each with an e of its own (m-sharpness, Andriushchenko and Flammarion 2022,
            arXiv 2206.06232, who find small m to tell generalization apart); the last group may be smaller. None: all
            together.
        steps: of ascent.

    Raises:
        UsageError: for a negative radius, and for no image or no step.

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), mean=(0.0,), std=(1.0,))
    >>> land = sl.analysis.Landscape(net, torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
    >>> 0 < sl.analysis.sharpness(land, radius=0.1) < sl.analysis.sharpness(land, radius=0.2)
    True
    """
    if radius < 0 or steps < 1 or (m is not None and m < 1):
        raise UsageError(f"sharpness: radius={radius}, m={m}, steps={steps}; expected a radius of 0 or more, 1 image "
                         "and 1 step or more")
    rise, count = 0.0, len(land.y)
    for rows in torch.split(torch.arange(count, device=land.y.device), m or count):
        part = land.part(rows)
        shifts = [torch.zeros_like(w) for w in land.weights]
        for _ in range(steps):
            with land.at(shifts):
                climb = along(part.gradient(), radius / steps)
            shifts = [shift + step for shift, step in zip(shifts, climb, strict=True)]
        with land.at(shifts):
            high = part.loss()
        rise += len(rows) / count * (high - part.loss())
    return rise


def local_energy(land: Landscape, scale: float, draws: int = 100, seed: int = 0) -> float:
    """E_z[Err(w + scale w z)] - Err(w), z standard normal for each weight: by how much the share of wrong answers
    rises when each weight moves by some `scale` of itself (Pittorino et al. 2021, arXiv 2006.07897).

    Their code takes 100 draws, in evaluation mode. Scale 0 gives 0.

    Args:
        land: the loss, its weights and images.
        scale: the standard deviation of a weight's change, as a share of the weight; at least 0.
        draws: of z, over which the mean is taken.
        seed: of these.

    Raises:
        UsageError: for a negative scale, or without draws.

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), mean=(0.0,), std=(1.0,))
    >>> land = sl.analysis.Landscape(net, torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
    >>> sl.analysis.local_energy(land, scale=0.0, draws=3)
    0.0
    """
    if scale < 0 or draws < 1:
        raise UsageError(f"local_energy: scale={scale}, draws={draws}; expected a scale of 0 or more, and 1 draw or "
                         "more")
    here, there = land.error(), 0.0
    for draw in range(draws):
        source = generator(seed, "local energy", draw)
        noise = [torch.randn(w.shape, generator=source, dtype=w.dtype).to(w.device) for w in land.weights]
        with land.at([scale * w.detach() * z for w, z in zip(land.weights, noise, strict=True)]):
            there += land.error() / draws
    return there - here
