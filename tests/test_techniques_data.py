"""Which rows are drawn: slow references, and the identities of the papers."""

import numpy as np
import pytest
import torch

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.engine import Feed
from ssl_lab.methods import FixMatch
from ssl_lab.techniques.data.oversample import balanced
from ssl_lab.techniques.data.undersample import fewest


@pytest.fixture
def uneven():
    """40 labels: 20, 13, 6 and 1 of the four classes; the fifth has none."""
    labels = np.repeat(np.arange(5), 40)
    pool = Pool.from_arrays(np.zeros((200, 8, 8), np.uint8), labels)
    chosen = np.concatenate([np.arange(count) + 40 * c for c, count in enumerate((20, 13, 6, 1))])
    return pool.split(labeled=chosen)


def test_all_classes_are_drawn_equally_often(uneven):
    drawn = sl.Oversample()(uneven, 0).drawn
    assert np.bincount(uneven.labels[drawn], minlength=5).tolist() == [20, 20, 20, 20, 0]
    times = np.bincount(drawn, minlength=200)[uneven.labeled]
    for label, (least, most) in enumerate([(1, 1), (1, 2), (3, 4), (20, 20)]):
        own = times[uneven.labels[uneven.labeled] == label]
        assert (own.min(), own.max()) == (least, most)
    assert np.array_equal(drawn, sl.Oversample()(uneven, 0).drawn)
    assert not np.array_equal(drawn, sl.Oversample()(uneven, 1).drawn)


def test_equal_classes_stay_as_they_are():
    rows, labels = np.array([1, 3, 4, 8]), np.array([9, 0, 9, 1, 0, 9, 9, 9, 1])
    assert np.array_equal(balanced(rows, labels, 0), rows)
    assert len(balanced(rows[:0], labels, 0)) == 0


def test_batches_have_them_and_the_split_stays(uneven):
    pool = sl.Oversample()(uneven, 0)
    assert pool.manifest() == uneven.manifest()
    feed = Feed(pool, FixMatch.views, 8, 8, 0, torch.device("cpu"))
    plain = Feed(uneven, FixMatch.views, 8, 8, 0, torch.device("cpu"))
    seen = np.concatenate([feed(At(step, 10)).labeled.targets.numpy() for step in range(10)])  # an epoch of 80
    assert np.bincount(seen).tolist() == [20, 20, 20, 20]
    assert torch.equal(feed(At(3, 10)).unlabeled.indices, plain(At(3, 10)).unlabeled.indices)


def test_as_many_are_drawn_of_each_class_as_the_rarest_has(uneven):
    drawn = sl.Undersample()(uneven, 0).drawn
    assert np.bincount(uneven.labels[drawn], minlength=5).tolist() == [1, 1, 1, 1, 0]
    assert len(np.unique(drawn)) == 4
    chosen = {tuple(sl.Undersample()(uneven, seed).drawn) for seed in range(8)}
    assert len(chosen) > 4
    assert chosen <= {(a, b, c, 120) for a in range(20) for b in range(40, 53) for c in range(80, 86)}
    rows, labels = np.array([1, 3, 4, 8]), np.array([9, 0, 9, 1, 0, 9, 9, 9, 1])
    assert np.array_equal(fewest(rows, labels, 0), rows)
    assert len(fewest(rows[:0], labels, 0)) == 0
