"""What probabilities are worth: one temperature that calibrates them, and prediction sets with a promised coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEWEST = 20  # labels to calibrate by: of fewer, a temperature says more about these images than about others
LIMITS = (0.05, 20.0)  # of the temperature
SPREAD = 0.5  # of the temperature's logarithm, before there are images


@dataclass(frozen=True)
class Calibration:
    """How a model's logits become probabilities.

    temperature: logits are divided by it. scores: 1 - p(true class) of images that neither the model nor this
    temperature was fitted to, sorted, for `threshold`; empty where there were too few. source: what it was measured
    on, or why it was not.
    """

    temperature: float = 1.0
    scores: tuple[float, ...] = ()
    source: str = "not calibrated"

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """float64 [n, C]: softmax(logits / temperature)."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        p: FloatArray = np.exp(scaled - logsumexp(scaled, axis=1, keepdims=True))
        return p

    def threshold(self, coverage: float) -> float | None:
        """The least probability of the classes in a prediction set, for `prediction_sets`; None if `scores` are too few
        to promise so much."""
        quantile = conformal_quantile(self.scores, coverage)
        return None if quantile is None else 1 - quantile

    @property
    def said(self) -> str:
        """In a line: what they were measured on, and the temperature, if there is one."""
        return self.source if self.temperature == 1 else (
            f"logits divided by a temperature of {self.temperature:.3g}, fitted to {self.source}")

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"temperature": self.temperature, "scores": list(self.scores), "source": self.source}


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature T, from 0.05 to 20, with the least cross-entropy of softmax(logits / T) (Guo et al. 2017, arXiv
    1706.04599), and with log T normal around 0 beforehand. logits: [n, C]. truth: int [n].

    So a few images without an error do not make a model certain of all others, and a few errors do not take all of its
    certainty. Softened targets, after Platt (1999), make a good model of 10 classes far too doubtful: measured beside
    this in tests/benchmarks/README.md.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(truth)
    of_target = z[np.arange(len(y)), y]

    def loss(log_inverse: float) -> float:
        beta = math.exp(log_inverse)
        return float((logsumexp(beta * z, axis=1) - beta * of_target).sum() + (log_inverse / SPREAD) ** 2 / 2)

    low, high = (-math.log(limit) for limit in reversed(LIMITS))
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(-float(found.x))


def calibrate(logits: ArrayLike, truth: ArrayLike, what: str, seed: int = 0) -> Calibration:
    """The calibration of a model by images that it was not fitted to.

    logits: [n, C]. truth: int [n], all known. what: says what these images are, e.g. "validation images". The
    temperature is fitted to all of them; the scores are cross-fitted: each half is scored at the temperature of the
    other one, so that they are as large as those of new images.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    if len(y) < FEWEST:
        return Calibration(source=f"not calibrated: {len(y)} {what}, and it takes {FEWEST}")
    halves = np.arange(len(y)) % 2
    halves = np.random.default_rng(seed).permutation(halves)
    scores = np.empty(len(y))
    for half in (0, 1):
        other = Calibration(fit_temperature(z[halves != half], y[halves != half]))
        mine = np.flatnonzero(halves == half)
        scores[mine] = 1 - other.probabilities(z[mine])[np.arange(len(mine)), y[mine]]
    return Calibration(fit_temperature(z, y), tuple(np.sort(scores).tolist()), f"{len(y)} {what}")


def conformal_quantile(scores: Sequence[float], coverage: float) -> float | None:
    """The ceil((n + 1) coverage)-th smallest of n scores: of a new image that is exchangeable with these the score is
    no larger with probability `coverage` or more (Vovk et al. 2005). None if there is no such score."""
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return None if place > len(scores) or not 0 < coverage < 1 else sorted(scores)[max(place, 1) - 1]


def prediction_sets(probabilities: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """bool [n, C]: the classes whose probability is `threshold` or more (Sadinle et al. 2019, arXiv 1609.00451), and
    always the likeliest. With `Calibration.threshold(0.95)`, 95% of the sets hold the true class, on average over
    images like those of the calibration."""
    p = np.asarray(probabilities)
    sets: NDArray[np.bool_] = p >= threshold - 1e-12
    sets[np.arange(len(p)), p.argmax(axis=1)] = True
    return sets
