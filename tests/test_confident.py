"""Confident learning against loops and cleanlab; distances of off-topic images against loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_lab.errors import UsageError
from ssl_lab.features import topic
from ssl_lab.features.confident import confident_joint, doubt, thresholds
from ssl_lab.features.topic import off_topic


def drawn(seed, n=80, classes=4, noise=0.2):
    """Labels, some of them wrong, and probabilities that know the truth as well as a learner might."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    truth[:classes] = range(classes)
    logits = rng.normal(size=(n, classes)) + 2.5 * np.eye(classes)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = rng.random(n) < noise
    wrong[:classes] = False
    return np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth), probs, truth


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
def test_the_confident_joint_is_the_papers(seed, classes):
    labels, probs, _ = drawn(seed, 40, classes)
    limits = [np.mean([p[j] for y, p in zip(labels, probs, strict=True) if y == j]) for j in range(classes)]
    np.testing.assert_allclose(thresholds(labels, probs), limits)
    expected = np.zeros((classes, classes), dtype=int)
    for y, p in zip(labels, probs, strict=True):
        sure = [j for j in range(classes) if p[j] >= limits[j] - 1e-6]
        if sure:
            expected[y, max(sure, key=lambda j: p[j])] += 1
    np.testing.assert_array_equal(confident_joint(labels, probs), expected)


@given(seed=st.integers(0, 1000))
def test_as_many_labels_are_wrong_as_the_joint_has_off_its_diagonal_the_most_improbable(seed):
    labels, probs, _ = drawn(seed)
    found, joint = doubt(labels, probs), confident_joint(labels, probs)
    np.testing.assert_allclose(found.score, 1 - probs[range(80), labels])
    doubtful = probs.argmax(axis=1) != labels
    count = min(doubtful.sum(), joint.sum() - np.trace(joint))
    assert found.wrong.sum() == count
    assert doubtful[found.wrong].all()
    np.testing.assert_array_equal(found.likelier[doubtful], probs.argmax(axis=1)[doubtful])
    assert (found.likelier != labels).all()
    rest = doubtful & ~found.wrong
    assert not rest.any() or not found.wrong.any() or found.score[found.wrong].min() >= found.score[rest].max()


def test_planted_errors_are_found():
    labels, probs, truth = drawn(0, 2000, noise=0.1)
    found = doubt(labels, probs)
    wrong = labels != truth
    assert wrong[found.wrong].mean() > 0.7
    assert found.wrong[wrong].mean() > 0.5


def test_classes_without_labels_count_for_nothing():
    labels, probs, _ = drawn(1)
    wider = np.concatenate([probs * 0.99, np.full((80, 1), 0.01)], axis=1)
    assert thresholds(labels, wider)[-1] == np.inf
    np.testing.assert_array_equal(confident_joint(labels, wider)[:4, :4], confident_joint(labels, probs))
    assert not confident_joint(labels, wider)[:, 4].any()


def test_cleanlab_says_the_same():
    count = pytest.importorskip("cleanlab.count", exc_type=ImportError)
    rank = pytest.importorskip("cleanlab.rank", exc_type=ImportError)
    labels, probs, _ = drawn(2, 500)
    theirs = count.compute_confident_joint(labels, probs, calibrate=False)
    limits = thresholds(labels, probs)
    sure = probs >= limits - 1e-6
    apart = (sure.sum(axis=1) > 1) & ~sure[range(500), probs.argmax(axis=1)]  # there it leaves the paper
    assert np.abs(theirs - confident_joint(labels, probs)).sum() <= 2 * apart.sum()
    np.testing.assert_allclose(doubt(labels, probs).score, 1 - rank.get_label_quality_scores(labels, probs), atol=1e-6)


@pytest.mark.parametrize(("labels", "probs"), [
    ([0, 1], np.ones((3, 2)) / 2), ([0, 2], np.ones((2, 2)) / 2), ([0.0, 1.0], np.ones((2, 2)) / 2),
    ([0, -1], np.ones((2, 2)) / 2), ([0, 0], np.ones((2, 1))), ([0, 1], np.full((2, 2), np.nan))])
def test_what_does_not_fit_is_an_error(labels, probs):
    with pytest.raises(UsageError, match="expected class numbers"):
        doubt(np.array(labels), probs)


def slow_distance(features, labels):
    """Loops, for fewer images than are drawn."""
    u = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for i in range(len(u)):
        def to(rows, share, i=i):
            away = sorted(1 - float(u[i] @ u[j]) for j in rows if j != i)
            return away[min(len(away), max(1, math.ceil(share * len(rows)))) - 1]
        mine = [j for j in range(len(u)) if labels[j] == labels[i]]
        every = to(range(len(u)), topic.SHARE)
        found.append(min(every, to(mine, 0.25)) if labels[i] >= 0 and len(mine) > 1 else every)
    return np.array(found)


def test_distances_are_those_of_loops_and_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6)).astype(np.float32)
    features[7] = features[3]  # a twin crowds nobody out
    labels = np.concatenate([np.zeros(40), np.ones(30), [2], np.full(49, -1)]).astype(int)
    found = off_topic(features, labels)
    np.testing.assert_allclose(found, np.maximum(slow_distance(features, labels), 0), atol=1e-5)
    monkeypatch.setattr(topic, "_ROWS", 17)
    np.testing.assert_allclose(off_topic(features, labels), found, atol=1e-6)


def test_a_group_of_foreign_images_is_far_and_a_rare_class_is_not():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 16)) + 1.5
    labels = np.repeat([0, 1, 2], [900, 900, 20])
    features = np.concatenate([centers[labels] + 0.4 * rng.normal(size=(1820, 16)),
                               0.2 * rng.normal(size=(20, 16)) - centers[3]])
    labels = np.concatenate([labels, rng.integers(0, 2, 20)])
    far = np.argsort(-off_topic(features, labels))
    assert set(far[:20].tolist()) == set(range(1820, 1840))
    assert len(set(far[:120].tolist()) & set(range(1800, 1820))) < 10


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_have_a_distance_too(count):
    assert off_topic(np.eye(3)[:count], np.zeros(count, dtype=int)).shape == (count,)
