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


def test_it_is_the_minimum_of_the_cross_entropy():
    logits, truth = drawn(200, temperature=2.0)

    def loss(t: float) -> float:  # of 200 images, and one more of each of 4 classes
        return -sum((200 * (c == y) + 1) / 204 * math.log(softmax(z / t)[c])
                    for z, y in zip(logits, truth, strict=True) for c in range(4))

    found = fit_temperature(logits, truth)
    assert all(loss(found) <= loss(found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("n", [20, 200])
def test_without_an_error_a_model_is_as_certain_as_so_many_images_allow(n):
    truth = np.arange(n) % 5
    p = Calibration(fit_temperature(10 * np.eye(5)[truth], truth)).probabilities(10 * np.eye(5))
    np.testing.assert_allclose(p.diagonal(), (n + 1) / (n + 5), rtol=1e-4)


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
