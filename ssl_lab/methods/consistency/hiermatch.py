"""HierMatch (Garg et al. 2021, arXiv 2111.00164): a semi-supervised method at every level of a hierarchy of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss, Rows, Share
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, RowLosses
from ssl_lab.methods.consistency.mixmatch import MixMatch
from ssl_lab.nets import Net, Output
from ssl_lab.nets.base import linear_head
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import seeded


class HierMatch(Method):
    """L = sum_l L_base(level l) + sum_(l > 0) (1 / n_l) sum_b 1[c_bl known] H(c_bl, p_l(u_b))

    Level 0 has the classes, the levels above it coarser ones. The features are cut into a slice for each level, the
    coarsest first; the head of a level sees its own slice and, without gradient, the finer ones. The base method runs
    at each level with the labels, guesses and sharpening of that level. c_bl is the label at level l of an image
    without a fine one, n_l their number among the unlabeled rows, which for this pass the net again (first view).

    The levels share the passes of the net, and MixMatch mixes the same rows at all of them, as in the paper's code
    where every label is a fine one; where some are coarse, it draws batches for each level, and takes images with a
    label there out of the level's unlabeled ones. The head of level 0 is the net's own, whose other weights are 0 and
    stay so: what is evaluated and exported is an ordinary net.

    Args:
        parents: for each level above the classes, from fine to coarse, the class there of every class: [[0, 0, 1]]
            joins the first two of three.
        base: makes a level's method around its net, e.g. `partial(FixMatch, threshold=0.9)`; its images must not
            depend on its predictions (VAT's do), and it may have no teacher.
        coarse: int64 [images, levels above the classes], the label of each image by global index, -1 where there is
            none.

    >>> pool = sl.load("digits").split(labels=10)
    >>> halves = [[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]]  # one level above the digits: below five or not
    >>> method = sl.HierMatch(sl.net("tiny_4", classes=10, style=pool.style), parents=halves)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['labeled', 'labeled_1', 'unlabeled', 'unlabeled_1']
    """

    name = "hiermatch"
    family = "consistency"
    paper = "HIERMATCH: Leveraging Label Hierarchies for Improving Semi-Supervised Learning"
    arxiv = "2111.00164"
    recipe = "recipes/consistency.py"
    parents: Tensor
    coarse: Tensor | None

    def __init__(self, net: Net, parents: Sequence[Sequence[int]], base: Callable[[Net], Method] = MixMatch,
                 coarse: Tensor | None = None, ema: Scalar = 0.999) -> None:
        table = _checked(parents, net)
        with torch.no_grad():
            net.head.weight[:, : len(table) * (net.features_dim // (len(table) + 1))] = 0
        super().__init__(net, ema)
        if coarse is not None and (coarse.ndim != 2 or coarse.shape[1] != len(table)):
            raise UsageError(f"coarse is {list(coarse.shape)}, expected [images, {len(table)}]: a label of each image "
                             "for each level above the classes")
        self.register_buffer("coarse", coarse, persistent=False)
        unknown = torch.full((len(table), 1), -1)
        self.register_buffer("parents", torch.cat([table, unknown], dim=1), persistent=False)  # [:, -1] is of -1
        self.passes = _Passes(net)
        self.bases = nn.ModuleList()
        for level, classes in enumerate([net.classes, *(table.amax(dim=1) + 1).tolist()]):
            made = base(cast(Net, _Level(self.passes, level, len(table) + 1, classes)))
            made.ema = cast(Any, _NoAverage())  # the whole net has one
            self.bases.append(made)
        self.views = made.views

    def forward(self, batch: Batch, at: At) -> Loss:
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor | Share] = {}
        for level, base in enumerate(cast(Sequence[Method], self.bases)):
            self.passes.rewind()
            loss: Loss = base(Batch(self._rows(batch.labeled, level), self._rows(batch.unlabeled, level)), at)
            if level and self.coarse is not None:
                labels = self.coarse[batch.unlabeled.indices, level - 1]
                loss.terms["coarse"] = _mean_of_known(base.net(next(iter(batch.unlabeled.views.values()))), labels)
            suffix = f"_{level}" if level else ""
            terms |= {name + suffix: term for name, term in loss.terms.items()}
            logs |= {name + suffix: value for name, value in loss.logs.items()}
        self.passes.clear()
        return Loss(terms, logs)

    def _rows(self, rows: Rows, level: int) -> Rows:
        """The rows with the labels that they have at this level."""
        if level == 0:
            return rows
        table = self.parents[level - 1]
        return replace(rows, targets=table[rows.targets], truth=table[rows.truth])

    @contextmanager
    def labeled_by(self, wrap: Callable[[RowLosses], RowLosses]) -> Iterator[None]:
        finest: Method = cast(Any, self.bases[0])  # the classes of other levels are others
        with finest.labeled_by(wrap):
            yield

    def after_step(self, at: At) -> None:
        super().after_step(at)
        for base in cast(Sequence[Method], self.bases):
            base.after_step(at)


class _Passes(nn.Module):
    """The features of the net in the passes of a step: a first level's, and, after `rewind`, the same ones again."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.done: list[Tensor] = []
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.next == len(self.done):
            self.done.append(self.net(x).features)
        self.next += 1
        features = self.done[self.next - 1]
        if len(features) != len(x):
            raise UsageError("the levels of HierMatch pass different images; give a base whose images do not depend "
                             "on its predictions, such as FixMatch or MixMatch")
        return features

    def rewind(self) -> None:
        self.next = 0

    def clear(self) -> None:
        self.done, self.next = [], 0


class _Level(nn.Module):
    """What a base method takes for its net: the shared features as this level sees them, and its head."""

    def __init__(self, passes: _Passes, level: int, levels: int, classes: int) -> None:
        super().__init__()
        self.passes = passes
        whole, width = passes.net.features_dim, passes.net.features_dim // levels
        self.start = (levels - 1 - level) * width
        self.own = width if level else whole - self.start
        self.classes, self.features_dim = classes, whole - self.start
        with seeded("hiermatch", level):
            self.head = linear_head(self.features_dim, classes) if level else passes.net.head

    def forward(self, x: Tensor) -> Output:
        features: Tensor = self.passes(x)[:, self.start :]
        seen = torch.cat([features[:, : self.own], features[:, self.own :].detach()], dim=1)
        return Output(seen, F.linear(seen, self.head.weight[:, -self.features_dim :], self.head.bias))


class _NoAverage(nn.Module):
    def update(self, source: nn.Module, at: At) -> None:
        pass


def _mean_of_known(output: Output, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose label is not -1; 0 if there are none."""
    known = labels >= 0
    total = losses.masked_cross_entropy(output.logits, labels.clamp(min=0), known) * len(known)
    return total / known.sum().clamp(min=1)


def _checked(parents: Sequence[Sequence[int]], net: Net) -> Tensor:
    """int64 [levels above the classes, classes], of class numbers."""
    try:
        table = torch.as_tensor(parents)
    except (TypeError, ValueError) as error:
        raise UsageError(f"parents={parents}: {error}") from error
    if table.ndim != 2 or table.dtype != torch.int64 or table.shape[1] != net.classes or table.min() < 0:
        raise UsageError(f"parents={parents}: expected a list for each level above the classes, each of the level's "
                         f"class of every one of the {net.classes} classes, such as "
                         f"{[[c // 2 for c in range(net.classes)]]}")
    if net.features_dim <= len(table):
        raise UsageError(f"{net.name} has {net.features_dim} features, too few for {len(table) + 1} levels")
    return table
