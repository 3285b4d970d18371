"""Pseudo-label ensembles (Zhang et al. 2025, arXiv 2503.09707): pretrained nets and fine-tunings label images, as many
as there is time for, and one net learns these soft labels."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes

from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Result, Runtime, checkpoint
from ssl_lab.engine.folder import alone_in, check_same, make_way
from ssl_lab.errors import UsageError
from ssl_lab.features import FeatureStore, self_training
from ssl_lab.features.probe import set_head
from ssl_lab.features.search import FloatArray, unit
from ssl_lab.files import data_folder, write_atomically, write_text
from ssl_lab.finetune import FineTuning
from ssl_lab.members import BATCH, Learn, Members, many_labels, measured, members, some_of
from ssl_lab.methods.distillation import read_logits
from ssl_lab.nets import Net
from ssl_lab.nets.start import start_net
from ssl_lab.nets.stored import metadata
from ssl_lab.report import Column, Table
from ssl_lab.schedule import Scalar, Schedule, linear, plain

NOTE, LOGITS, SOFT, FROZEN = "ensemble.json", "logits.safetensors", "soft_labels.safetensors", "frozen"
OWN = linear(0.0, 0.5)
"""The one net's say over its soft labels where it begins at a pretrained net."""
TINY = 1e-12


@dataclass(frozen=True)
class Ensembling:
    """Members label the images, one net learns the mean of what they say.

    nets: pretrained, as `start_net` takes them. Self-training on the features of all of them side by side is the first
    member. Of the first of them the others are fine-tuned, and it is the net that learns at last. tuned: what of it
    learns in each of these fine-tunings on the labels (see `FineTuning`), of tuning_steps (of each None: see
    `members`). own: the net's say over the soft labels (None: it grows to a half, and where the net goes on from a
    fine-tuned one there is none), labeled, unlabeled: images per step, lr, backbone_rate, ema: of the one net; see
    `SoftLabels` and `FineTuning`. view: texts of views in place of the method's. optimizer: the text of another one
    than SGD.
    """

    nets: Sequence[str]
    tuned: Sequence[Learn] | None = None
    tuning_steps: int | None = None
    own: Scalar | None = None
    labeled: int = 16
    unlabeled: int = 64
    lr: Scalar = 0.01
    backbone_rate: float = 0.2
    ema: Scalar = 0.99
    view: Sequence[str] = ()
    optimizer: str | None = None

    def fit(self, pool: Pool, runtime: Runtime, out: Path, seed: int = 0, minutes: float | None = None,
            data_dir: Path | None = None, resume: str | None = None, **trainer: Any) -> tuple[Result, Table]:
        """Leaves a run in `out`, that of the one net, and those of the fine-tuned members in its folder members/.
        Returns its result, and a table of what each member, all together and the one net recognize.

        minutes: for everything. Where half of it does not suffice for the `members` to label all images, they label as
        many of them, drawn at random, as it does, and where these would be too few, members are left out, each with a
        word. None: all of them label all, and the one net takes the `steps` that the trainer is given. Where each class
        has many labels, and there is time for it, the fine-tuned ones speak alone, by their heads, and the one net goes
        on from the first of them, under weak views, as strong ones cost it more at first. Their runs are measured by
        1,000 test images at most.
        resume: "auto" goes on where this was stopped, in whatever part. data_dir: where the features of the pretrained
        nets lie. trainer: further arguments of `Trainer`. UsageError for nets that are not there, labels that are
        all of one class, and tuning_steps below 1.
        """
        names = tuple(dict.fromkeys(self.nets))
        if not names or not pool.classes > 1:
            raise UsageError(f"{len(names)} nets and {pool.classes} classes: expected at least one pretrained net, "
                             "and two classes")
        if self.tuning_steps is not None and self.tuning_steps < 1:
            raise UsageError(f"tuning_steps={self.tuning_steps}: expected at least 1; without any fine-tuning: --tuned "
                             "without a word")
        nets = [start_net(name, pool.class_names, pool.style, seed=seed) for name in names]
        if resume is None:
            runtime.from_first(lambda: make_way(out, NOTE))
        with alone_in(out / "members") if runtime.main else _nothing():
            runtime.wait()
            work = _Work(self, pool, runtime, out, seed, trainer)
            work.begin(nets, None if minutes is None else 60 * minutes)
            stores = work.embedded(nets, data_folder(data_dir) / "features")
            said = {FROZEN: work.member(FROZEN, lambda place: work.by_features(stores))} if stores else {}
            for learn in work.who.tuned:
                said[learn] = work.member(learn, partial(work.by_tuning, learn, names[0]))
            mean: FloatArray = np.mean([*said.values()], axis=0, dtype=np.float32)
            said["ensemble"] = mean
            work.write(out / SOFT, with_labels(mean, work.asked))
        net = nets[0]
        if not stores:
            net = work.tuned(out / "members" / next(iter(work.who.tuned)), net.name)
        elif not checkpoint.exists(out / "checkpoint.pt"):
            with work.timed("head"):
                set_head(net, stores[0].features, mean.argmax(axis=1), work.asked.unlabeled)
        result = work.learn(net, minutes)
        title = "Accuracy, in %"
        if len(work.asked) < len(pool):
            title += f"; of members: of {len(work.asked.valid)} validation and {len(work.asked.test)} test images"
        return result, table(title, said, result, work.asked, work.note["seconds"])


