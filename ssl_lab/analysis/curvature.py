"""The Hessian of the loss: its largest and smallest eigenvalues, and how all of them are spread."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_lab.analysis.landscape import Landscape
from ssl_lab.errors import UsageError
from ssl_lab.optim import lanczos

FloatArray = NDArray[Any]


class Spectrum(NamedTuple):
    """The eigenvalues of a Hessian, as Krylov spaces see them.

    Attributes:
        values: float64 [k]; the ends are the Hessian's to many digits.
        shares: float64 [k], of all eigenvalues, that lie there; they add up to 1.

    >>> spectrum = sl.analysis.Spectrum(values=np.array([0.0, 2.0]), shares=np.array([0.75, 0.25]))
    >>> float(spectrum.shares @ spectrum.values)  # the mean eigenvalue
    0.5
    """

    values: FloatArray
    shares: FloatArray

    @property
    def largest(self) -> float:
        return float(self.values.max())

    @property
    def smallest(self) -> float:
        return float(self.values.min())

    def density(self, at: FloatArray, width: float) -> FloatArray:
        """How densely eigenvalues lie at `at`, as normal bells of this width around each value."""
        bells = np.exp(-((at[:, None] - self.values) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi))
        return np.asarray(bells @ self.shares)


def spectrum(land: Landscape, steps: int = 20, probes: int = 1, seed: int = 0) -> Spectrum:
    """Of the Hessian of L at w, by so many steps of Lanczos' method from each of so many random directions: stochastic
    Lanczos quadrature, as in Granziol et al. 2022 (arXiv 2006.09092), who scale rates by it.

    A step costs two gradients. Directions are normal, so that an eigenvalue's share is its number over that of all.

    Args:
        land: the loss, its weights and images.
        steps: of Lanczos' method; from each direction come so many eigenvalues at most.
        probes: how many directions.
        seed: of the directions.

    Raises:
        UsageError: for less than one step or direction.

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), mean=(0.0,), std=(1.0,))
    >>> land = sl.analysis.Landscape(net, torch.rand(16, 1, 2, 2), torch.arange(16) % 2)
    >>> found = sl.analysis.spectrum(land, steps=10)
    >>> bool(found.values.min() > -1e-5), round(float(found.shares.sum()), 6)  # the loss of a linear net is convex
    (True, 1.0)
    """
    if steps < 1 or probes < 1:
        raise UsageError(f"spectrum: steps={steps}, probes={probes}; expected 1 or more")
    values, shares = [], []
    for probe in range(probes):
        found, vectors = torch.linalg.eigh(lanczos(land.product, land.weights, steps, seed + probe))
        values.append(found.numpy())
        shares.append(vectors[0].square().numpy() / probes)
    return Spectrum(np.concatenate(values), np.concatenate(shares))


def spectrum_by_class(land: Landscape, steps: int = 20, seed: int = 0) -> dict[int, Spectrum]:
    """That of each class's images alone (Rangwani et al. 2022, arXiv 2212.13827): a class that training has brought to
    a saddle, and not to a valley, has a smallest eigenvalue far below 0 beside its largest one.

    Args:
        land: the loss, its weights and images.
        steps: of Lanczos' method, from one direction.
        seed: of the direction.

    Returns:
        The spectrum of each class that has images, by its number.

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), mean=(0.0,), std=(1.0,))
    >>> land = sl.analysis.Landscape(net, torch.rand(16, 1, 2, 2), torch.arange(16) % 2)
    >>> len(sl.analysis.spectrum_by_class(land, steps=5))
    2
    """
    return {label: spectrum(land.part(land.y == label), steps, seed=seed) for label in sorted(set(land.y.tolist()))}
