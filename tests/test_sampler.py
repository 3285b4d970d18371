"""The sampler: every epoch sees each image once, and a batch depends on its step alone."""

from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_lab.data import Sampler
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator


def endless(indices, seed, purpose):
    """The slow reference: one image after another."""
    for epoch in count():
        for place in torch.randperm(len(indices), generator=generator(seed, purpose, epoch)).tolist():
            yield indices[place]


@settings(max_examples=50)
@given(indices=st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True), batch=st.integers(1, 30),
       seed=st.integers(0, 5), steps=st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_batches_are_cuts_of_shuffled_epochs_in_any_order_of_calls(indices, batch, seed, steps):
    sampler = Sampler(indices, batch, seed, "unlabeled")
    stream = list(islice(endless(indices, seed, "unlabeled"), 10 * batch))
    for step in steps:
        rows = sampler.at(step)
        assert rows.dtype == np.int64
        assert rows.tolist() == stream[step * batch:(step + 1) * batch]


def test_every_epoch_visits_each_image_once():
    indices = np.arange(100, 137)
    stream = np.concatenate([Sampler(indices, 5, 0, "labeled").at(step) for step in range(37 * 3 // 5 + 1)])
    for epoch in range(3):
        assert sorted(stream[epoch * 37:(epoch + 1) * 37]) == indices.tolist()


def test_seed_and_purpose_change_the_order():
    orders = {tuple(Sampler(range(50), 50, seed, purpose).at(0))
              for seed in (0, 1) for purpose in ("labeled", "unlabeled")}
    assert len(orders) == 4


@pytest.mark.parametrize(("indices", "batch"), [([], 4), ([1, 2], 0)])
def test_nothing_to_draw_is_an_error(indices, batch):
    with pytest.raises(UsageError, match="cannot draw labeled batches"):
        Sampler(indices, batch, 0, "labeled")
