"""Pools whose unlabeled images are partly of none of the classes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.images import Concat, Contents, Images
from ssl_lab.data.pool import Pool
from ssl_lab.data.split import shuffled
from ssl_lab.errors import UsageError


def open_set(pool: Pool, other: Pool, share: float, seed: int) -> Pool:
    """A pool that trains on images of `other` in place of `share` of the unlabeled images of `pool`.

    Those of `other` are drawn by the seed from its train images, put behind the pool's in its index space, and have
    truth -1; those that they replace, drawn by the seed too, are in no split any more. Rows that the split labeled,
    valid and test rows stay as they are. pool: split already, and no oracle asked yet. The new pool has its ledger.

    Raises UsageError if share is not in [0, 1], or if there are too few images.
    """
    unlabeled = np.setdiff1d(pool.train, pool.ledger.entries[0].indices)
    if not 0 <= share <= 1:
        raise UsageError(f"share={share}: expected 0 to 1, of the unlabeled images")
    count = round(share * len(unlabeled))
    if count > len(other.train):
        raise UsageError(f"share={share:g} of the unlabeled images of {pool.name} is {count}, but {other.name} has "
                         f"only {len(other.train)} to train on; give a smaller share")
    replaced = shuffled(unlabeled, seed, "open_set", "replaced")[:count]
    for entry in pool.ledger.entries[1:]:
        if np.isin(entry.indices, replaced).any():
            raise UsageError(f"{pool.name} was given labels since its split, of images that would be replaced; "
                             "mix in other images before any label is asked for")
    rows = np.sort(shuffled(other.train, seed, "open_set", "other")[:count])
    added = np.arange(len(pool), len(pool) + count)
    return replace(
        pool,
        name=f"{pool.name}+{other.name}",
        images=Concat([pool.images, Borrowed(other.images, rows, pool.images.shape)]),
        truth=np.concatenate([pool.truth, np.full(count, -1)]),
        train=np.concatenate([np.setdiff1d(pool.train, replaced), added]),
        files=(*pool.files, *(other.files[row] if other.files else "" for row in rows)) if pool.files else (),
        notes=(*pool.notes, f"{count} of the {len(unlabeled)} unlabeled images are of {other.name}, of no class"),
    )


class Borrowed:
    """Rows of another source as images of `shape`: gray or RGB as that has it, and resized to its height and width
    (bicubic, antialiased; what is wider or higher than its proportions is cut off)."""

    def __init__(self, images: Images, rows: IntArray, shape: tuple[int, int, int]) -> None:
        self.images, self.rows, self.shape = images, rows, shape

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: IntArray) -> Tensor:
        channels, height, width = self.shape
        pixels = self.images.take(self.rows[indices])
        if pixels.shape[1] > channels:
            luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            pixels = (pixels * luma).sum(dim=1, keepdim=True).round().to(torch.uint8)
        pixels = pixels.expand(-1, channels, -1, -1)
        high, wide = pixels.shape[2:]
        if high * width > wide * height:
            keep_high, keep_wide = max(1, round(wide * height / width)), wide
        else:
            keep_high, keep_wide = high, max(1, round(high * width / height))
        top, left = (high - keep_high) // 2, (wide - keep_wide) // 2
        pixels = pixels[..., top : top + keep_high, left : left + keep_wide]
        return interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.images.fingerprint()} {self.shape}".encode())
        digest.update(self.rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def contents(self) -> Contents | None:
        found = self.images.contents()
        return None if found is None else found[self.rows]
