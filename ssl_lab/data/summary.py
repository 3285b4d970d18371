"""What was loaded and what was passed over, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssl_lab.data.images import HASHED, Contents
from ssl_lab.data.ledger import IGNORED, UNLABELED

if TYPE_CHECKING:
    from ssl_lab.data.pool import Pool

_CHANNELS = {1: "gray", 3: "RGB"}


def summary(pool: Pool) -> str:
    """`photos: 8 classes, 80 labeled, 1,433 unlabeled, 0 valid, 120 test (64 px, RGB); passed over: 60 .heic, 2 links`.

    Labeled and unlabeled are train images, as they are now. What is there only sometimes is said only then: ignored
    images, those that a long tail dropped, files passed over, and images that are there twice where they should not.
    """
    labels = pool.labels[pool.train]
    channels, height, width = pool.images.shape
    counts = [(pool.classes, "class" if pool.classes == 1 else "classes"), (int((labels >= 0).sum()), "labeled"),
              (int((labels == UNLABELED).sum()), "unlabeled"), (len(pool.valid), "valid"), (len(pool.test), "test")]
    rare = [(int((labels == IGNORED).sum()), "ignored"), (len(pool.dropped), "dropped for the long tail")]
    said = ", ".join(f"{count:,} {what}" for count, what in [*counts, *(each for each in rare if each[0])])
    size = f"{width}" if height == width else f"{width}x{height}"
    parts = [f"{pool.name}: {said} ({size} px, {_CHANNELS.get(channels, f'{channels} channels')})"]
    passed = ", ".join(f"{count:,} {what}" for what, count in pool.passed_over.items() if count)
    return "; ".join([*parts, *([f"passed over: {passed}"] if passed else []), *_repeated(pool)])


def _repeated(pool: Pool) -> list[str]:
    """Images, exactly alike, that are in two parts, or in train with two labels."""
    contents = pool.images.contents()
    if contents is None:
        return [f"whether images are there twice was not looked for (over {HASHED >> 20} MiB of pixels)"]
    train = contents[pool.train]
    said = [_are(int(np.isin(contents[rows], train).sum()), what, "also in train")
            for what, rows in (("test", pool.test), ("valid", pool.valid))]
    known = pool.truth[pool.train] >= 0
    return [*filter(None, [*said, _are(_at_odds(train[known], pool.truth[pool.train][known]), "train",
                                       "there again with another label")])]


def _at_odds(contents: Contents, labels: np.ndarray) -> int:
    """How many images have a twin with another label."""
    _, which, counts = np.unique(contents, return_inverse=True, return_counts=True)
    again = np.flatnonzero(counts[which] > 1)
    pairs = np.unique(np.stack([which[again], labels[again]]), axis=1)[0]
    at_odds = np.flatnonzero(np.bincount(pairs, minlength=len(counts)) > 1)
    return int(np.isin(which, at_odds).sum())


def _are(count: int, part: str, what: str) -> str:
    return f"{count:,} {part} image{' is' if count == 1 else 's are'} {what}" if count else ""
