"""Small real things that many tests need."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits

import pytest

from ssl_lab.data import Pool, load


@pytest.fixture(scope="session")
def digits() -> Pool:
    """scikit-learn's digits with one label per class."""
    return load("digits").split(labels=10, seed=0)
