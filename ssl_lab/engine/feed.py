"""From a step to its batch: indices, bytes, device, views. A pure function of (pool, seed, step, rank).

Where a GPU computes, images are read in threads before they are wanted, and the next step's batch is made in a thread
of its own while this step is started: both are mostly the host's work, which takes longer than the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Rows
from ssl_lab.data import IntArray, PoissonSampler, Pool, Sampler
from ssl_lab.data.ahead import in_order
from ssl_lab.data.images import Images
from ssl_lab.errors import UsageError
from ssl_lab.methods import Views
from ssl_lab.schedule import Scalar
from ssl_lab.views import View, ViewFactory
from ssl_lab.views.base import compiled
from ssl_lab.views.naming import MIRRORED, all_views, built, mirrors, said_of
from ssl_lab.views.send import send

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 3  # batches that are read before they are wanted, where a GPU computes


class Feed:
    """Batches of `labeled` and `unlabeled` images (both over all ranks), under the views that a method asks for.

    A method that declares no views of one kind gets none of its rows.

    >>> pool = sl.load("digits").split(labels=10)
    >>> feed = sl.Feed(pool, sl.FixMatch.views, labeled=4, unlabeled=12, seed=0)
    >>> feed.images_per_step, torch.equal(feed(sl.At(3, 9)).unlabeled["weak"], feed(sl.At(3, 9)).unlabeled["weak"])
    (16, True)
    """

    def __init__(self, pool: Pool, views: Views, labeled: int, unlabeled: int, seed: int,
                 device: torch.device | str = "cpu", world: int = 1, parts: int = 1, share: Scalar = 1.0,
                 compile: bool = False, ahead: bool = True) -> None:
        """
        Args:
            pool: where the images and labels are.
            views: what the method asks for.
            labeled: labeled images of a batch.
            unlabeled: unlabeled images of a batch.
            seed: decides which images come when, and how they are seen.
            device: where the views are computed.
            world: ranks over which each batch is divided.
            parts: micro-batches of a rank's rows.
            share: which share of the batch a step has, rounded to what divides over ranks and parts, at least two
                images to each; those that it leaves out wait for their next epoch.
            compile: whether views are compiled, where they can be; on a CPU they never are.
            ahead: whether the next step's batch is made beside this step where that pays: on a GPU, by views of ours.
        """
        device = torch.device(device)
        self.declared, self.asked = views, pool.reading.flip is not None
        self.streams = {
            kind: Stream(pool, kind, views.by_kind[kind], batch, seed, device, world, parts, share, views.poisson)
            for kind, batch in (("labeled", labeled), ("unlabeled", unlabeled))}
        self.steady = not callable(share) and not views.poisson  # whether all batches are of one size
        ours = all(hasattr(view, "augment") for _, view in all_views(self._views))
        ahead = ahead and device.type == "cuda" and ours and not compile  # others may draw by what threads share
        self.made: Callable[[At], Batch] = Ahead(self._made, 1, device) if ahead else self._made
        if compile and device.type != "cpu":
            for stream in self.streams.values():
                stream.views = {name: compiled(view) for name, view in stream.plain.items()}

    def uncompile(self) -> None:
        """Views are as they were without `compile`."""
        for stream in self.streams.values():
            stream.views = stream.plain

    def __call__(self, at: At) -> Batch:
        return self.made(at)

    def _made(self, at: At) -> Batch:
        return Batch(**{name: stream(at) for name, stream in self.streams.items()})

    @property
    def _views(self) -> dict[str, Mapping[str, View]]:
        return {kind: stream.views for kind, stream in self.streams.items()}

    @property
    def said(self) -> str:
        """A line for a person: which views there are, and whether they mirror images, with what to do about it unless
        somebody said that they may."""
        views = self._views
        mirrored = any(mirrors(view) for _, view in all_views(views))
        return said_of(self.declared.by_kind, views) + (f"; {MIRRORED}" if mirrored and not self.asked else "")

    @property
    def images_per_step(self) -> int:
        """Distinct images that one step reads, over all ranks."""
        return sum(stream.batch for stream in self.streams.values())


class Stream:
    """The rows of one kind, "labeled" or "unlabeled"."""

    def __init__(self, pool: Pool, kind: str, views: Mapping[str, ViewFactory], batch: int, seed: int,
                 device: torch.device, world: int, parts: int, share: Scalar,
                 poisson: bool = False) -> None:
        self.pool, self.kind, self.device = pool, kind, device
        self.parts, self.share = parts, share
        self.batch = batch if views else 0
        labeled = pool.labeled if pool.drawn is None else pool.drawn
        indices = labeled if kind == "labeled" else pool.unlabeled
        if views and batch < 1:
            raise UsageError(f"a batch of {batch} {kind} images was asked for; this method needs 1 or more")
        if views and len(indices) == 0:
            raise UsageError(f"the pool {pool.name!r} has no {kind} training images; label some, "
                             "or split it with labels of those that are known (--labels N; labels=N)")
        if parts < 1 or self.batch % (world * parts):
            raise UsageError(f"the batch of {batch} {kind} images does not divide into {parts} micro-batches "
                             f"on each of {world} ranks")
        self.rows = self.batch // world
        self.views = self.plain = {name: built(name, factory, pool.style) for name, factory in views.items()}
        self.poisson = poisson and bool(views)
        if self.poisson and (world > 1 or parts > 1 or share != 1):
            raise UsageError("batches by Poisson sampling, as privacy asks for, are of one process, in one piece and "
                             "of one size on average; leave out torchrun, --micro-batches and --batch")
        sampler = PoissonSampler if poisson else Sampler
        self.sampler = sampler(indices, batch, seed, kind) if views else None
        self.read = self._bytes if device.type == "cpu" else Ahead(self._bytes, AHEAD, device)

    def __call__(self, at: At) -> Rows:
        if self.sampler is None:
            nothing = torch.empty(0, dtype=torch.int64, device=self.device)
            return Rows({}, nothing, nothing, nothing)
        rows = self._rows(at.value(self.share))
        read = self.read(at) if rows == self.rows else self._bytes(at, rows)
        images = read.to(self.device, non_blocking=True)
        indices = self._indices(at.step, at.rank, rows)
        rows = len(indices)
        views = {name: laid_out(view(images, at.draw(f"{self.kind}/{name}", rows, self.device)))
                 for name, view in self.views.items()}
        given = self.pool.labels[indices]
        known = self.pool.truth[indices]
        if self.kind == "unlabeled":  # what training was told says nothing about what it found out
            known = np.where(given >= 0, -1, known)
        ids, targets, truth = send([torch.from_numpy(values) for values in (indices, given, known)], self.device)
        return Rows(views, targets, truth, ids, float(self.batch) if self.poisson else 0.0)

    def _rows(self, share: float) -> int:
        """How many images a rank has at this share of the batch."""
        whole = self.rows // self.parts
        return self.parts * max(min(2, whole), min(whole, round(share * whole)))

    def _indices(self, step: int, rank: int, rows: int) -> IntArray:
        assert self.sampler is not None
        if self.poisson:
            return self.sampler.at(step)
        return self.sampler.at(step)[rank * rows : (rank + 1) * rows]

    def _bytes(self, at: At, rows: int | None = None) -> Tensor:
        """uint8 [rows, C, H, W], on the host; rows: by default all that a rank can have."""
        return pinned(self.pool.images.take(self._indices(at.step, at.rank, rows or self.rows)), self.device)


class Ahead(Generic[T]):
    """Makes what the next `depth` steps want in threads of its own, while this step is under way."""

    def __init__(self, make: Callable[[At], T], depth: int, device: torch.device) -> None:
        ours = partial(torch.cuda.set_device, device) if device.type == "cuda" else None  # else they start on GPU 0
        self._make, self._depth, self._threads = make, depth, ThreadPoolExecutor(depth, initializer=ours)
        self._begun: dict[At, Future[T]] = {}

    def __call__(self, at: At) -> T:
        """make(at); what it raised, if it did so ahead, is raised by the step it was made for."""
        wanted = [replace(at, step=at.step + i) for i in range(1 + self._depth)]
        for key in self._begun.keys() - set(wanted):  # a run that jumped
            self._begun.pop(key).cancel()
        begun = self._begun.pop(at, None)
        for key in wanted[1:]:
            if key not in self._begun:
                self._begun[key] = self._threads.submit(self._make, key)
        return self._make(at) if begun is None else begun.result()


def in_batches(images: Images, indices: IntArray, size: int, device: torch.device) -> Iterator[Tensor]:
    """The images of `indices`, uint8 [n, C, H, W] on the device, at most `size` at a time, in order.

    For a GPU the next ones are read meanwhile, into pinned memory, from which copies wait for nothing.
    """
    parts = [indices[start : start + size] for start in range(0, len(indices), size)]
    for read in read_ahead(lambda part: pinned(images.take(part), device), parts, device):
        yield read.to(device, non_blocking=True)


def read_ahead(read: Callable[[T], R], items: Sequence[T], device: torch.device) -> Iterator[R]:
    """What `read` gives for each item, in their order; for a GPU in threads, before it is wanted."""
    if device.type == "cpu":
        yield from map(read, items)
        return
    with ThreadPoolExecutor(AHEAD) as threads:
        yield from in_order(threads, read, items, AHEAD)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory from which copies to a GPU wait for nothing."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def laid_out(pixels: Tensor) -> Tensor:
    """As nets read them: on a GPU a pixel's channels beside each other, as the weights lie. On a CPU nets do that."""
    return pixels if pixels.device.type == "cpu" else pixels.contiguous(memory_format=torch.channels_last)
