"""Small real things that many tests need."""

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits

import pytest
from hypothesis import settings

from ssl_lab.data import Pool, load

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that ran the tests in the background: the processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # that tests start and interrupt would inherit it

gc.disable()  # what is imported, and what pytest makes of test files, are millions of objects that stay

# A test reads what the system holds, on the disk or not yet, and none cuts the power, so that none waits for the disk,
# which took some 4 ms each time. That files are synced, and when, tests see by the calls; processes that they start
# do wait.
os.fsync = os.fstat

settings.register_profile("busy", deadline=None)  # a test asserts no times: machines have other work
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """From here on garbage is collected, but what is there is no longer looked at."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def few_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes choose among 5 strengths in place of 45, for tests that ask what is done with a probe, not how good it
    is."""
    from ssl_lab.features import probe

    monkeypatch.setattr(probe, "L2_GRID", probe.L2_GRID[::11])


@pytest.fixture(scope="session")
def digits() -> Pool:
    """scikit-learn's digits with one label per class."""
    return load("digits").split(labels=10, seed=0)
