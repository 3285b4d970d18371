"""Learning rates for other batch sizes, and the largest that is stable (Granziol et al. 2022, arXiv 2006.09092)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ssl_lab.errors import UsageError, unknown
from ssl_lab.seeds import generator

Rule = Literal["linear", "sqrt"]


def scaled_rate(rate: float, batch: int, base: int, rule: Rule = "linear", most: float | None = None) -> float:
    """The learning rate for larger or smaller steps, from one that suits steps of `base` images.

    The two rules of Granziol et al. 2022 (arXiv 2006.09092), from the abstract; the cap is ours.

    Args:
        rate: that suits steps of `base` images.
        batch: images of a step now.
        base: images of a step then.
        rule: "linear", rate * batch / base, for SGD; "sqrt", rate * sqrt(batch / base), for Adam and its kin.
        most: a cap, such as `stable_rate`: the linear rule holds while the noise of small batches bounds the rate, and
            no longer where the curvature of the whole loss does.

    Raises:
        UsageError: for an unknown rule, and for steps without an image.

    >>> sl.optim.scaled_rate(0.1, batch=1024, base=256), sl.optim.scaled_rate(0.1, 1024, 256, rule="sqrt")
    (0.4, 0.2)
    """
    if rule not in get_args(Rule):
        raise unknown("scaling rule", rule, get_args(Rule))
    if batch < 1 or base < 1:
        raise UsageError(f"scaled_rate(batch={batch}, base={base}): both are numbers of images, 1 or more")
    factor = batch / base if rule == "linear" else math.sqrt(batch / base)
    return rate * factor if most is None else min(rate * factor, most)


def stable_rate(product: Callable[[list[Tensor]], Sequence[Tensor]], weights: Sequence[Tensor], steps: int = 15,
                seed: int = 0) -> float:
    """2 / lambda, the largest rate at which gradient descent does not leave a quadratic bowl of largest curvature
    lambda, by Lanczos' method; infinite where no direction curves upwards.

    Args:
        product, weights, steps, seed: see `largest_eigenvalue`.

    >>> h = torch.diag(torch.tensor([1.0, 4.0]))
    >>> round(sl.optim.stable_rate(lambda d: [h @ d[0]], [torch.zeros(2)]), 4)
    0.5
    """
    curvature = largest_eigenvalue(product, weights, steps, seed)
    return 2 / curvature if curvature > 0 else math.inf


def largest_eigenvalue(product: Callable[[list[Tensor]], Sequence[Tensor]], weights: Sequence[Tensor], steps: int = 15,
                       seed: int = 0) -> float:
    """Largest eigenvalue of a symmetric matrix H, from below, by so many steps of Lanczos' method.

    Every new direction is made orthogonal to all before it, so that rounding brings no eigenvalue twice.

    Args:
        product: a direction, tensors shaped as `weights` -> H d, as `Closure.curvature` gives for the loss of a batch.
        weights: of whose shapes directions are, and on whose device.
        steps: at most so many, one product each.
        seed: of the first direction.

    >>> h = torch.diag(torch.arange(1.0, 101.0))
    >>> round(sl.optim.largest_eigenvalue(lambda d: [h @ d[0]], [torch.zeros(100)], steps=60), 3)
    100.0
    """
    return float(torch.linalg.eigvalsh(lanczos(product, weights, steps, seed))[-1])


def lanczos(product: Callable[[list[Tensor]], Sequence[Tensor]], weights: Sequence[Tensor], steps: int,
            seed: int = 0) -> Tensor:
    """float64 [k, k], on the CPU: the tridiagonal matrix that a symmetric H is in a Krylov space of k <= `steps`
    dimensions from a random direction of length 1.

    Args:
        product: a direction, tensors shaped as `weights` -> H d, as `Closure.curvature` gives for the loss of a batch.
        weights: of whose shapes directions are, and on whose device.
        steps: at most so many, one product each.
        seed: of the first direction.

    >>> h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> small = sl.optim.lanczos(lambda d: [h @ d[0]], [torch.zeros(2)], steps=2)
    >>> torch.linalg.eigvalsh(small).round(decimals=4).tolist()
    [1.0, 3.0]
    """
    sizes, like = [w.numel() for w in weights], weights[0]
    draw = torch.randn(sum(sizes), generator=generator(seed, "lanczos"), dtype=torch.float64)
    basis = [(draw / draw.norm()).to(like.device, like.dtype)]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, sum(sizes))):
        parts = [part.view_as(w) for part, w in zip(basis[-1].split(sizes), weights, strict=True)]
        image = torch.cat([each.flatten() for each in product(parts)])
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # once is not enough in float32
            known = torch.stack(basis)
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        if length <= 1e-6 * max(map(abs, diagonal)):
            break
        beside.append(length)
        basis.append(image / length)
    beside = beside[: len(diagonal) - 1]
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for offset in (1, -1):
        small += torch.diag(torch.tensor(beside, dtype=torch.float64), offset)
    return small
