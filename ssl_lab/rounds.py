"""Short rounds of training in one run, each from the last one's net and the labels that are propagated over it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ssl_lab import ladder
from ssl_lab.afterwards import finished
from ssl_lab.data import Pool, announce
from ssl_lab.data.inventory import inventory, write_inventory
from ssl_lab.engine import Runtime, Trainer, checkpoint, evaluate
from ssl_lab.engine.card import card_of
from ssl_lab.engine.folder import RunFolder, alone_in, check_same, make_way
from ssl_lab.engine.placed import place
from ssl_lab.engine.weights import whole_state
from ssl_lab.errors import UsageError
from ssl_lab.features.beliefs import believed, refit
from ssl_lab.features.embed import seconds_to_embed
from ssl_lab.features.probe import probe_head
from ssl_lab.files import write_atomically, write_text
from ssl_lab.ladder import FIRST, PAIR, SMALL, TRIO, Costs, Round
from ssl_lab.methods import LabeledSimCLR, SoftLabels, StoredLogits
from ssl_lab.nets import Net
from ssl_lab.nets.stored import read_weights
from ssl_lab.nets.weights import load_net, whole_net
from ssl_lab.notes import once
from ssl_lab.seeds import seed_of

__all__ = ["PAIR", "TRIO", "Round", "Rounds", "said"]

BELIEVED = 2.0  # of the loss on labels that were spread, beside that on those that were given, as in LabeledSimCLR
LAST = 0.04  # of the time, for fitting the head and testing, beside the last table's
PLAN = "plan.json"


@dataclass
class Rounds:
    """Trains in rounds, and leaves a run in `out` with a folder for each, round-0 and so on.

    new: number -> a new net of those that rounds name, prepared for the pool. trainer: (steps, minutes, folder, round)
    -> its trainer. pair, trio: see `ladder.in_seconds`. steps or minutes: of all rounds together. quiet: whether it
    does not say how each round ended. config: to record.
    A decision about lengths is recorded in plan.json before it is acted on, and every round and table is read from the
    disk by the next, so that a run that was killed goes on as if it had not been.
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
    _timed: dict[tuple[int, int, bool], float] = field(default_factory=dict, init=False)

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
        self.pair, self.trio = ladder.cropped(self.pair, pool), ladder.cropped(self.trio, pool)
        with alone_in(self.out):
            announce(pool)
            self.begun, self.plan = time.perf_counter(), self._plan(pool)
            self._choose(pool, runtime)
            for this in {each.contrast: each for each in self.rounds}.values():
                self._method(this, self.new(this.net), None, pool)  # views that do not fit are refused before training
            blind = replace(pool, valid=pool.valid[:0], test=pool.test[:0])  # so that rounds take what steps take
            number = 0
            while number < len(self.rounds):  # of which there may come to be more, or fewer
                if not (self._folder(number) / "summary.json").exists():
                    self._round(number, blind, runtime)
                if number == len(self.plan["steps"]):  # the first one's, of a run by the clock
                    self._decide(steps=[*self.plan["steps"], _recorded(self._folder(number))])
                if number == len(self.plan["measured"]):
                    self._measure(number, pool, runtime)
                number += 1
            return self._finish(pool, runtime)

    def _plan(self, pool: Pool) -> dict[str, Any]:
        path, now = self.out / PLAN, {**self.config, "split": pool.manifest()["hash"]}
        if path.exists():
            plan: dict[str, Any] = json.loads(path.read_text())
            check_same(plan["config"], json.loads(json.dumps(now)), self.out)
            return plan
        plan = {"config": now, "spent": 0.0, "steps": [], "propagating": [], "measured": [], "measuring": 0.0}
        write_text(path, json.dumps(plan) + "\n")
        return plan

    def _choose(self, pool: Pool, runtime: Runtime) -> None:
        """Which rounds there are."""
        self.every = (*self.pair, *self.trio)
        self.whole = Costs(self.every, self.new, pool)
        if "rounds" not in self.plan:
            if self.steps is not None:
                self._decide(rounds=ladder.in_steps(self.pair, pool, self.steps), propagating=[])
            else:
                assert self.minutes is not None
                image = cache(lambda net: seconds_to_embed(self.new(net), pool, runtime))
                step = partial(self._seconds, pool)
                chosen, table = ladder.in_seconds(self.pair, self.trio, self.whole, 60 * self.minutes, image, step)
                for number in chosen:
                    step(number)
                self._decide(rounds=chosen, propagating=[table],
                             seconds=[self._timed.get((each.net, each.crop, each.contrast)) for each in self.every],
                             measuring=len(pool.valid) * image(self.every[chosen[0]].net))
        self._take(self.plan["rounds"])
        most, more, other = self.pair, "", ""
        if self.rounds[0].net == SMALL:
            most, other = self.trio, " (--net takes another)"
        if len(self.rounds) < len(most):
            more = f"; {len(most)} of {self._names(most)} where there is more time" + (
                f": labels between two take about {self.plan['propagating'][0]:.0f} s" if self.minutes else "")
        once(f"{self._said}{other}, in which there are no test images: these are read in the end{more}")

    def _choose_again(self, number: int, seconds: float) -> None:
        """Which rounds there are, this one and others, in the seconds that are left of a run by the clock, as steps may
        take other times than they took when they were timed, for a moment."""
        chosen, known, last = self.plan["rounds"], self.plan["seconds"], self._last(number)
        slower = last["seconds"] / last["steps"] / known[chosen[number - 1]]

        def step(each: int) -> float:
            """What was timed, or else as many operations as in the last round that was."""
            timed: float | None = known[each]
            return timed or known[chosen[-1]] * self.whole.step(each) / self.whole.step(chosen[-1])

        table = self.plan["propagating"][-1]
        now = ladder.in_seconds_left(self.pair, self.trio, chosen, number, self.whole, seconds, table,
                                     lambda each: slower * step(each))
        if now != chosen:
            self._decide(rounds=now, seconds=[step(each) if each in now else timed for each, timed in enumerate(known)])
            self._take(now)
            once(f"{self._said} now, by what steps have taken since")

    def _take(self, numbers: Sequence[int]) -> None:
        self.rounds, self.costs = [self.every[number] for number in numbers], self.whole.of(numbers)

    @property
    def _said(self) -> str:
        return f"{len(self.rounds)} round{'s' * (len(self.rounds) > 1)} of {self._names(self.rounds)}"

    def _last(self, number: int) -> dict[str, Any]:
        """The summary of the round before this one."""
        found: dict[str, Any] = json.loads((self._folder(number - 1) / "summary.json").read_text())
        return found

    def _names(self, rounds: Sequence[Round]) -> str:
        """Of these rounds' nets."""
        return " and ".join(self.new(net).name for net in dict.fromkeys(each.net for each in rounds))

    def _seconds(self, pool: Pool, number: int) -> float:
        """What a step of a round takes here."""
        this = self.every[number]
        key = this.net, this.crop, this.contrast
        if key not in self._timed:
            trainer = self.trainer(1, None, self._folder(number), this)
            self._timed[key] = trainer.seconds_of_step(
                self._method(this, self.new(this.net), None, pool), pool, ladder.LABELED, this.unlabeled)
        return self._timed[key]

    def _decide(self, **new: Any) -> None:
        """Records what is decided, and the seconds that were spent until now."""
        self.plan |= new
        self.plan["spent"] += time.perf_counter() - self.begun
        self.begun = time.perf_counter()
        write_text(self.out / PLAN, json.dumps(self.plan) + "\n")

    def _folder(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def _round(self, number: int, pool: Pool, runtime: Runtime) -> None:
        this, folder = self.rounds[number], self._folder(number)
        net, table, goes_on = self.new(this.net), None, number > 0 and self.rounds[number - 1].net == this.net
        if number:
            last = net if goes_on else self.new(self.rounds[number - 1].net)
            self._load(last, number - 1)
            table = self._table(number, last, pool, runtime) if this.share else None
        method = self._method(this, net, table, pool)
        if goes_on:
            method.ema.warm_up = 0  # goes on from the net that the last round left
        if goes_on and isinstance(method, LabeledSimCLR):
            before = checkpoint.load(self._folder(number - 1) / "checkpoint.pt")["method"]
            method.projector.load_state_dict({key.removeprefix("projector."): value for key, value in before.items()
                                              if key.startswith("projector.")})
        steps, minutes = self._length(number, folder, pool)
        seed = seed_of(self.seed, "round", number) % 2**31 if number else self.seed  # other draws in each round
        trainer = replace(self.trainer(steps, minutes, folder, this), seed=seed)
        trainer.fit(method, pool, ladder.LABELED, this.unlabeled)

    def _measure(self, number: int, pool: Pool, runtime: Runtime) -> None:
        """Says how a round ended: its net on the validation images, where there are any."""
        start, found = time.perf_counter(), ""
        accuracy = self._accuracy(number, pool, pool.valid, runtime) if len(pool.valid) else None
        self._decide(measured=[*self.plan["measured"], accuracy], measuring=time.perf_counter() - start)
        if accuracy is not None:
            found = f"valid {accuracy:.1%}, "
        if not self.quiet:
            print(f"round {number + 1} of {len(self.rounds)}: {self.plan['steps'][number]} steps, {found}"
                  f"{self.plan['spent']:.0f} s in all", file=sys.stderr)

    def _accuracy(self, number: int, pool: Pool, rows: evaluate.IntArray, runtime: Runtime) -> float:
        """Of a round's averaged net."""
        place(net := self.new(self.rounds[number].net), runtime.device)
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
        file = self._folder(number) / "model.safetensors"
        state = whole_net(read_weights(file))
        assert state is not None
        load_net(net, state, file)

    def _table(self, number: int, net: Net, pool: Pool, runtime: Runtime) -> torch.Tensor:
        path = self.out / f"beliefs-{number}.npy"
        if not path.exists():
            start = time.perf_counter()
            table = believed(net, pool, runtime, self.rounds[number].share)
            write_atomically(path, lambda file: np.save(file, table))
            self._decide(propagating=[*self.plan["propagating"], time.perf_counter() - start])
        return torch.from_numpy(np.load(path))

    def _length(self, number: int, folder: Path, pool: Pool) -> tuple[int | None, float | None]:
        """Steps of a round; for the first one of a run by the clock its minutes, of which the trainer makes steps."""
        decided = self.plan["steps"]
        if number < len(decided):
            return decided[number], None
        if self.steps is not None:
            lengths = [each.length for each in self.rounds]
            ends = [int(self.steps * sum(lengths[:place]) / sum(lengths)) for place in (number, number + 1)]
            self._decide(steps=[*decided, max(1, ends[1] - ends[0])])
            return self.plan["steps"][number], None
        assert self.minutes is not None
        if not number and (folder / "config.yaml").exists():  # killed before its end: its length is known
            self._decide(steps=[_recorded(folder)])
            return self.plan["steps"][0], None
        spent = self.plan["spent"] + time.perf_counter() - self.begun
        if number:
            self._choose_again(number, 60 * self.minutes - spent)
        each = [self.plan["seconds"][place] for place in self.plan["rounds"]]
        costs = [this.length * seconds for this, seconds in zip(self.rounds, each, strict=True)]
        tables = self.plan["propagating"][-1] * sum(self.costs.tables(number))
        measuring = self.plan["measuring"] * sum(self.costs.images(number))
        left = max(0.0, 60 * self.minutes * (1 - LAST) - spent - tables - measuring)
        mine = left * costs[number] / sum(costs[number:])
        if not number:
            return None, max(mine, 0.1) / 60  # a step at least
        last = self._last(number)
        step = last["seconds"] / last["steps"] * each[number] / each[number - 1]
        self._decide(steps=[*decided, max(1, int(mine / step))])
        return self.plan["steps"][number], None

    def _finish(self, pool: Pool, runtime: Runtime) -> tuple[Net, dict[str, Any]]:
        """Refits the head, on labels that are spread once more or, where none were between rounds, on the given ones,
        and measures once: each round's net, and the last one with its new head."""
        predicted = dict[str, evaluate.Predictions]()
        split = "valid" if len(pool.valid) else "test"
        curve, folder = self.plan["measured"], RunFolder(self.out)
        if not len(pool.valid):
            measured = range(len(self.rounds)) if len(pool.test) else ()
            curve = [self._accuracy(number, pool, pool.test, runtime) for number in measured]
        place(net := self.new(self.rounds[-1].net), runtime.device)
        self._load(net, len(self.rounds) - 1)
        config = {**self.config, "net": net.name, "steps": sum(self.plan["steps"]), "minutes": None}
        folder.begin(config, pool.manifest(), 0)
        write_inventory(self.out, inventory(pool))
        (refit if any(each.share for each in self.rounds) else probe_head)(net, pool, runtime)
        ends: dict[str, float] = {}
        for name, part in (("valid", pool.valid), ("test", pool.test)):
            if len(part):
                found = evaluate.scores(net, pool, part, runtime, partial(predicted.__setitem__, name))
                ends |= {f"{name}_{key}": value for key, value in found.items()}
        self._decide()
        images = sum(steps * (ladder.LABELED + this.unlabeled)
                     for steps, this in zip(self.plan["steps"], self.rounds, strict=True))
        summary = {"method": "rapid", "data": pool.name, "labels": len(pool.labeled), "valid_images": len(pool.valid),
                   "seed": self.seed, "steps": sum(self.plan["steps"]), "seconds": round(self.plan["spent"], 2),
                   "images": images, "images_per_second": round(images / self.plan["spent"], 1),
                   "pflop": round(self.costs.total(self.plan["steps"]) / 1e15, 4), "valid_accuracy": None,
                   "test_accuracy": None, **ends,
                   f"{split}_accuracy_of_rounds": curve,
                   "selection": "the last round's averaged net, its head refitted; fixed before the run",
                   "precision": runtime.precision, "device": str(runtime.device), "split": pool.manifest()["hash"],
                   "class_names": list(pool.class_names), "loaded": list(pool.notes)}
        folder.finish(whole_state(net), summary, predicted, card_of(net, True, pool, predicted.get("valid")))
        finished(self.out, pool)
        return net, summary


def _recorded(folder: Path) -> int:
    """The steps of a round whose trainer turned minutes into them."""
    return int(yaml.safe_load((folder / "config.yaml").read_text())["steps"])


def said(summary: Mapping[str, Any], out: Path) -> str:
    """A run in two lines: accuracy of each round and at the end, PFLOP, images, seconds."""
    split = "valid" if summary["valid_accuracy"] is not None else "test"
    ends = "  ".join(f"{name} {summary[f'{name}_accuracy']:.2%}" for name in ("valid", "test")
                     if summary[f"{name}_accuracy"] is not None)
    curve = ", ".join(f"{value:.1%}" for value in summary[f"{split}_accuracy_of_rounds"])
    return (f"{split} accuracy of the rounds' nets: {curve}\nrapid on {summary['data']} with {summary['labels']} "
            f"labels: {ends}  ({summary['pflop']:.4g} PFLOP, {summary['images']:,} images in {summary['steps']} steps, "
            f"{summary['seconds']:.0f} s; {out})")
