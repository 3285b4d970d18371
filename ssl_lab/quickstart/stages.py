"""The stages of the quickstart: which ten labels, and what else is learned from."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ssl_lab.active.queries import ProbCover
from ssl_lab.active.queries.view import FloatArray, PoolView
from ssl_lab.data import IntArray, Pool, load
from ssl_lab.engine import Result, ShowProgress, Trainer
from ssl_lab.engine.folder import clear
from ssl_lab.errors import UsageError
from ssl_lab.features.propagation import affinity, diffuse, propagated
from ssl_lab.features.self_training import balanced
from ssl_lab.methods import AdaMatch, FixMatch, Method, Supervised
from ssl_lab.nets import net
from ssl_lab.optim import SGD
from ssl_lab.presets import SHORT_ARGUMENTS
from ssl_lab.schedule import cosine_7_16

LABELS, IMAGE_SIZE, NET = 10, 16, "tiny_16"
LEARNING_RATES: dict[type[Method], float] = {Supervised: 0.03, FixMatch: 0.1, AdaMatch: 0.1}
NEIGHBORS = 10  # of each image, in the graph of images that are alike
NEARNESS = 0.8  # alpha of the diffusion whose reach the query sees: smaller, and less is near
COVERED = 0.7  # share of the images that ten balls of the query's radius are to hold
SURE = 0.4  # share of the training images that may get a propagated label, the surest of each class


@dataclass(frozen=True)
class Stage:
    """What a row of the table is. said: what it learns from."""

    name: str
    method: type[Method]
    said: str
    queried: bool = False
    propagated: bool = False


STAGES = (
    Stage("supervised", Supervised, "ten labels, one of each class, drawn at random"),
    Stage("fixmatch", FixMatch, "the same ten labels, and all images without a label"),
    Stage("chosen", FixMatch, "ten labels that a query asked for, and all images", queried=True),
    Stage("propagated", FixMatch, "these ten labels, spread to the images that are like them, and all images",
          queried=True, propagated=True),
    Stage("aligned", AdaMatch, "the same, with guesses that come in the labels' shares of the classes (AdaMatch)",
          queried=True, propagated=True),
)
BEST = STAGES[-1]


@dataclass(frozen=True)
class Data:
    """The pools of a seed.

    drawn: with labels drawn at random. chosen: with those that the query asked for, in the order `asked` (rows of the
    pool). spread: with propagated ones too, of the rows `sure`.
    """

    drawn: Pool
    chosen: Pool
    spread: Pool
    asked: IntArray
    sure: IntArray

    def of(self, stage: Stage) -> Pool:
        return self.spread if stage.propagated else self.chosen if stage.queried else self.drawn

    @property
    def right(self) -> float:
        """The share of the propagated labels that are right, which nothing here learns from."""
        return float((self.spread.labels[self.sure] == self.spread.truth[self.sure]).mean())


def prepare(seed: int) -> Data:
    """The labels of a seed, in the three ways. Digits are enlarged from 8x8 to 16x16 pixels, because turning and
    shearing so few pixels leaves no digit; which of them are alike is asked of the 8x8 pixels."""
    images, pixels = load("digits", image_size=IMAGE_SIZE), load("digits").images
    drawn = images.split(labels=LABELS, seed=seed)
    train = drawn.train
    graph = affinity(pixels.take(train).flatten(1).numpy().astype(np.float32), NEIGHBORS)
    reach = np.maximum(diffuse(graph, np.eye(len(train)), NEARNESS), 0).astype(np.float32)
    asked = query(reach, train, seed)
    chosen, spread = (images.split(labeled=asked, seed=seed) for _ in range(2))
    beliefs = propagated(graph, chosen.labels[train], chosen.classes)
    sure, guess = balanced(beliefs, int(SURE * len(train) / chosen.classes))
    new = chosen.labels[train[sure]] < 0
    sure, guess = train[sure[new]], guess[new]
    spread.record(sure, guess, source="propagation")
    return Data(drawn, chosen, spread, asked, sure)


def query(reach: FloatArray, ids: IntArray, seed: int) -> IntArray:
    """int64 [LABELS], in the order of choice: the images with most others around them, each counted once, where near is
    who reaches the same images along the graph of neighbors. reach: [N, N]. ids: int [N]."""
    return ProbCover(share=COVERED)(PoolView(np.full(len(ids), -1), ids, embeddings=reach), LABELS, seed)


class Progress(ShowProgress):
    """A bar that says which of the runs it is; without the loss it fits into 80 columns."""

    def __init__(self, label: str, console: Console) -> None:
        super().__init__(console)
        self._label = label

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        super().start(self._label, out, step, steps)

    def row(self, row: Mapping[str, float]) -> None:
        super().row({key: value for key, value in row.items() if key != "loss"})


def train(stage: Stage, data: Data, out: Path, steps: int, seeds: Sequence[int]) -> Result:
    """A run of a stage, in a folder of `out`: the net, its initial weights and the steps are those of all stages."""
    pool, seed = data.of(stage), data.drawn.seed or 0
    folder = out / f"{stage.name}-{seed}"
    if (folder / "settings.yaml").exists():
        raise UsageError(f"{folder} is a run of a comparison, which is not overwritten; choose another --out")
    clear(folder)
    label = stage.name if len(seeds) == 1 else f"{stage.name} {seeds.index(seed) + 1}/{len(seeds)}"
    console = Console(file=sys.stderr)
    trainer = Trainer(
        steps=steps, out=folder, seed=seed, precision="fp32", evaluations=20,
        optimizer=SGD(lr=cosine_7_16(LEARNING_RATES[stage.method]), weight_decay=5e-4),
        callbacks=[Progress(label, console)] if console.is_terminal else [])
    learner = stage.method(net(NET, classes=pool.class_names, style=pool.style, seed=seed, bn_momentum=0.05), ema=0.99,
                           **SHORT_ARGUMENTS.get(stage.method.name, {}))
    result = trainer.fit(learner, pool, labeled=32, unlabeled=96)
    console.print(f"{label:15}  test {result.test_accuracy:6.1%}  {result.summary['seconds']:5.1f} s  {stage.said}",
                  highlight=False, soft_wrap=True)
    return result
