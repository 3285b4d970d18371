"""Data of one's own, named as `package.module:Thing`: a data set or a pool, or a function or class that gives one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from ssl_lab import texts
from ssl_lab.data.images import at_size, style_of
from ssl_lab.data.memory import content_of_datasets
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.reading import Reading
from ssl_lab.data.rows import has_rows, is_dataset, parts_in
from ssl_lab.errors import UsageError


def load_own(text: str, reading: Reading) -> Pool:
    """The pool that such a text gives; it may have arguments, as in my.data:Squares(side=16). Of a pool that somebody
    made, images may be resized and flips settled; the rest was for whoever made it."""
    call = texts.read(text, "data set", "my.data:Squares(side=16)")
    found = texts.given(call, "data set", lambda thing: isinstance(thing, Pool) or _is_one(thing))
    if not isinstance(found, Pool):
        return at_hand(found, reading, call.name.partition(":")[2], f"{text} gives", "a pool")
    if reading.value_range is not None or any(reading.columns) or reading.class_level != 1:
        raise UsageError(f"{text} gives a pool, whose images are read already: value_range, class_level and names of "
                         "columns come too late for it")
    pool = resized(found, reading, found.reading)
    if len(found.labeled) < np.count_nonzero(found.truth[found.train] >= 0):
        note = f"{text} gives a pool with few labels; it is split anew, out of all labels that it knows (--labels)"
        pool = replace(pool, notes=(*pool.notes, note))
    return pool


def at_hand(given: object, reading: Reading, name: str, who: str, other: str) -> Pool:
    """The pool of a data set that is in a person's hands. who: gives it, as in "load was given". other: what may be in
    place of one.

    UsageError for what is none.
    """
    if isinstance(given, torch.utils.data.DataLoader):
        raise UsageError(f"{who} a DataLoader, which gives batches; give loader.dataset, which has rows")
    if not _is_one(given):
        raise UsageError(f"{who} a {type(given).__name__}, expected {other} or a data set (an object with a length "
                         "and rows by number). Of arrays Pool.from_arrays makes a pool, of a list of paths "
                         "Pool.from_files, of a list of pairs Pool.from_dataset")
    if reading.split_column is not None or reading.class_level != 1:
        raise UsageError("split_column and class_level are for CSV files and folders, not for a data set; give its "
                         "parts as a dict of train, valid and test")
    columns = reading.path_column, reading.label_column
    reading = replace(reading, path_column=None, label_column=None)
    return pool_of(content_of_datasets(parts_in(given), None, name, reading, columns))


def _is_one(given: object) -> bool:
    return is_dataset(given) or isinstance(given, Mapping) or has_rows(given)


def resized(pool: Pool, reading: Reading, settled: Reading) -> Pool:
    """A pool with its images at the size, and with the flips, that are wanted. settled: how they were read, but for
    these."""
    images, notes = at_size(pool.images, reading)
    style = style_of(images.shape, pool.style.mean, pool.style.std, reading.flips(pool.style.flip))
    return replace(pool, images=images, style=style, notes=(*pool.notes, *notes),
                   reading=replace(settled, image_size=images.shape[1], flip=style.flip))