class _Work:
    """The parts of one ensemble, each of which is done once: what it leaves says so."""

    def __init__(self, how: Ensembling, pool: Pool, runtime: Runtime, out: Path, seed: int,
                 trainer: Mapping[str, Any]) -> None:
        self.how, self.pool, self.runtime, self.out, self.seed = how, pool, runtime, out, seed
        self.rows, self.asked = np.arange(len(pool)), pool  # of whose images the members are asked, and these alone
        self.many = many_labels(pool)
        self.trainer = {"micro_batches": "auto", **trainer}  # which change nothing where statistics are frozen
        self.note: dict[str, Any] = {}

    def begin(self, nets: Sequence[Net], seconds: float | None) -> None:
        """Decides who takes part, or reads what was decided."""
        settings = {name: plain(value) if isinstance(value, Schedule) else list(value) if isinstance(value, tuple)
                    else value for name, value in vars(self.how).items()}
        settings |= {"seed": self.seed, "split": self.pool.manifest()["hash"]}
        path = self.out / NOTE
        if path.exists():
            self.note = json.loads(path.read_text(encoding="utf-8"))
            check_same(self.note["settings"], settings, self.out)
        else:
            begun = time.perf_counter()
            who = members(nets, self.how.tuned, self.how.tuning_steps, self.pool, self.runtime, seconds)
            self.note = {"settings": settings, "members": asdict(who),
                         "seconds": {"timing": time.perf_counter() - begun}}
            self._keep()
        images = self.who.images
        if images < len(self.pool):
            self.rows = some_of(self.pool, images, self.seed)
            self.asked = self.pool.subset(self.rows)

    @property
    def who(self) -> Members:
        return Members(**self.note["members"])

    def embedded(self, nets: Sequence[Net], folder: Path) -> list[FeatureStore]:
        with self.timed("embedding"):
            return [FeatureStore.build(net, self.asked, folder, self.runtime) for net in nets[:self.who.frozen]]

    def member(self, name: str, ask: Callable[[Path], FloatArray]) -> FloatArray:
        """What a member says of each image that it is asked of, float32 [n, C], probabilities: once, then read."""
        place = self.out / "members" / name
        if not (place / LOGITS).exists():
            with self.timed(name):
                self.write(place / LOGITS, ask(place))
            if self.runtime.main:
                shutil.rmtree(place / "features", ignore_errors=True)
        self.runtime.wait()
        read = read_logits(place / LOGITS, self.pool.class_names, len(self.pool))
        return np.asarray(read.logits[self.rows].softmax(dim=1).numpy())

    def by_features(self, stores: Sequence[FeatureStore]) -> FloatArray:
        return self._learned(side_by_side([store.features for store in stores]))

    def by_tuning(self, learn: Learn, start: str, place: Path) -> FloatArray:
        """Trains on the labels, as far as it is not done, and asks the head, or, with few labels, learns from its
        features as from those of any net."""
        new = start_net(start, self.pool.class_names, self.pool.style, seed=self.seed)
        if not (place / "summary.json").exists():
            config = {"net": new.name, **(self.trainer.get("config") or {}), "method": "supervised", "learn": learn}
            shared = {name: self.trainer[name] for name in ("device", "precision", "micro_batches", "callbacks")
                      if name in self.trainer}
            way, few = FineTuning(learn=learn, labeled=BATCH), measured(self.asked, self.seed)
            way.fit(new, few, self.runtime, self.seed, **shared | {
                "steps": self.who.tuned[learn], "out": place, "resume": "auto", "config": config, "evaluations": 1})
        tuned = self.tuned(place, new.name)
        features = FeatureStore.build(tuned, self.asked, place / "features", self.runtime).features
        return by_head(tuned, features) if self.many else self._learned(features)

    def tuned(self, place: Path, name: str) -> Net:
        """The net that a fine-tuning left there."""
        return start_net(str(place), self.pool.class_names, self.pool.style, name)

    def _learned(self, features: FloatArray) -> FloatArray:
        train = self.asked.train
        return self_training(features[train], self.asked.labels[train], features, self.asked.classes)

    def learn(self, net: Net, minutes: float | None) -> Result:
        """The one net learns the soft labels, for as long as there is time."""
        left = None if minutes is None else max(minutes - sum(self.note["seconds"].values()) / 60, 0.05)
        how, gone_on = self.how, not self.who.frozen
        own = how.own if how.own is not None else 0.0 if gone_on else OWN
        view = how.view or ("strong=weak",) * gone_on
        way = FineTuning("soft_labels", {"teacher": self.out / SOFT, "own": own}, view,
                         head="start", labeled=how.labeled, unlabeled=how.unlabeled, lr=how.lr, ema=how.ema,
                         backbone_rate=how.backbone_rate, statistics="frozen", optimizer=how.optimizer)
        config = {"net": net.name, **(self.trainer.get("config") or {})}
        learned = replace(self.pool, train=self.rows[self.asked.train])
        return way.fit(net, learned, self.runtime, self.seed, **dict(self.trainer) | {
            "minutes": left, "out": self.out, "resume": "auto", "config": config})

    def write(self, file: Path, probs: FloatArray) -> None:
        """Logits [N, C] of probabilities [n, C], with the names of the classes; NaN of who is not asked of."""
        logits = torch.full((len(self.pool), self.pool.classes), torch.nan)
        logits[torch.from_numpy(self.rows)] = torch.from_numpy(np.log(np.maximum(probs, TINY)).astype(np.float32))
        if self.runtime.main:
            content = safetensors_bytes({"logits": logits}, metadata(self.pool.class_names))
            write_atomically(file, lambda opened: opened.write(content))
        self.runtime.wait()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds = self.note["seconds"]
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begun
        self._keep()

    def _keep(self) -> None:
        if self.runtime.main:
            write_text(self.out / NOTE, json.dumps(self.note) + "\n")
        self.runtime.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def side_by_side(features: Sequence[FloatArray]) -> FloatArray:
    """float32 [N, sum of D_b]: unit features of several nets, so that each has the same say in a cosine."""
    return unit(np.concatenate([unit(each) for each in features], axis=1))


