"""Seeds that are a pure function of (seed, purpose, step), never of history: what everything that is drawn begins with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed that is a pure function of the key, e.g. `seed_of(seed, "unlabeled", step)`.

    >>> from ssl_lab.seeds import seed_of
    >>> seed_of(0, "unlabeled", 7) == seed_of(0, "unlabeled", 7) != seed_of(0, "unlabeled", 8)
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: Key) -> torch.Generator:
    """A CPU generator seeded by `seed_of(*key)`."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: Key) -> Iterator[None]:
    """Within it torch's global generator of the CPU, from which new layers draw their weights, is seeded by
    `seed_of(*key)`; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield
