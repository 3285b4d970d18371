"""What a method sees: `Batch` (rows with named views), `At` (where training is), and what it returns: `Loss`.

Also `Draw`, the only source of randomness: numbers that are a pure function of (seed, purpose, step), drawn
for the *global* batch, of which a rank takes its rows. Nothing depends on history, so a resumed run and a
run on other ranks see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ssl_lab.errors import UsageError
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import Key, generator

T = TypeVar("T")


@dataclass(frozen=True)
class Style:
    """What the images of a data set are like; views and nets are built from it.

    The default is that of CIFAR-sized RGB photographs.

    Attributes:
        channels, height, width: of an image; height and width in pixels.
        mean, std: per channel, of pixels scaled to [0, 1].
        flip: whether a mirrored image keeps its class (not so for digits).
        shift: largest translation of the weak view, in pixels.

    >>> digits = sl.load("digits").style
    >>> digits.channels, digits.height, digits.flip  # a mirrored digit is another one, or none
    (1, 8, False)
    """

    channels: int = 3
    height: int = 32
    width: int = 32
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    flip: bool = True
    shift: int = 4


@dataclass(frozen=True)
class At:
    """Where training is.

    Attributes:
        step: number of the optimizer's step, from 0.
        total: steps of the whole run.
        seed: decides, with the step and a purpose, everything that is drawn.
        rank: which of the processes that train together this is, from 0.
        world: how many processes train together.

    >>> at = sl.At(step=250, total=1000, seed=0)
    >>> at.frac, at.value(sl.schedule.linear(0.0, 1.0)), at.value(0.95)
    (0.25, 0.25, 0.95)
    """

    step: int
    total: int
    seed: int = 0
    rank: int = 0
    world: int = 1

    @property
    def frac(self) -> float:
        """The fraction of training done before this step, in [0, 1)."""
        return self.step / self.total

    def value(self, scalar: Scalar) -> float:
        """The value of a hyper-parameter now: itself, or its schedule at `frac`."""
        return scalar(self.frac) if callable(scalar) else scalar

    def draw(self, purpose: str, rows: int, device: torch.device | str = "cpu") -> Draw:
        """Random numbers for this rank's `rows` rows of a batch of `world * rows`."""
        start = self.rank * rows
        key = (self.seed, purpose, self.step)
        return Draw(key, self.world * rows, slice(start, start + rows), torch.device(device), self.frac)


class Draw:
    """Per-row random numbers for the rows of one batch.

    Each call draws on the CPU for all `total` rows (the same numbers on every rank and every device) and
    returns this rank's rows, on the CPU: what a view decides from them costs no read-back. `to_device` moves
    what the pixels need.

    Args:
        key: what the numbers are a function of, e.g. (seed, purpose, step).
        total: rows of the global batch.
        rows: which of them are this rank's.
        device: of the pixels.
        frac: the fraction of training done, in [0, 1), which scheduled arguments of views go by.

    >>> whole = sl.At(7, 100, seed=0).draw("weak", rows=4).uniform()
    >>> parts = [sl.At(7, 100, seed=0, rank=rank, world=2).draw("weak", rows=2).uniform() for rank in (0, 1)]
    >>> torch.equal(whole, torch.cat(parts))  # two ranks see what one would
    True
    """

    def __init__(self, key: tuple[Key, ...], total: int, rows: slice, device: torch.device, frac: float = 0.0) -> None:
        self.key, self.total, self.rows, self.device, self.frac = key, total, rows, device, frac
        self._generator = generator(*key)

    def __len__(self) -> int:
        return len(range(*self.rows.indices(self.total)))

    def child(self, purpose: str) -> Draw:
        """An independent source for the same rows, e.g. one per view."""
        return Draw((*self.key, purpose), self.total, self.rows, self.device, self.frac)

    def value(self, scalar: Scalar) -> float:
        """The value of a view's argument now, as `At.value` has it."""
        return scalar(self.frac) if callable(scalar) else scalar

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [rows, *shape], uniform in [low, high)."""
        values = torch.rand(self.total, *shape, generator=self._generator)
        return values[self.rows] * (high - low) + low

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 [rows, *shape], uniform in low..high-1."""
        return torch.randint(low, high, (self.total, *shape), generator=self._generator)[self.rows]

    def normal(self, *shape: int) -> Tensor:
        """float32 [rows, *shape], standard normal."""
        return torch.randn(self.total, *shape, generator=self._generator)[self.rows]

    def by_global_generator(self, make: Callable[[], T]) -> T:
        """What `make` returns, with torch's global generator seeded from here meanwhile: for libraries that draw from
        it. They draw for all `total` rows; `rows_of` gives those of this rank."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=self._generator)))
            return make()

    def rows_of(self, values: Tensor) -> Tensor:
        """This rank's rows of values [total, ...]."""
        return values[self.rows]

    def to_device(self, values: Tensor) -> Tensor:
        """`values` on the device of the pixels, without waiting for the copy."""
        return values.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Rows:
    """Some images of a batch under their named views.

    Attributes:
        views: name -> float32 [B, C, H, W] in [0, 1] (nets normalize their own input).
        targets: int64 [B], the labels that the method may use (-1 = unlabeled).
        truth: int64 [B], what is known about them, for diagnostics *only*: -1 where nothing is, and of unlabeled
            rows where the method has the label anyway.
        indices: int64 [B], global indices into the pool.
        expected: the mean of B over steps, where it varies by chance (Poisson sampling), else 0.

    >>> targets, truth = torch.tensor([3, 5, -1, -1]), torch.tensor([3, 5, 1, 1])
    >>> rows = sl.Rows({"weak": torch.zeros(4, 1, 8, 8)}, targets, truth, torch.arange(4))
    >>> len(rows), rows["weak"].shape, rows.part(1, parts=2).indices
    (4, torch.Size([4, 1, 8, 8]), tensor([2, 3]))
    """

    views: Mapping[str, Tensor]
    targets: Tensor
    truth: Tensor
    indices: Tensor
    expected: float = 0.0

    def __getitem__(self, view: str) -> Tensor:
        return self.views[view]

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, number: int, parts: int) -> Rows:
        """Part 0 <= number < parts of the rows, which divide evenly: what a rank of `parts` ranks has of them."""
        size = len(self) // parts
        cut = slice(number * size, (number + 1) * size)
        return Rows({name: x[cut] for name, x in self.views.items()},
                    self.targets[cut], self.truth[cut], self.indices[cut], self.expected / parts)