def by_head(net: Net, features: FloatArray) -> FloatArray:
    """float32 [N, C]: the probabilities that the net's head gives to its features [N, D]."""
    with torch.no_grad():
        logits: torch.Tensor = net.head(torch.tensor(features, device=net.head.weight.device))
        return np.asarray(logits.softmax(dim=1).cpu().numpy())


def with_labels(probs: FloatArray, pool: Pool) -> FloatArray:
    """Probabilities [N, C], in which what is known of labeled rows takes the place of what was said of them."""
    known = probs.copy()
    known[pool.labeled] = np.eye(pool.classes, dtype=np.float32)[pool.labels[pool.labeled]]
    return known


def table(title: str, said: Mapping[str, FloatArray], result: Result, pool: Pool,
          seconds: Mapping[str, float]) -> Table:
    """Who recognizes how much of the validation and of the test images (members: of those of `pool`), and the seconds
    of each part."""
    def right(probs: FloatArray, rows: IntArray) -> float | None:
        rows = rows[pool.truth[rows] >= 0]
        return 100 * float((probs[rows].argmax(axis=1) == pool.truth[rows]).mean()) if len(rows) else None

    lines: list[list[str | float | None]] = [
        [name, right(probs, pool.valid), right(probs, pool.test), seconds.get(name)] for name, probs in said.items()]
    measured = [result.summary.get(f"{split}_accuracy") for split in ("valid", "test")]
    lines.append(["one net", *(None if each is None else 100 * each for each in measured), result.summary["seconds"]])
    return Table(title, [Column("who"), Column("valid", "right", ".1f"), Column("test", "right", ".1f"),
                                    Column("seconds", "right", ".0f")], lines)


