"""What is said of stopping, against references and where the truth is known."""

import numpy as np
import pytest
import scipy.ndimage
from scipy.special import expit, logit

from ssl_lab.active.record import Round
from ssl_lab.active.stopping import OFFSET, Estimate, advise, estimate_accuracy, expected_gain, kappa
from ssl_lab.active.watch import held_out_estimate, stop_advice
from ssl_lab.features import linear_probe


def test_kappa_is_cohens():
    one, other = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 1])
    table = np.zeros((3, 3))
    for a, b in zip(one, other, strict=True):
        table[a, b] += 1 / 6
    chance = float(table.sum(axis=1) @ table.sum(axis=0))
    assert kappa(one, other) == pytest.approx((np.trace(table) - chance) / (1 - chance))
    assert kappa(one, one) == kappa([1, 1], [1, 1]) == 1
    assert kappa([0, 1], [1, 0]) == pytest.approx(-1)


def test_the_chance_of_being_right_is_that_of_a_slow_fit():
    """MAP of Platt's two numbers by a fine grid in float64, and the posterior's mean accuracy within the interval."""
    draw = np.random.default_rng(0)
    sure = draw.uniform(0.2, 0.99, 80)
    right = draw.random(80) < expit(-0.5 + 0.7 * logit(sure))
    rest = draw.uniform(0.2, 0.99, 400)
    found = estimate_accuracy(right, sure, rest)
    a, b = np.meshgrid(np.linspace(-4, 4, 161), np.linspace(-2, 4, 161), indexing="ij")
    z = a[..., None] + b[..., None] * logit(sure)
    chance = np.exp((right * z - np.logaddexp(0, z)).sum(axis=-1) - a**2 / 8 - (b - 1) ** 2 / 2)
    step = a[1, 0] - a[0, 0]
    offsets = np.arange(-40, 41) * step
    blurred = scipy.ndimage.convolve1d(chance, np.exp(-((offsets / OFFSET) ** 2) / 2), axis=0, mode="constant")
    best = np.unravel_index(chance.argmax(), chance.shape)
    value = expit(a[best] + b[best] * logit(rest)).mean()
    means = expit(a[..., None] + b[..., None] * logit(np.quantile(rest, np.linspace(0.01, 0.99, 50)))).mean(axis=-1)
    order = np.argsort(means.ravel())
    mass = np.cumsum(blurred.ravel()[order]) / blurred.sum()
    low, high = (means.ravel()[order][np.searchsorted(mass, each)] for each in (0.025, 0.975))
    assert found == pytest.approx((value, low, high), abs=0.02)


@pytest.mark.parametrize("which", ["fair", "least sure"])
def test_the_interval_holds_the_accuracy_whichever_rows_were_answered(which):
    """Right with a chance that depends on the confidence: the plain share of right ones misses it by far."""
    held, plain = 0, []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        sure = draw.beta(3, 1.5, 1000)
        right = draw.random(1000) < expit(-0.4 + 0.8 * logit(sure))
        rows = draw.permutation(1000)[:80] if which == "fair" else np.argsort(sure * draw.random(1000))[:80]
        left = np.delete(np.arange(1000), rows)
        found = estimate_accuracy(right[rows], sure[rows], sure[left])
        held += found.low <= right[left].mean() <= found.high
        plain.append(right[rows].mean() - right[left].mean())
    assert held >= 35
    assert which == "fair" or np.mean(plain) < -0.07


def test_nothing_is_said_of_few_answers_or_nothing_left():
    assert estimate_accuracy([True] * 19, [0.9] * 19, [0.5]) is None
    assert estimate_accuracy([True] * 30, [0.9] * 30, []) is None
    certain = estimate_accuracy([True] * 30, [1.0] * 30, [1.0, 1.0])
    assert certain.low <= certain.value <= certain.high <= 1


def test_the_gain_is_that_of_the_power_law_where_the_curve_is_known():
    labels = np.array([50, 100, 200, 400])
    errors = 0.4 * (labels / 50) ** -0.5
    curve = [Estimate(1 - error, 1 - error - 0.002, 1 - error + 0.002) for error in errors]
    gain = expected_gain(labels, curve, 50)
    true = errors[-1] - 0.4 * (450 / 50) ** -0.5
    assert gain.low <= true <= gain.high
    assert gain.value == pytest.approx(true, abs=0.001)
    loose = expected_gain(labels, [Estimate(each.value, each.value - 0.1, each.value + 0.1) for each in curve], 50)
    assert loose.high - loose.low > 3 * (gain.high - gain.low)
    assert expected_gain(labels[:2], curve[:2]) is None


def test_a_flat_curve_stops_and_a_steep_one_goes_on():
    flat = [Estimate(0.97, 0.965, 0.975)] * 5
    steep = [Estimate(value, value - 0.02, value + 0.02) for value in (0.5, 0.65, 0.75)]
    assert advise([100, 150, 200, 250, 300], flat).stop
    told = advise([50, 100, 150], steep)
    assert not told.stop
    assert "go on." in told.lines[1]
    assert told.lines[0].startswith("Accuracy on the unlabeled images: about 75.0% (73.0% to 77.0%)")
    assert advise([50, 100, 150], steep, [0.99, 0.995, 0.992]).stop
    assert not advise([50, 100, 150], steep, [0.99, 0.995]).stop
    unknown = advise([10], [None])
    assert (unknown.accuracy, unknown.gain, unknown.stop) == (None, None, False)
    assert "cannot be told yet" in unknown.lines[1]


def test_a_loops_rounds_give_the_estimate_by_answers_that_came_after_predictions():
    draw = np.random.default_rng(0)
    labels = np.full(500, -1)
    labels[:120] = draw.integers(4, size=120)
    records = []
    for number in range(5):
        ids = tuple(range(30 * number, 30 * number + 30)) if number < 4 else ()
        said = tuple(int(labels[i]) if draw.random() < 0.8 else (int(labels[i]) + 1) % 4 for i in ids)
        records.append(Round(number, 10 + 30 * number, None, None, ids=ids, predicted=said or None,
                             confidence=(0.8,) * len(ids) or None, watch="a" if number else "b",
                             watched=(0, 1, 2, 3) * 5, sureness=(0.8,) * 20))
    advice = stop_advice(records, labels)
    right = [labels[i] == said for record in records
             for i, said in zip(record.ids, record.predicted or (), strict=True)]
    assert advice.accuracy.value == pytest.approx(np.mean(right[-100:]), abs=0.03)
    assert advice.gain is not None
    assert advice.stable == 1
    labels[:120] = -1  # nobody has answered
    assert stop_advice(records, labels).accuracy is None


def test_folds_give_the_estimate_of_frozen_features():
    draw = np.random.default_rng(0)
    kind = draw.integers(3, size=600)
    x = (draw.normal(size=(600, 5)) + 1.2 * np.eye(5)[kind]).astype(np.float32)
    labels = np.where(np.arange(600) < 90, kind, -1)
    found = held_out_estimate(x, labels, 3)
    true = (linear_probe(x, labels, x[90:], 3).argmax(axis=1) == kind[90:]).mean()
    assert found.low - 0.02 <= true <= found.high + 0.02
    assert held_out_estimate(x, np.where(labels == 0, 0, -1), 3) is None