@dataclass(frozen=True)
class Batch:
    """One step's images: `labeled` and `unlabeled` rows. A method that declares no views of one gets 0 rows.

    Attributes:
        labeled: rows whose targets are classes.
        unlabeled: rows whose targets are -1.

    >>> pool = sl.load("digits").split(labels=10)
    >>> feed = sl.Feed(pool, sl.FixMatch.views, labeled=4, unlabeled=12, seed=0)
    >>> batch = feed(sl.At(0, 100))
    >>> list(batch.unlabeled.views), batch.unlabeled["strong"].shape, batch.unlabeled.targets.unique()
    (['weak', 'strong'], torch.Size([12, 1, 8, 8]), tensor([-1]))
    >>> [len(part.unlabeled) for part in batch.chunk(2)]
    [6, 6]
    """

    labeled: Rows
    unlabeled: Rows

    def chunk(self, parts: int) -> list[Batch]:
        """`parts` micro-batches, each with an equal share of the labeled and of the unlabeled rows."""
        return [Batch(self.labeled.part(i, parts), self.unlabeled.part(i, parts)) for i in range(parts)]


class Share(NamedTuple):
    """How many rows are right, of those that count: kept apart, so that parts of a batch add up to the share of all."""

    right: Tensor
    rows: Tensor

    @property
    def value(self) -> Tensor:
        """Float scalar; NaN where no row counts."""
        return self.right / self.rows

    def detach(self) -> Tensor:
        return self.value.detach()

    def item(self) -> float:
        return float(self.value)


@dataclass
class Loss:
    """What a method returns. `total`, the sum of the named terms, is differentiated.

    Attributes:
        terms: name -> scalar tensor with gradient.
        logs: name -> scalar tensor, or a share of rows, for the metrics, no gradient; NaN means "nothing to report
            in this step" and is left out of averages.

    Raises:
        UsageError: for a term that is no scalar tensor.

    >>> loss = sl.Loss({"labeled": torch.tensor(2.0), "unlabeled": torch.tensor(0.5)})
    >>> loss.total, list(loss.detached())
    (tensor(2.5000), ['loss', 'loss/labeled', 'loss/unlabeled'])
    """

    terms: dict[str, Tensor]
    logs: dict[str, Tensor | Share] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """Scalar: the sum of the terms."""
        for name, term in self.terms.items():
            if not isinstance(term, Tensor) or term.ndim:
                given = f"is {list(term.shape)}" if isinstance(term, Tensor) else f"is a {type(term).__name__}"
                raise UsageError(f"the term {name!r} of the loss {given}; expected a scalar, as the mean over rows")
        return torch.stack([term.float() for term in self.terms.values()]).sum()

    def detached(self) -> dict[str, Tensor]:
        """All numbers of this step, by name: `loss`, each `loss/<term>`, and the logs."""
        numbers = {"loss": self.total.detach()}
        numbers |= {f"loss/{name}": term.detach() for name, term in self.terms.items()}
        return numbers | {name: value.detach() for name, value in self.logs.items()}


def mean_loss(losses: Sequence[Loss]) -> Loss:
    """What a step of these parts, of equal size, reports; itself if it is one."""
    if len(losses) == 1:
        return losses[0]
    terms = {name: torch.stack([loss.terms[name].detach() for loss in losses]).mean() for name in losses[0].terms}
    return Loss(terms, {name: _together([loss.logs[name] for loss in losses]) for name in losses[0].logs})


def _together(parts: Sequence[Tensor | Share]) -> Tensor | Share:
    """One log of all parts."""
    shares = [part for part in parts if isinstance(part, Share)]
    if len(shares) == len(parts):
        return Share(*(torch.stack(each).sum() for each in zip(*shares, strict=True)))
    return torch.stack([part.detach() for part in parts]).nanmean()
