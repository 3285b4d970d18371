"""The rounds of `rounds.Rounds`: which there are, what each costs, and how many a time allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssl_lab.data import Pool
from ssl_lab.nets import Net, describe

LABELED, UNLABELED = 64, 256
FORWARDS = 3  # that a row with gradient costs
GRAPH = 0.6  # of the time in which a net embeds all images, for neighbors and propagation: 0.55 of CIFAR-10
PROPAGATING = 0.3  # of the time at most, for labels between rounds
LEAST, EPOCHS = 350, 2  # steps of a round, and of the unlabeled images: below these a second net does not pay
QUICK = 0.5  # of the first net's time for a step, that the small one takes at most to go before it: on CPUs 0.3 to 0.52
FIRST, GROWN, SMALL = range(3)  # nets


@dataclass(frozen=True)
class Round:
    """crop: side of the crops in pixels. share: of the rows of each predicted class that are believed. peak: of the
    learning rates, as a multiple. temperature, ema: of the method. net: which of the nets; one that the round before
    did not have begins anew, with the labels that the other one's features gave. length: of its steps, as a multiple.
    contrast: whether SimCLR has a part in the loss, of two views of each image, or labels have all of it, of one view.
    """

    crop: int = 20
    share: float = 0.0
    peak: float = 0.4
    temperature: float = 0.15
    ema: float = 0.995
    net: int = FIRST
    length: float = 1.0
    contrast: bool = True

    @property
    def unlabeled(self) -> int:
        """Images of a step: with a contrast there are two rows of each, so that all rounds have as many rows."""
        return UNLABELED if self.contrast else 2 * UNLABELED


_BEGINNING = (Round(peak=1.0, temperature=0.2, ema=0.99), Round(share=0.5), Round(share=0.6),
              Round(crop=24, share=0.7), Round(crop=24, share=0.8), Round(crop=24, share=0.8))
_ANEW = Round(crop=24, share=0.85, peak=1.0, ema=0.99, contrast=False)
_MORE = replace(_ANEW, share=0.9, peak=0.4, ema=0.995)
_GROWN = (replace(_ANEW, net=GROWN, length=2), *[replace(_MORE, net=GROWN)] * 6)
PAIR = (*_BEGINNING, *_GROWN)
"""Of the first net and then the grown one, from the beginning to where time ends, but half of the grown one's at least.
Chosen on one split of CIFAR-10 with 250 labels."""
TRIO = (*(replace(each, net=SMALL) for each in _BEGINNING), replace(_ANEW, length=1.2),
        replace(_MORE, share=0.85), *[_MORE] * 2, *_GROWN)
"""Of a small net and then the same two, from the beginning to where time ends. Chosen on another split, up to the grown
net's first round."""


