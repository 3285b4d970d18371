"""Temperatures and prediction sets against slow references and the promises of their papers."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from ssl_lab.calibration import Calibration, calibrate, conformal_quantile, fit_temperature, prediction_sets


def drawn(n: int, classes: int = 4, temperature: float = 1.0, seed: int = 0):
    """Logits, and classes that are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((n, classes))
    p = softmax(logits / temperature, axis=1)
    return logits, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_the_classes_is_found(temperature):
    assert fit_temperature(*drawn(20_000, temperature=temperature)) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("n", [20, 200])
def test_it_is_the_minimum_of_the_cross_entropy_and_its_prior(n):
    logits, truth = drawn(n, temperature=2.0)

    def loss(t: float) -> float:
        return math.log(t) ** 2 / 2 / 0.5**2 - sum(math.log(softmax(z / t)[y])
                                                   for z, y in zip(logits, truth, strict=True))

    found = fit_temperature(logits, truth)
    assert all(loss(found) <= loss(found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_few_images_change_little():
    logits, truth = drawn(20_000, temperature=1.0)
    of_twenty = [fit_temperature(logits[k:k + 20], truth[k:k + 20]) for k in range(0, 2000, 20)]
    assert 0.45 < min(of_twenty) < max(of_twenty) < 2.2
    right = logits.argmax(axis=1) == truth
    assert fit_temperature(logits[right][:20], truth[right][:20]) > 0.5  # without an error: not certain of all


def test_probabilities_are_the_softmax_at_the_temperature():
    logits = drawn(7)[0].astype(np.float32)
    np.testing.assert_allclose(Calibration(1.7).probabilities(logits), softmax(logits.astype(float) / 1.7, axis=1))


@pytest.mark.parametrize(("n", "coverage", "expected"), [(19, 0.95, 19), (18, 0.95, None), (99, 0.9, 90), (9, 0.5, 5)])
def test_the_quantile_counts_the_new_image(n, coverage, expected):
    assert conformal_quantile(list(range(1, n + 1)), coverage) == expected


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_cover_what_is_promised(coverage):
    covered = []
    for seed in range(100):
        logits, truth = drawn(400, temperature=2.0, seed=seed)
        fitted = calibrate(logits[:200], truth[:200], "images", seed)
        sets = prediction_sets(fitted.probabilities(logits[200:]), fitted.threshold(coverage))
        covered.append(sets[np.arange(200), truth[200:]].mean())
    assert coverage - 0.01 < np.mean(covered) < coverage + 0.02


def test_a_set_holds_the_likeliest_class():
    assert prediction_sets([[0.5, 0.3, 0.2]], 0.9).tolist() == [[True, False, False]]
    assert prediction_sets([[0.5, 0.3, 0.2]], 0.25).tolist() == [[True, True, False]]


def test_too_few_images_calibrate_nothing():
    fitted = calibrate(*drawn(19), "validation images")
    assert (fitted.temperature, fitted.threshold(0.9)) == (1.0, None)
    assert fitted.source == "not calibrated: 19 validation images, and it takes 20"
