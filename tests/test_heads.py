"""What learners leave behind answers as they did; out-of-fold predictions never see their own label."""

import numpy as np
import pytest

from ssl_lab.errors import UsageError
from ssl_lab.features import LEARNERS
from ssl_lab.features.crossfit import cross_fitted
from ssl_lab.features.heads import fitted


@pytest.fixture(scope="module")
def blobs():
    """Features [120, 30], labels of which 24 are known, 40 queries; 3 of 4 classes occur."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.standard_normal((3, 30))
    truth = np.arange(160) % 3
    points = (centers[truth] + rng.standard_normal((160, 30))).astype(np.float32)
    return points[:120], np.where(np.arange(120) < 24, truth[:120], -1), points[120:]


@pytest.mark.parametrize("known", [24, 120])
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_head_answers_as_its_learner(blobs, learner, known):
    features, labels, queries = blobs
    labels = np.where(np.arange(120) < known, np.arange(120) % 3, -1)
    found = fitted(learner, features, labels, 4)(queries)
    np.testing.assert_allclose(found, LEARNERS[learner](features, labels, queries, 4), atol=2e-5)


def test_an_unknown_learner_is_named():
    with pytest.raises(UsageError, match="unknown learner 'prob'"):
        fitted("prob", np.ones((2, 2)), [0, 1], 2)


def test_out_of_fold_predictions_are_those_of_a_fit_without_the_row():
    seen = []

    def learner(features, labels, queries, classes):
        seen.append((labels.copy(), queries[:, 0].astype(int)))
        return np.full((len(queries), classes), 1 / classes, dtype=np.float32)

    labels = np.array([0, 1, -1, 0, 1, 0, 1, 0, 1, 0, 1, 2])  # the only row of class 2 is never held out
    found = cross_fitted(np.arange(12.0)[:, None] + 1, labels, 3, learner)
    assert found.rows.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert found.probs.shape == (10, 3)
    asked = np.concatenate([queries - 1 for _, queries in seen])
    assert sorted(asked) == found.rows.tolist()
    for fold, queries in seen:
        assert (fold[queries - 1] == -1).all()
        kept = np.setdiff1d(np.arange(12), queries - 1)
        assert np.array_equal(fold[kept], labels[kept])
        assert {0, 1, 2} <= set(fold)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0], [0, -1, -1]])
def test_with_too_few_labels_nothing_is_held_out(labels):
    assert len(cross_fitted(np.eye(3), labels, 3).rows) == 0


def test_out_of_fold_accuracy_is_about_that_of_queries(blobs):
    features, labels, _ = blobs
    found = cross_fitted(features, labels, 3)
    assert (found.probs.argmax(axis=1) == labels[found.rows]).mean() > 0.9