def cropped(rounds: Sequence[Round], pool: Pool) -> list[Round]:
    """With crops of at most three quarters of the pool's images, but of 8 px at least."""
    side = max(8, 3 * min(pool.style.height, pool.style.width) // 4)
    return [replace(each, crop=min(each.crop, side)) for each in rounds]


class Costs:
    """What rounds cost, in operations, a multiply-add as 2; `new` as in `rounds.Rounds`."""

    def __init__(self, rounds: Sequence[Round], new: Callable[[int], Net], pool: Pool) -> None:
        self.rounds, self.new, self.pool, self.numbers = rounds, new, pool, tuple(range(len(rounds)))
        self._counted: dict[tuple[int, int | None], int] = {}

    def of(self, numbers: Sequence[int]) -> Costs:
        """Those of some of these rounds, without counting again."""
        some = Costs([self.rounds[each] for each in numbers], self.new, self.pool)
        some._counted, some.numbers = self._counted, tuple(self.numbers[each] for each in numbers)
        return some

    def _flops(self, net: int, side: int | None = None) -> int:
        """Of an image's way through a net, at the pool's size or at another."""
        style = self.pool.style if side is None else replace(self.pool.style, height=side, width=side)
        if (net, side) not in self._counted:
            self._counted[net, side] = describe(self.new(net), style)[1]
        return self._counted[net, side]

    def image(self, number: int) -> int:
        """An image's way through the net of a round."""
        return self._flops(self.rounds[number].net)

    def images(self, number: int) -> list[float]:
        """An image's way through the nets of this round and later ones, as multiples of that of the round before."""
        return [self.image(each) / self.image(max(0, number - 1)) for each in range(number, len(self.rounds))]

    def embedding(self, number: int) -> int:
        """The features of all training images by the net of a round."""
        return self._embedded() * self.image(number)

    def _embedded(self) -> int:
        """Images that pass a net for a table, mirrored ones too."""
        return (1 + self.pool.style.flip) * len(self.pool.train)

    def step(self, number: int) -> int:
        """A step of a round: three forwards of each row."""
        this = self.rounds[number]
        return FORWARDS * (LABELED + 2 * UNLABELED) * self._flops(this.net, this.crop)

    def tables(self, number: int) -> list[float]:
        """The tables of the rounds after this one, and the one that the head is refitted on, each as a multiple of the
        last one that was made until then, or of one by the first net."""
        made = [each for each in self._tabled if each < number]
        last = self.image(made[-1] if made else 0)
        return [(self.image(each) / last + GRAPH) / (1 + GRAPH) for each in self._tabled if each >= number]

    def total(self, steps: Sequence[int]) -> int:
        """So many steps of each round, and the tables' features."""
        return (sum(count * self.step(number) for number, count in enumerate(steps))
                + sum(self.embedding(number) for number in self._tabled))

    @property
    def _tabled(self) -> list[int]:
        """The rounds whose nets make a table: for the next round, and of the last one for the head, if any does."""
        before = [number - 1 for number, each in enumerate(self.rounds) if each.share]
        return [*before, len(self.rounds) - 1] if before else []

    def table(self, image: float) -> float:
        """Seconds that the first table takes. image: those of an image's way through the first round's net."""
        return (1 + GRAPH) * self._embedded() * image

    def enough(self, seconds: float, table: float, least: float, step: Callable[[int], float], begin: int = 0) -> bool:
        """Whether all rounds from `begin` on, with this many steps each, fit into so many seconds. table: those of the
        last table until then. step: number -> seconds of a step of that round (as numbered before `of`); asked no more
        once the time is over."""
        left = seconds - table * sum(self.tables(begin))
        for number in range(begin, len(self.rounds)):
            left -= least * self.rounds[number].length * step(self.numbers[number])
            if left < 0:
                return False
        return True


def in_steps(pair: Sequence[Round], pool: Pool, steps: int) -> list[int]:
    """Which of the rounds there are: those of the first net, and of the grown, if each has 350 steps and 2 epochs."""
    least = _least(pool) * sum(each.length for each in pair)
    return [*range(len(pair))] if steps >= least else _of_net(FIRST, pair)


def in_seconds(pair: Sequence[Round], trio: Sequence[Round], costs: Costs, seconds: float,
               image: Callable[[int], float], step: Callable[[int], float]) -> tuple[list[int], float]:
    """Which of the rounds there are, of (*pair, *trio), and the seconds that the first table is thought to take.

    If a step of the small net takes at most half as long as one of the first, those of the trio, else those of the
    pair, from the beginning, as long as each has 350 steps and 2 epochs. If the time does not even suffice for one
    round beyond the small net's, or for half of the grown net's, of the small or the first net's rounds as many as
    leave most of it for training.
    costs: of (*pair, *trio). image: net -> seconds of an image's way through it. step: number -> seconds of a step of
    that round.
    """
    small = bool(trio) and step(len(pair)) <= QUICK * step(0)
    *ways, least = _ways(pair, trio, small)
    each = image(costs.rounds[least[0]].net)  # with which all ways begin
    table = costs.table(each)
    found = next((these for these in ways if costs.of(these).enough(seconds, table, _least(costs.pool), step)), None)
    return found or [least[place] for place in affordable(len(least), seconds, table)], table


def in_seconds_left(pair: Sequence[Round], trio: Sequence[Round], chosen: Sequence[int], begin: int, costs: Costs,
                    seconds: float, table: float, step: Callable[[int], float]) -> list[int]:
    """Which rounds there are, of those that `in_seconds` chose or might have, in what is left before round `begin`.

    If it had not chosen all of the small or first net's rounds, those that it chose. costs, step: as of `in_seconds`.
    table: see `Costs.enough`.
    """
    *ways, least = all_ways = _ways(pair, trio, chosen[0] >= len(pair))
    if list(chosen) not in all_ways:
        return list(chosen)
    long = (these for these in ways if len(these) > begin)
    found = next((these for these in long if costs.of(these).enough(
        seconds, table, _least(costs.pool), step, begin)), None)
    return found or (least if len(least) > begin else list(chosen[:begin + 1]))


def _ways(pair: Sequence[Round], trio: Sequence[Round], small: bool) -> list[list[int]]:
    """The rounds that there may be, most of them first: of the trio and one of another net at least, or of the pair and
    half of the grown net's at least; and, last, those of the small or the first net alone."""
    rounds = (*pair, *trio)
    if small:
        begin, whole, least = len(pair), len(rounds), _of_net(SMALL, rounds)
        shortest = least[-1] + 2
    else:
        begin, whole, least = 0, len(pair), _of_net(FIRST, pair)
        shortest = whole - (whole - len(least)) // 2
    return [*([*range(begin, end)] for end in range(whole, shortest - 1, -1)), least]


def _of_net(net: int, rounds: Sequence[Round]) -> list[int]:
    return [number for number, each in enumerate(rounds) if each.net == net]


def _least(pool: Pool) -> int:
    """Steps of a round, below which another net does not pay."""
    return max(LEAST, EPOCHS * len(pool.unlabeled) // UNLABELED)


def affordable(rounds: int, seconds: float, each: float) -> list[int]:
    """Which of so many rounds a run of these seconds has: the first, and of the others, in equal distances, as many as
    leave 0.7 of the time for training where the labels before every one of them, and after the last, take `each`
    seconds."""
    others = max(0, min(rounds - 1, int(PROPAGATING * seconds / each) - 1))
    return [0, *(round(number) for number in np.linspace(1, rounds - 1, others))]
