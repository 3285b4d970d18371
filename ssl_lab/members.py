"""Who takes part in a pseudo-label ensemble, and of which images they are asked, in the time that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ssl_lab.data import IntArray, Pool
from ssl_lab.data.split import shuffled
from ssl_lab.engine import Runtime
from ssl_lab.features.embed import STEP, seconds_to_embed
from ssl_lab.nets import Net

Learn = Literal["all", "biases", "lora"]
SHARE = 0.5
"""Of the time, until all images have their soft labels; the rest is the one net's."""
MANY = 100
"""Labels of each class from which fine-tuned nets speak without the frozen ones, by their own heads, and the one net
goes on from the first of them: on CIFAR-10 with 25 all know about as much, with 400 the frozen ones 86% and the others
92 (recipes/ensemble.py)."""
FEW = 10
"""Labels for each class, on average, below which no net is fine-tuned on them unless that is asked for: it would lose
to learners on frozen features (62 to 75% on CIFAR-10 with 40, see recipes/finetune.py), and takes a hundred times as
long."""
TUNED: tuple[Learn, ...] = ("all", "biases")
"""What of the first net learns in each fine-tuning, unless that is said."""
LEAST = 5000
"""Images without labels that have soft labels at least, before a member is left out for the sake of more of them."""
MEASURED = 1000
"""Validation images, and test images, by which fine-tunings are measured, and all members where there is no time to
ask them about all."""
FITS = 0.2
"""Of the time in which a net embeds images, for self-training on these features: on CIFAR-10 0.12 to 0.24."""
BATCH = 32
"""Images per step of a fine-tuning."""
STEPS, EPOCHS = 300, 8
"""Of each fine-tuning: so many steps, or epochs of the labels, if these are more. Of CIFAR-10 with 4,000 labels 300
steps teach lite0 90.6%, 1,000 of them 92.2."""


@dataclass(frozen=True)
class Members:
    """frozen: of how many nets the features are asked. tuned: which fine-tunings, of how many steps each. images: of
    how many of the pool's they are asked."""

    frozen: int
    tuned: Mapping[Learn, int]
    images: int


def many_labels(pool: Pool) -> bool:
    """Whether each class has `MANY` labels."""
    return bool(np.bincount(pool.labels[pool.labeled], minlength=pool.classes).min() >= MANY)


def few_labels(pool: Pool) -> bool:
    """Whether there are fewer than `FEW` for each class."""
    return len(pool.labeled) < FEW * pool.classes


def members(nets: Sequence[Net], tuned: Sequence[Learn] | None, steps: int | None, pool: Pool, runtime: Runtime,
            seconds: float | None) -> Members:
    """All of them, of all images, if `SHARE` of the seconds suffices; else those that it does for, in this order: all
    of them of `least` images, and then of as many as there is time for. Says what was decided.

    With many labels no frozen net is asked, if there is time for a fine-tuning. tuned: what learns in each fine-tuning;
    None: `TUNED`, and nothing with few labels. steps: of each; None: `EPOCHS` of the labels, and where time is short
    for that, as many as it suffices for, but `STEPS` at least.
    """
    few = tuned is None and few_labels(pool)
    if tuned is None:
        tuned = () if few else TUNED
    laps = [] if seconds is None else runtime.totals([seconds_to_embed(net, pool, runtime) for net in nets])
    embeds = [lap / runtime.world**2 for lap in laps]  # an image, of the mean rank, and of its part
    who, said = _afforded([net.name for net in nets], tuned, steps, pool, embeds, seconds)
    if few:
        said.append(f"{len(pool.labeled)} labels are fewer than {FEW} for each class, too few to fine-tune a net on: "
                    f"frozen nets alone are asked; --tuned {' '.join(TUNED)} says otherwise")
    if not who.frozen:
        said.append(f"each class has {MANY} labels: fine-tuned nets are asked, no frozen ones, and the one net goes on "
                    "from the first of them, under weak views unless --own or --view say otherwise")
    if steps is None:
        said += [f"fine-tuning {learn} takes {taken} steps, {taken * BATCH / len(pool.labeled):.1f} epochs of the "
                 "labels; --tuning-steps says otherwise" for learn, taken in who.tuned.items()]
    if who.tuned and max(len(pool.valid), len(pool.test)) > MEASURED:
        said.append(f"each fine-tuning is measured by {MEASURED} validation and test images at most, the one net by "
                    "all")
    if runtime.main:
        print(*said, sep="\n", end="\n" if said else "", flush=True)
    return who


def _afforded(nets: Sequence[str], tuned: Sequence[Learn], steps: int | None, pool: Pool, embeds: Sequence[float],
              seconds: float | None) -> tuple[Members, list[str]]:
    """The members, where each of the nets embeds an image in so many seconds; with lines on what there is no time for.
    """
    many, most = many_labels(pool), steps or max(STEPS, EPOCHS * len(pool.labeled) // BATCH)
    if seconds is None:
        return Members(0 if many and tuned else len(nets), dict.fromkeys(tuned, most), len(pool)), []
    left, an_image, fewest, said = SHARE * seconds, 0.0, least(pool), list[str]()
    lap, a_step = (1 if many else 1 + FITS) * embeds[0], STEP * BATCH * embeds[0]
    frozen = [(name, (1 + FITS) * embed) for name, embed in zip(nets, embeds, strict=True)]
    if many and tuned and (steps or STEPS) * a_step + fewest * lap <= left:
        frozen = []

    def takes(name: str, cost: float, lap: float) -> bool:
        """Whether there is time for a member that costs so much of `least` images; the first one is there anyway."""
        nonlocal left, an_image
        if an_image and cost > left:
            said.append(f"{name} is left out: it takes {cost / 60:.0f} of the minutes, and {max(left, 0) / 60:.0f} are "
                        "left for labeling the images; give more --minutes, or a smaller --image-size")
            return False
        left, an_image = left - cost, an_image + lap
        return True

    taken = [takes(name, fewest * lap, lap) for name, lap in frozen]
    learned = dict[Learn, int]()
    for learn in tuned:
        count = steps or min(most, max(STEPS, int((left - fewest * lap) / a_step)))
        if takes(f"fine-tuning {learn}", count * a_step + fewest * lap, lap):
            learned[learn] = count
    images = min(len(pool), fewest + int(max(left, 0.0) / an_image))
    if images < len(pool):
        said.append(f"members are asked of {images} of the {len(pool)} images, at random, and the one net learns from "
                    "those of them that train: there is no time for more; give more --minutes, or a smaller "
                    "--image-size")
    return Members([*taken, False].index(False), learned, images), said


def least(pool: Pool) -> int:
    """Of how many images of the pool members are asked at least, if they take part."""
    return min(len(pool), len(pool.labeled) + LEAST + sum(min(len(part), MEASURED) for part in (pool.valid, pool.test)))


def some_of(pool: Pool, images: int, seed: int) -> IntArray:
    """So many rows of the pool, int64: all with labels, `MEASURED` to validate and to test, the rest without labels."""
    few = measured(pool, seed)
    kept = np.concatenate([few.labeled, few.valid, few.test])
    others = shuffled(np.setdiff1d(pool.unlabeled, few.labeled), seed, "ensemble")
    return np.sort(np.concatenate([kept, others[:max(0, images - len(kept))]]))


def measured(pool: Pool, seed: int) -> Pool:
    """The pool with `MEASURED` of its validation and of its test images, drawn at random."""
    valid, test = (shuffled(part, seed, "measured")[:MEASURED] for part in (pool.valid, pool.test))
    return replace(pool, valid=valid, test=test)
