"""Anchored transduction: its steps in float64 loops, what it climbs, and classes that are missing among the rows."""

from functools import partial

import numpy as np
import pytest
from test_feature_learners import blobs, few

from ssl_lab.errors import UsageError
from ssl_lab.features import anchored, linear_probe, self_training
from ssl_lab.features.anchored import anchored_weights
from ssl_lab.features.probe import probe_weights
from ssl_lab.features.search import unit


def softmax(row):
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def slow(features, labels, classes, alpha, steps):
    """(u, mu, s, p, m, s_0), row by row, class by class."""
    x = [row / np.linalg.norm(row) for row in np.asarray(features, np.float64)]
    weights = probe_weights(features, labels, classes).astype(np.float64)
    p = [softmax(weights[:, :-1] @ row + weights[:, -1]) for row in x]
    m = [np.mean([row for row, label in zip(x, labels, strict=True) if label == k], axis=0) for k in range(classes)]
    u = [np.eye(classes)[label] if label >= 0 else each for each, label in zip(p, labels, strict=True)]
    start = sum(u[i][k] * (x[i] - m[k]) ** 2 for i in range(len(x)) for k in range(classes)) / len(x)
    for _ in range(steps):
        sizes = [sum(each[k] for each in u) for k in range(classes)]
        mu = [(sum(u[i][k] * x[i] for i in range(len(x))) + alpha * m[k]) / (sizes[k] + alpha) for k in range(classes)]
        s = sum(u[i][k] * (x[i] - mu[k]) ** 2 for i in range(len(x)) for k in range(classes))
        s = (s + alpha * sum(start + (m[k] - mu[k]) ** 2 for k in range(classes))) / (len(x) + alpha * classes)
        u = [np.eye(classes)[labels[i]] if labels[i] >= 0 else
             softmax(np.log(p[i]) - [0.5 * ((x[i] - mu[k]) ** 2 / s).sum() for k in range(classes)])
             for i in range(len(x))]
    return np.array(u), np.array(mu), s, np.array(p), np.array(m), start


@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_its_steps_as_written(alpha):
    features, truth = blobs(40, dim=5)
    labels = few(truth, 3)
    u = slow(features, labels, 3, alpha, 4)[0]
    weights = anchored_weights(features, labels, 3, alpha, 4).astype(np.float64)
    rows = unit(features).astype(np.float64)
    found = np.array([softmax(weights[:, :-1] @ row + weights[:, -1]) for row in rows])
    unknown = labels < 0
    np.testing.assert_allclose(found[unknown], u[unknown], atol=2e-3)
    np.testing.assert_allclose(anchored(features, labels, features, 3, alpha, 4), found, atol=1e-5)


def test_each_step_climbs():
    features, truth = blobs(60, dim=5)
    labels, alpha, heights = few(truth, 2), 3.0, []
    x = unit(features).astype(np.float64)
    for steps in (1, 2, 3, 6):
        u, mu, s, p, m, start = slow(features, labels, 3, alpha, steps)
        density = -0.5 * (((x[:, None] - mu) ** 2 / s).sum(axis=2) + np.log(s).sum())
        apart = 0.5 * (np.log(s / start) + start / s + (m - mu) ** 2 / s - 1).sum()
        free = labels < 0
        gained = (u * (np.log(p) + density)).sum() - (u[free] * np.log(u[free])).sum()
        heights.append(gained - (u[~free] * np.log(p)[~free]).sum() - alpha * apart)
    assert heights == sorted(heights)
    assert heights[-1] > heights[0]


def test_classes_that_are_missing_among_the_rows_take_no_others():
    """Balanced pseudo-labels give each class its share, whether it is there or not."""
    features, truth = blobs(900, classes=6, dim=40, spread=1.6)
    labels = few(truth, 1)
    for missing in (True, False):  # four of six classes have nothing but their labels
        there = np.flatnonzero((labels >= 0) | (truth < (2 if missing else 6)))
        rows, known = features[there], labels[there]
        probe, balanced, held, loose = (
            (learner(rows, known, rows, 6).argmax(axis=1) == truth[there]).mean()
            for learner in (linear_probe, self_training, anchored, partial(anchored, alpha=0.0)))
        assert held > 0.95  # 99% and 98%
        assert not missing or max(probe, balanced, loose) < 0.8  # 77, 37 and 54%


def test_settings_that_make_no_sense():
    features, truth = blobs(30)
    for given, said in (({"alpha": -1.0}, "alpha=-1"), ({"steps": 0}, "steps=0")):
        with pytest.raises(UsageError, match=said):
            anchored_weights(features, truth, 3, **given)
