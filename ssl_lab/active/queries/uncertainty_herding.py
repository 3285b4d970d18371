"""Uncertainty herding (Bae et al. 2024, arXiv 2412.20644): coverage of what is uncertain, at any number of labels."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.spatial.distance import pdist

from ssl_lab.active.queries.base import Query, check_counts, rng
from ssl_lab.active.queries.coverage import gaussian
from ssl_lab.active.queries.facility_location import MOST, compared, drawn, greedy_coverage
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features import sgd_probe
from ssl_lab.features.crossfit import cross_fitted
from ssl_lab.features.search import unit

LIMITS = (1.0, 20.0)  # of the temperature, as in the authors' code
NARROWEST = 0.01  # radius, below which float32 does not tell distances of unit vectors
COMPARED = 4096  # labeled rows


class UncertaintyHerding(Query):
    """Greedy maximum of the uncertainty coverage C(S) = mean_i u(x_i) max_{j in L + S} exp(-|x_i - x_j|^2 / sigma^2),

    u = 1 - (p_1 - p_2), the margin at a temperature, and 0 for labeled rows; rows are scaled to length 1. With few
    labels all is uncertain and the radius wide, so that this is `max_herding`; with many it nears `margin`:

    Otherwise as exact, and at the cost of, `facility_location`.

    Args:
        sigma: None = the least distance above 0 between two labeled rows (0.01 at least), and 1 while there are no
            two.
        temperature: of the probabilities p^(1/T) / sum. None adapts it: the paper holds out 30% of the labels,
            trains anew without them and takes the T from 1 to 20 of the least calibration error there. A query sees
            no model; here T is such that the mean confidence over the unlabeled rows is the accuracy of a softmax
            regression on the embeddings of labels it was not fitted to (5 folds): calibration in the large. Where
            no class has two labels, every row counts the same.
        most: unlabeled rows that are compared with each other.

    >>> rng = np.random.default_rng(0)
    >>> view = sl.PoolView(np.full(30, -1), embeddings=rng.normal(size=(30, 4)), probs=rng.dirichlet([1, 1], size=30))
    >>> len(sl.active.UncertaintyHerding()(view, budget=3))
    3
    """

    name = "uncertainty_herding"
    family = "hybrid"
    paper = "Uncertainty Herding: One Active Learning Method for All Label Budgets"
    arxiv = "2412.20644"
    needs = frozenset({"embeddings", "probs"})
    reads = "shares"
    uses_classes = True

    def __init__(self, sigma: float | None = None, temperature: float | None = None, most: int = MOST) -> None:
        check_counts(most=most)
        if (sigma is not None and sigma <= 0) or (temperature is not None and temperature <= 0):
            raise UsageError(f"sigma {sigma} and temperature {temperature} were given; expected numbers above 0")
        self.sigma = sigma
        self.temperature = temperature
        self.most = most

    def notes(self, view: PoolView, budget: int) -> list[str]:
        return drawn(self, view, budget, self.most)

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows, labeled = compared(view, budget, seed, self.most), view.labeled
        x, centers = (unit(view.read("embeddings", each)) for each in (rows, labeled))
        probs, temperature = view.read("probs", rows), self.temperature
        if temperature is None:
            temperature = adapted_temperature(centers, view.labels[labeled], probs)
        weight = np.ones(len(rows)) if temperature is None else margins(probs, temperature)
        sigma = adapted_radius(centers, seed) if self.sigma is None else self.sigma
        return rows[greedy_coverage(x, centers, partial(gaussian, sigma=sigma), budget, seed, view.ranks,
                                    weight.astype(np.float32))]


def adapted_radius(labeled: FloatArray, seed: int) -> float:
    """The least distance above 0 between two of the unit rows [n, D]; of more than 4,096, of so many drawn from the
    seed. 1 if there is none."""
    some = labeled[rng(seed, "radius").permutation(len(labeled))[:COMPARED]].astype(np.float64)
    apart = pdist(some) if len(some) > 1 else np.empty(0)
    return max(float(apart[apart > 1e-6].min()), NARROWEST) if (apart > 1e-6).any() else 1.0


def margins(probs: FloatArray, temperature: float) -> NDArray[np.float64]:
    """[N], 1 - (p_1 - p_2) of the two most probable classes of probs [N, C] at a temperature; 1 of a single class."""
    p = _tempered(probs, temperature)
    if p.shape[1] < 2:
        return np.ones(len(p))
    two = np.partition(p, -2, axis=1)[:, -2:]
    margin: NDArray[np.float64] = 1 - (two[:, 1] - two[:, 0])
    return margin


def adapted_temperature(x: FloatArray, labels: IntArray, probs: FloatArray) -> float | None:
    """See `UncertaintyHerding`. x: labeled rows [n, D]. labels: theirs, int [n]. probs: of unlabeled rows, [M, C]. None
    if these allow none."""
    if not len(labels):
        return None
    held_out = cross_fitted(x, labels, max(probs.shape[1], int(labels.max()) + 1), sgd_probe)
    if not len(held_out.rows):
        return None
    accuracy = float((held_out.probs.argmax(axis=1) == labels[held_out.rows]).mean())

    def above(temperature: float) -> float:
        return float(_tempered(probs, temperature).max(axis=1).mean()) - accuracy

    low, high = LIMITS
    return low if above(low) <= 0 else high if above(high) >= 0 else float(brentq(above, low, high, xtol=1e-6))


def _tempered(probs: FloatArray, temperature: float) -> NDArray[np.float64]:
    logs = np.log(np.maximum(probs.astype(np.float64), 1e-30)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    p: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return p
