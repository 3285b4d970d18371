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
QUICK = 0.5  # of the first net's time for a step, that the small one takes at most to go before it: on a CPU 0.3
FIRST, GROWN, SMALL = range(3)  # nets


@dataclass(frozen=True)
class Round:
    """crop: side of the crops in pixels. share: of the rows of each predicted class that are believed. peak: of the
    learning rates, as a multiple. temperature, ema: of the method. net: which of the nets; one that the round before
    did not have begins anew, with the labels that the other one's features gave. length: of its steps, as a multiple.
    """

    crop: int = 20
    share: float = 0.0
    peak: float = 0.4
    temperature: float = 0.15
    ema: float = 0.995
    net: int = FIRST
    length: float = 1.0


_BEGINNING = (Round(peak=1.0, temperature=0.2, ema=0.99), Round(share=0.5), Round(share=0.6),
              Round(crop=24, share=0.7), Round(crop=24, share=0.8), Round(crop=24, share=0.8))
_ANEW = Round(crop=24, share=0.85, peak=1.0, ema=0.99)
_GROWN = (replace(_ANEW, net=GROWN, length=2), *[Round(crop=24, share=0.9, net=GROWN)] * 6)
LONG = (*_BEGINNING, *_GROWN)
"""Of the first net and then the second, chosen on one split of CIFAR-10 with 250 labels."""
SHORT = (*(replace(each, net=SMALL) for each in _BEGINNING), replace(_ANEW, length=1.2), Round(crop=24, share=0.85),
         *[Round(crop=24, share=0.9)] * 2, *_GROWN)
"""Of a small net and then the same two, from the beginning to where time ends, if it does not suffice for all of LONG;
those of the first net were chosen on another split, and the wider one's were not run after them."""


def cropped(rounds: Sequence[Round], pool: Pool) -> list[Round]:
    """With crops of at most three quarters of the pool's images, but of 8 px at least."""
    side = max(8, 3 * min(pool.style.height, pool.style.width) // 4)
    return [replace(each, crop=min(each.crop, side)) for each in rounds]


class Costs:
    """What rounds cost, in operations, a multiply-add as 2; `new` as in `rounds.Rounds`."""

    def __init__(self, rounds: Sequence[Round], new: Callable[[int], Net], pool: Pool) -> None:
        self.rounds, self.new, self.pool = rounds, new, pool
        self._counted: dict[tuple[int, int | None], int] = {}

    def of(self, numbers: Sequence[int]) -> Costs:
        """Those of some of these rounds, without counting again."""
        some = Costs([self.rounds[each] for each in numbers], self.new, self.pool)
        some._counted = self._counted
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
        """A step of a round: three forwards of each row, as all have a gradient."""
        this = self.rounds[number]
        return FORWARDS * (LABELED + 2 * UNLABELED) * self._flops(this.net, this.crop)

    def tables(self, number: int) -> list[float]:
        """The tables of the rounds after this one, each as a multiple of the last one that was made until then, or of
        one by the first net."""
        made = [each for each in range(1, number + 1) if self.rounds[each].share]
        last = self.image(made[-1] - 1 if made else 0)
        return [(self.image(each - 1) / last + GRAPH) / (1 + GRAPH) for each in range(number + 1, len(self.rounds))
                if self.rounds[each].share]

    def total(self, steps: Sequence[int]) -> int:
        """So many steps of each round, and the tables' features."""
        return sum(count * self.step(number) + (self.embedding(number - 1) if self.rounds[number].share else 0)
                   for number, count in enumerate(steps))

    def table(self, image: float) -> float:
        """Seconds that the first table takes. image: those of an image's way through the first round's net."""
        return (1 + GRAPH) * self._embedded() * image

    def enough(self, seconds: float, least: float, image: float, step: Callable[[int], float]) -> bool:
        """Whether all rounds, with this many steps each, fit into so many seconds. step: number -> seconds of a step of
        that round; asked no more once the time is over."""
        left = seconds - self.table(image) * sum(self.tables(0))
        for number, each in enumerate(self.rounds):
            left -= least * each.length * step(number)
            if left < 0:
                return False
        return True


def in_steps(long: Sequence[Round], pool: Pool, steps: int) -> list[int]:
    """Which of the rounds there are: those of the first net, and of the second, if each has 350 steps and 2 epochs."""
    least = _least(pool) * sum(each.length for each in long)
    return [*range(len(long))] if steps >= least else _of_net(FIRST, long)


def in_seconds(long: Sequence[Round], short: Sequence[Round], new: Callable[[int], Net], pool: Pool, seconds: float,
               image: Callable[[int], float], step: Callable[[int], float]) -> tuple[list[int], float]:
    """Which of the rounds there are, of (*long, *short), and the seconds that the first table is thought to take.

    All of the long ones, if each has 350 steps and 2 epochs. Else, if a step of the small net takes at most half as
    long as one of the first, as many of the short ones as have that, from the beginning. Where not even the small net's
    rounds and one more have it, and otherwise, of this net's or the first one's rounds as many as leave most of the
    time for training.
    image: net -> seconds of an image's way through it. step: number -> seconds of a step of that round.
    """
    rounds, first, small = (*long, *short), _of_net(FIRST, long), _of_net(SMALL, (*long, *short))
    costs = Costs(rounds, new, pool)

    def table(numbers: Sequence[int]) -> float:
        return costs.table(image(rounds[numbers[0]].net))

    def enough(numbers: Sequence[int]) -> bool:
        each = image(rounds[numbers[0]].net)
        return costs.of(numbers).enough(seconds, _least(pool), each, lambda number: step(numbers[number]))

    if enough(everything := [*range(len(long))]):
        return everything, table(everything)
    least = first
    if small and step(small[0]) <= QUICK * step(first[0]):
        least = small
        for end in range(len(rounds), small[-1] + 1, -1):
            if enough(these := [*range(len(long), end)]):
                return these, table(these)
    return [least[place] for place in affordable(len(least), seconds, table(least))], table(least)


def _of_net(net: int, rounds: Sequence[Round]) -> list[int]:
    return [number for number, each in enumerate(rounds) if each.net == net]


def _least(pool: Pool) -> int:
    """Steps of a round, below which another net does not pay."""
    return max(LEAST, EPOCHS * len(pool.unlabeled) // UNLABELED)


def affordable(rounds: int, seconds: float, each: float) -> list[int]:
    """Which of so many rounds a run of these seconds has: the first, and of the others, in equal distances, as many as
    leave 0.7 of the time for training where the labels before every one of them take `each` seconds."""
    others = min(rounds - 1, int(PROPAGATING * seconds / each))
    return [0, *(round(number) for number in np.linspace(1, rounds - 1, others))]
