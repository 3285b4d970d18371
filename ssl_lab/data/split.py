"""Choosing rows: which images are labeled, which validate, which are held out. Pure functions of a seed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ssl_lab.data.arrays import IntArray
from ssl_lab.errors import UsageError, unknown
from ssl_lab.seeds import Key, generator

Balance = Literal["class", "natural", "covered"]


def shuffled(rows: IntArray, *key: Key) -> IntArray:
    """`rows` in an order that is a pure function of the key."""
    mixed: IntArray = rows[torch.randperm(len(rows), generator=generator(*key)).numpy()]
    return mixed


def draw_labeled(rows: IntArray, truth: IntArray, amount: float, class_names: Sequence[str], seed: int,
                 balance: str, long_tailed: bool = False, left_out: IntArray | None = None) -> IntArray:
    """A fraction (0 < amount < 1) or a count of `rows`, sorted. With the same seed, a smaller draw is part of a larger
    one, and what is left out only lets others move up.

    truth: int64 [N], the labels of all images; all `rows` have one. balance "class": count/C of each class,
    where the remainder falls on classes chosen by the seed, or, if `long_tailed`, each class by its share of
    `rows` and at least one. "natural": at random, classes as they come. "covered": the same, but first one of each
    class that has any. left_out: rows that are not to be drawn, if any. UsageError if there are too few images, or too
    few labels for the classes.
    """
    if balance not in get_args(Balance):
        raise unknown("balance", balance, get_args(Balance))
    left_out = rows[:0] if left_out is None else left_out
    free = np.setdiff1d(rows, left_out)
    count = _count(amount, len(free), "labels")
    if not len(free):
        raise UsageError(f"labels={amount:g}: no train image has a known label, so none can be drawn. Label some "
                         "(`ssl-lab label` shows them on a page), or learn features without (a method of pretraining)")
    if not 1 <= count <= len(free):
        raise UsageError(f"labels={amount:g}: expected 1 to {len(free)}, the train images whose label is known "
                         "and that do not validate, or a fraction of them between 0 and 1")

    def in_order(members: IntArray, *key: Key) -> IntArray:
        order = shuffled(members, seed, "labeled", *key)
        return order[~np.isin(order, left_out)]

    classes = len(class_names)
    if balance != "class":
        order = in_order(rows)
        firsts = np.sort(np.unique(truth[order], return_index=True)[1])  # of each class
        if balance == "covered":
            if count < len(firsts):
                raise UsageError(f"labels={count} is fewer than the {len(firsts)} classes with images. Give "
                                 f"{len(firsts)} or more, or --balance natural (balance='natural'), which may "
                                 "leave classes out.")
            order = np.append(order[firsts], np.delete(order, firsts))
        return np.sort(order[:count])
    if count < classes:
        raise UsageError(f"labels={count} is fewer than the {classes} classes. Give {classes} or more, or "
                         "--balance natural (balance='natural'), which may leave classes out.")
    order = shuffled(np.arange(classes), seed, "remainder")
    if long_tailed:
        quotas = shares(np.bincount(truth[free], minlength=classes), count, order)
    else:
        quotas = count // classes + np.isin(np.arange(classes), order[:count % classes])
    chosen = []
    for label, quota in enumerate(quotas.tolist()):
        members = in_order(rows[truth[rows] == label], label)
        if quota and not len(members):
            raise UsageError(f"labels={count} needs {quota} images of class {class_names[label]!r}, which has no train "
                             "image whose label is known. Label some, take the class out of valid and test, or give "
                             "balance='covered'.")
        if len(members) < quota:
            raise UsageError(f"labels={count} needs {quota} images of class {class_names[label]!r}, which "
                             f"has only {len(members)}. Give fewer labels, or --balance natural "
                             "(balance='natural').")
        chosen.append(members[:quota])
    return np.sort(np.concatenate(chosen))


def _count(amount: float, total: int, what: str) -> int:
    """How many of `total` a fraction (0 < amount < 1, at least one) or a count is; 0 for what is neither.

    UsageError for a float of 1: as a fraction it would be all, as a count one image.
    """
    if isinstance(amount, float) and amount == 1:
        raise UsageError(f"{what}=1.0 may mean one image or all of them: give a whole number of 2 or more, or a "
                         "fraction below 1")
    if 0 < amount < 1:
        return max(1, round(amount * total))
    return int(amount) if amount % 1 == 0 else 0


def shares(sizes: IntArray, count: int, order: IntArray) -> IntArray:
    """How many of `count` fall to each class: in proportion to its size, at least one. int64 [C].

    By Webster's method, with which a larger count takes nothing from any class (largest remainders would), and
    no class gets more than its size. sizes: int64 [C], all positive, with C <= count <= their sum. order: of
    the classes; among equals the first comes first.
    """
    label = np.repeat(order, sizes[order] - 1)
    nth = np.concatenate([np.arange(1, size) for size in sizes[order]])
    first = np.argsort(-sizes[label] / (nth + 0.5), kind="stable")[:count - len(sizes)]
    return 1 + np.bincount(label[first], minlength=len(sizes))


def long_tail(rows: IntArray, truth: IntArray, imbalance: float, class_names: Sequence[str], seed: int,
              left_out: IntArray | None = None, kept: IntArray | None = None) -> IntArray:
    """The `rows` that a long tail keeps: n_c = n_0 * imbalance^(-c / (C - 1)) of class c, at least one; sorted.

    n_0, of the first class, is the largest with which no class lacks images. truth: int64 [N], the labels of
    all images; all `rows` have one. left_out: rows that are not to be kept; kept: others that are, first of all; if
    any. UsageError if imbalance is below 1 or a class has no image.
    """
    if not 1 <= imbalance < np.inf:
        raise UsageError(f"imbalance={imbalance:g}: expected 1 or more, how many times the images of the smallest "
                         "class the largest has")
    left_out, kept = (rows[:0] if given is None else given for given in (left_out, kept))
    sizes = np.bincount(truth[np.setdiff1d(rows, left_out)], minlength=len(class_names))
    if not sizes.all():
        raise UsageError(f"imbalance={imbalance:g}: class {class_names[int(sizes.argmin())]!r} has no train image "
                         "whose label is known and that does not validate")
    law = float(imbalance) ** -np.linspace(0, 1, len(sizes))
    counts = np.floor((sizes / law).min(initial=np.inf) * law + 1e-6).astype(np.int64)  # 29.9999999 are 30
    chosen = [kept]
    for label, count in enumerate(counts.tolist()):
        order = shuffled(rows[truth[rows] == label], seed, "imbalance", label)
        first = int((truth[kept] == label).sum())
        chosen.append(order[~np.isin(order, np.append(left_out, kept))][:max(0, max(1, count) - first)])
    return np.sort(np.concatenate(chosen))


def draw_valid(rows: IntArray, truth: IntArray, amount: float, seed: int, labeled: IntArray) -> IntArray:
    """Validation rows: a fraction (0 < amount < 1) or a count of `rows`, none of them of `labeled`; sorted.

    Each class gives by its share of `rows`, and where too few of it are left, the others give more; the last row of a
    class stays. Each has an order of its own, whose first that are not labeled validate: so few of them move when
    others are labeled. UsageError if there are too few.
    """
    if amount == 0:
        return rows[:0]
    count = _count(amount, len(rows), "valid")
    labels, sizes = np.unique(truth[rows], return_counts=True)
    used = np.bincount(np.searchsorted(labels, truth[rows[np.isin(rows, labeled)]]), minlength=len(labels))
    room = sizes - np.maximum(used, 1)
    if not 1 <= count <= room.sum():
        raise UsageError(f"valid={amount:g}: expected a fraction between 0 and 1, or a count of at most {room.sum()}, "
                         f"of the {len(rows)} train images whose label is known: {used.sum()} of them are to be "
                         "labeled, and one of each class has to stay")
    quotas = np.minimum(_largest_remainders(sizes * count / len(rows), count), room)
    while (missing := count - quotas.sum()) > 0:
        open_ = np.flatnonzero(quotas < room)
        more = _largest_remainders(sizes[open_] * missing / sizes[open_].sum(), missing)
        quotas[open_] = np.minimum(quotas[open_] + more, room[open_])
    chosen = [rows[:0]]
    for label, quota in zip(labels.tolist(), quotas.tolist(), strict=True):
        order = shuffled(rows[truth[rows] == label], seed, "valid", label)
        chosen.append(order[~np.isin(order, labeled)][:quota])
    return np.sort(np.concatenate(chosen))


def _largest_remainders(shares: NDArray[np.float64], count: int) -> IntArray:
    """Whole numbers [C] near `shares`, which add up to `count`."""
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[:count - quotas.sum()]] += 1
    return quotas


def stratified(rows: IntArray, truth: IntArray, count: int, *key: Key) -> IntArray:
    """`count` of `rows`, each class in proportion to its size (largest remainders first); sorted."""
    labels, sizes = np.unique(truth[rows], return_counts=True)
    quotas = _largest_remainders(sizes * count / len(rows), count)
    chosen = [shuffled(rows[truth[rows] == label], *key, int(label))[:quota]
              for label, quota in zip(labels, quotas, strict=True)]
    return np.sort(np.concatenate([*chosen, rows[:0]]))


def hold_out(rows: IntArray, truth: IntArray, fraction: float, seed: int) -> IntArray:
    """About `fraction` of each class, at least one of it, but never its only image; sorted."""
    chosen = [rows[:0]]
    for label in np.unique(truth[rows]).tolist():
        members = shuffled(rows[truth[rows] == label], seed, "hold_out", label)
        chosen.append(members[:min(len(members) - 1, max(1, round(fraction * len(members))))])
    return np.sort(np.concatenate(chosen))


def read_rows(given: ArrayLike | str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The content of an index list, as a manifest: `{what: rows}`, or the manifest itself.

    given: indices, or a file of them: .npy, .json (a list, or a manifest that `write_manifest` made), else
    text with one index per line. UsageError if it cannot be read.
    """
    if not isinstance(given, str | os.PathLike):
        return {what: given}
    path = Path(given)
    try:
        if path.suffix == ".npy":
            return {what: np.load(path, allow_pickle=False)}
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else [int(word) for word in text.split()]
    except Exception as error:  # damaged arrays raise nearly anything
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{what}: cannot read row numbers from {path}: {reason}") from error
    if not isinstance(content, dict):
        return {what: content}
    if what not in content:
        raise UsageError(f"{what}: {path} is JSON without a list {what!r}; expected a list of row numbers, "
                         "or a split manifest")
    return content
