"""Short rounds of training in one run, each from the last one's net and the labels that are propagated over it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_lab import ladder
from ssl_lab.afterwards import finished
from ssl_lab.data import Pool, announce
from ssl_lab.data.inventory import inventory, write_inventory
from ssl_lab.engine import Runtime, Trainer, checkpoint, evaluate
from ssl_lab.engine.card import card_of
from ssl_lab.engine.folder import RunFolder, alone_in, make_way
from ssl_lab.engine.placed import place
from ssl_lab.engine.weights import whole_state
from ssl_lab.errors import UsageError
from ssl_lab.features.beliefs import believed, refit
from ssl_lab.features.embed import seconds_to_embed
from ssl_lab.features.probe import probe_head
from ssl_lab.files import write_atomically
from ssl_lab.ladder import FIRST, PAIR, TRIO, Round
from ssl_lab.methods import LabeledSimCLR, SoftLabels, StoredLogits
from ssl_lab.nets import Net
from ssl_lab.nets.stored import read_weights
from ssl_lab.nets.weights import load_net, whole_net
from ssl_lab.pace import PLAN, Pace
from ssl_lab.seeds import seed_of

__all__ = ["PAIR", "TRIO", "Round", "Rounds", "said"]

BELIEVED = 2.0  # of the loss on labels that were spread, beside that on those that were given, as in LabeledSimCLR


@dataclass
class Rounds:
    """Trains in rounds, and leaves a run in `out` with a folder for each, round-0 and so on.

    new: number -> a new net of those that rounds name, prepared for the pool. trainer: (steps, minutes, folder, round)
    -> its trainer. pair, trio: see `ladder.in_seconds`. steps or minutes: of all rounds together. quiet: whether it
    does not say how each round ended. config: to record.
    Every round and table is read from the disk by the next, as is what was decided of lengths (see `Pace`), so that a
    run that was killed goes on as if it had not been.
    """

    out: Path
    new: Callable[[int], Net]
    trainer: Callable[[int | None, float | None, Path, Round], Trainer]
    pair: Sequence[Round]
    trio: Sequence[Round] = ()
    steps: int | None = None
    minutes: float | None = None
    views: Sequence[str] = ()
    seed: int = 0
    quiet: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    pace: Pace = field(init=False)

    def fit(self, pool: Pool, runtime: Runtime, resume: bool) -> tuple[Net, dict[str, Any]]:
        """The net of the end, and what summary.json holds. UsageError for bad settings, Interrupted after a signal."""
        if runtime.world > 1:
            raise UsageError("rounds with propagated labels run in one process; start them without torchrun")
        if (self.steps is None) == (self.minutes is None) or (self.steps or self.minutes or 0) <= 0:
            raise UsageError(f"steps={self.steps}, minutes={self.minutes}: give one of the two, above zero")
        first = sum(each.net == FIRST for each in self.pair)
        if self.steps is not None and self.steps < first:
            raise UsageError(f"steps={self.steps}: expected one for each of {first} rounds, or more")
        if not resume:
            make_way(self.out, PLAN)
        with alone_in(self.out):
            announce(pool)
            pair, trio = ladder.cropped(self.pair, pool), ladder.cropped(self.trio, pool)
            image = cache(lambda net: seconds_to_embed(self.new(net), pool, runtime))
            self.pace = Pace(self.out, pool, self.new, pair, trio, partial(self._seconds, pool), image, self.steps,
                             self.minutes, self.config)
            self.pace.choose()
            for this in {each.contrast: each for each in self.pace.rounds}.values():
                self._method(this, self.new(this.net), None, pool)  # views that do not fit are refused before training
            blind = replace(pool, valid=pool.valid[:0], test=pool.test[:0])  # so that rounds take what steps take
            number = 0
            while number < len(self.pace.rounds):  # of which there may come to be more, or fewer
                if not (self.pace.folder(number) / "summary.json").exists():
                    self._round(number, blind, runtime)
                self.pace.over(number)
                if number == len(self.pace.plan["measured"]):
                    self._measure(number, pool, runtime)
                number += 1
            return self._finish(pool, runtime)

    def _seconds(self, pool: Pool, this: Round) -> float:
        """What a step of a round takes here."""
        trainer = self.trainer(1, None, self.out, this)
        method = self._method(this, self.new(this.net), None, pool)
        return trainer.seconds_of_step(method, pool, ladder.LABELED, this.unlabeled)

    def _round(self, number: int, pool: Pool, runtime: Runtime) -> None:
        this, folder = self.pace.rounds[number], self.pace.folder(number)
        net, table, goes_on = self.new(this.net), None, False
        if number:
            before = self.pace.rounds[number - 1].net
            goes_on = before == this.net
            last = net if goes_on else self.new(before)
            self._load(last, number - 1)
            table = self._table(number, last, pool, runtime) if this.share else None
        method = self._method(this, net, table, pool)
        if goes_on:
            method.ema.warm_up = 0  # goes on from the net that the last round left
        if goes_on and isinstance(method, LabeledSimCLR):
            left = checkpoint.load(self.pace.folder(number - 1) / "checkpoint.pt")["method"]
            method.projector.load_state_dict({key.removeprefix("projector."): value for key, value in left.items()
                                              if key.startswith("projector.")})
        steps, minutes = self.pace.length(number)
        seed = seed_of(self.seed, "round", number) % 2**31 if number else self.seed  # other draws in each round
        trainer = replace(self.trainer(steps, minutes, folder, this), seed=seed)
        trainer.fit(method, pool, ladder.LABELED, this.unlabeled)

    def _measure(self, number: int, pool: Pool, runtime: Runtime) -> None:
        """Says how a round ended: its net on the validation images, where there are any."""
        start, found = time.perf_counter(), ""
        accuracy = self._accuracy(number, pool, pool.valid, runtime) if len(pool.valid) else None
        self.pace.decide(measured=[*self.pace.plan["measured"], accuracy], measuring=time.perf_counter() - start)
        if accuracy is not None:
            found = f"valid {accuracy:.1%}, "
        if not self.quiet:
            print(f"round {number + 1} of {len(self.pace.rounds)}: {self.pace.plan['steps'][number]} steps, {found}"
                  f"{self.pace.plan['spent']:.0f} s in all", file=sys.stderr)

    def _accuracy(self, number: int, pool: Pool, rows: evaluate.IntArray, runtime: Runtime) -> float:
        """Of a round's averaged net."""
        place(net := self.new(self.pace.rounds[number].net), runtime.device)
        self._load(net, number)
        return evaluate.accuracy(net, pool, rows, runtime)

    def _method(self, this: Round, net: Net, table: torch.Tensor | None, pool: Pool) -> LabeledSimCLR | SoftLabels:
        method: LabeledSimCLR | SoftLabels
        if this.contrast:
            method = LabeledSimCLR(net, table, temperature=this.temperature, ema=this.ema, seed=self.seed)
        else:
            said = torch.zeros(len(pool), net.classes) if table is None else table
            logits = torch.where(said.sum(dim=1, keepdim=True) > 0, said.log(), torch.nan)
            method = SoftLabels(net, StoredLogits(logits), weight=BELIEVED, ema=this.ema)
        method.with_views(*(self.views or [f"simclr(size={this.crop})"]))
        return method

    def _load(self, net: Net, number: int) -> None:
        """The averaged net that a round left."""
        file = self.pace.folder(number) / "model.safetensors"
        state = whole_net(read_weights(file))
        assert state is not None
        load_net(net, state, file)

    def _table(self, number: int, net: Net, pool: Pool, runtime: Runtime) -> torch.Tensor:
        path = self.out / f"beliefs-{number}.npy"
        if not path.exists():
            start = time.perf_counter()
            table = believed(net, pool, runtime, self.pace.rounds[number].share)
            write_atomically(path, lambda file: np.save(file, table))
            self.pace.decide(propagating=[*self.pace.plan["propagating"], time.perf_counter() - start])
        return torch.from_numpy(np.load(path))

    def _finish(self, pool: Pool, runtime: Runtime) -> tuple[Net, dict[str, Any]]:
        """Refits the head, on labels that are spread once more or, where none were between rounds, on the given ones,
        and measures once: each round's net, and the last one with its new head."""
        predicted, pace = dict[str, evaluate.Predictions](), self.pace
        split = "valid" if len(pool.valid) else "test"
        curve, steps, folder = pace.plan["measured"], pace.plan["steps"], RunFolder(self.out)
        if not len(pool.valid):
            measured = range(len(pace.rounds)) if len(pool.test) else ()
            curve = [self._accuracy(number, pool, pool.test, runtime) for number in measured]
        place(net := self.new(pace.rounds[-1].net), runtime.device)
        self._load(net, len(pace.rounds) - 1)
        config = {**self.config, "net": net.name, "steps": sum(steps), "minutes": None}
        folder.begin(config, pool.manifest(), 0)
        write_inventory(self.out, inventory(pool))
        (refit if any(each.share for each in pace.rounds) else probe_head)(net, pool, runtime)
        ends: dict[str, float] = {}
        for name, part in (("valid", pool.valid), ("test", pool.test)):
            if len(part):
                found = evaluate.scores(net, pool, part, runtime, partial(predicted.__setitem__, name))
                ends |= {f"{name}_{key}": value for key, value in found.items()}
        pace.decide()
        seconds = pace.plan["spent"]
        images = sum(count * (ladder.LABELED + this.unlabeled) for count, this in zip(steps, pace.rounds, strict=True))
        summary = {"method": "rapid", "data": pool.name, "labels": len(pool.labeled), "valid_images": len(pool.valid),
                   "seed": self.seed, "steps": sum(steps), "seconds": round(seconds, 2), "images": images,
                   "images_per_second": round(images / seconds, 1), "pflop": round(pace.costs.total(steps) / 1e15, 4),
                   "valid_accuracy": None, "test_accuracy": None, **ends,
                   f"{split}_accuracy_of_rounds": curve,
                   "selection": "the last round's averaged net, its head refitted; fixed before the run",
                   "precision": runtime.precision, "device": str(runtime.device), "split": pool.manifest()["hash"],
                   "class_names": list(pool.class_names), "loaded": list(pool.notes)}
        folder.finish(whole_state(net), summary, predicted, card_of(net, True, pool, predicted.get("valid")))
        finished(self.out, pool)
        return net, summary


def said(summary: Mapping[str, Any], out: Path) -> str:
    """A run in two lines: accuracy of each round and at the end, PFLOP, images, seconds."""
    split = "valid" if summary["valid_accuracy"] is not None else "test"
    ends = "  ".join(f"{name} {summary[f'{name}_accuracy']:.2%}" for name in ("valid", "test")
                     if summary[f"{name}_accuracy"] is not None)
    curve = ", ".join(f"{value:.1%}" for value in summary[f"{split}_accuracy_of_rounds"])
    return (f"{split} accuracy of the rounds' nets: {curve}\nrapid on {summary['data']} with {summary['labels']} "
            f"labels: {ends}  ({summary['pflop']:.4g} PFLOP, {summary['images']:,} images in {summary['steps']} steps, "
            f"{summary['seconds']:.0f} s; {out})")
