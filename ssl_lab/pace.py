"""The pace of `rounds.Rounds`: which rounds there are and of how many steps, by steps or by the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_lab import ladder
from ssl_lab.data import Pool
from ssl_lab.engine.folder import check_same
from ssl_lab.files import write_text
from ssl_lab.ladder import SMALL, Costs, Round
from ssl_lab.nets import Net
from ssl_lab.notes import once

LAST = 0.04  # of the time, for fitting the head and testing, beside the last table's
PLAN = "plan.json"


@dataclass
class Pace:
    """Which of `pair` or `trio` a run in `out` has (see `ladder.in_seconds`), and how long each is.

    new: number -> a net. step: round -> seconds of a step of it. image: net -> seconds of an image's way through it;
    both are measured when they are asked for. steps or minutes: of all rounds together. config: to record.
    A decision is recorded in plan.json before it is acted on, so that a run that was killed goes on as if it had not
    been. UsageError where `out` has a plan of other settings.
    """

    out: Path
    pool: Pool
    new: Callable[[int], Net]
    pair: Sequence[Round]
    trio: Sequence[Round]
    step: Callable[[Round], float]
    image: Callable[[int], float]
    steps: int | None
    minutes: float | None
    config: Mapping[str, Any]
    rounds: list[Round] = field(init=False)
    costs: Costs = field(init=False)

    def __post_init__(self) -> None:
        self._begun, self._every = time.perf_counter(), (*self.pair, *self.trio)
        self._whole = Costs(self._every, self.new, self.pool)
        self.plan = self._recorded()

    def _recorded(self) -> dict[str, Any]:
        path, now = self.out / PLAN, {**self.config, "split": self.pool.manifest()["hash"]}
        if path.exists():
            plan: dict[str, Any] = json.loads(path.read_text())
            check_same(plan["config"], json.loads(json.dumps(now)), self.out)
            return plan
        plan = {"config": now, "spent": 0.0, "steps": [], "propagating": [], "measured": [], "measuring": 0.0}
        write_text(path, json.dumps(plan) + "\n")
        return plan

    def decide(self, **new: Any) -> None:
        """Records what is decided, and the seconds that were spent until now."""
        self.plan |= new
        self.plan["spent"] += time.perf_counter() - self._begun
        self._begun = time.perf_counter()
        write_text(self.out / PLAN, json.dumps(self.plan) + "\n")

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.out / f"round-{number}"

    def choose(self) -> None:
        """Which rounds there are, and says so."""
        if "rounds" not in self.plan:
            if self.steps is not None:
                self.decide(rounds=ladder.in_steps(self.pair, self.pool, self.steps), propagating=[])
            else:
                self._choose_by_the_clock()
        self._take(self.plan["rounds"])
        most, more, other = self.pair, "", ""
        if self.rounds[0].net == SMALL:
            most, other = self.trio, " (--net takes another)"
        if len(self.rounds) < len(most):
            more = f"; {len(most)} of {self._names(most)} where there is more time" + (
                f": labels between two take about {self.plan['propagating'][0]:.0f} s" if self.minutes else "")
        once(f"{self._said}{other}, in which there are no test images: these are read in the end{more}")

    def _choose_by_the_clock(self) -> None:
        assert self.minutes is not None
        timed: dict[tuple[int, int, bool], float] = {}
        alike = [(each.net, each.crop, each.contrast) for each in self._every]

        def step(number: int) -> float:
            if alike[number] not in timed:
                timed[alike[number]] = self.step(self._every[number])
            return timed[alike[number]]

        chosen, table = ladder.in_seconds(self.pair, self.trio, self._whole, 60 * self.minutes, self.image, step)
        for number in chosen:
            step(number)
        self.decide(rounds=chosen, propagating=[table], seconds=[timed.get(each) for each in alike],
                    measuring=len(self.pool.valid) * self.image(self._every[chosen[0]].net))

    def _choose_again(self, number: int, seconds: float) -> None:
        """Which rounds there are, this one and others, in the seconds that are left of a run by the clock, as steps may
        take other times than they took when they were timed, for a moment."""
        chosen, known = self.plan["rounds"], self.plan["seconds"]
        slower = self._took(number - 1) / known[chosen[number - 1]]

        def step(each: int) -> float:
            """What was timed, or else as many operations as in the last round that was."""
            timed: float | None = known[each]
            return timed or known[chosen[-1]] * self._whole.step(each) / self._whole.step(chosen[-1])

        now = ladder.in_seconds_left(self.pair, self.trio, chosen, number, self._whole, seconds,
                                     self.plan["propagating"][-1], lambda each: slower * step(each))
        if now != chosen:
            self.decide(rounds=now, seconds=[step(each) if each in now else timed for each, timed in enumerate(known)])
            self._take(now)
            once(f"{self._said} now, by what steps have taken since")

    def _take(self, numbers: Sequence[int]) -> None:
        self.rounds, self.costs = [self._every[number] for number in numbers], self._whole.of(numbers)

    @property
    def _said(self) -> str:
        return f"{len(self.rounds)} round{'s' * (len(self.rounds) > 1)} of {self._names(self.rounds)}"

    def _names(self, rounds: Sequence[Round]) -> str:
        """Of these rounds' nets."""
        return " and ".join(self.new(net).name for net in dict.fromkeys(each.net for each in rounds))

    def _took(self, number: int) -> float:
        """Seconds of a step in a round that is over."""
        last = json.loads((self.folder(number) / "summary.json").read_text())
        seconds: float = last["seconds"] / last["steps"]
        return seconds

    def length(self, number: int) -> tuple[int | None, float | None]:
        """Steps of a round that begins, or goes on; for the first one of a run by the clock its minutes, of which the
        trainer makes steps."""
        decided = self.plan["steps"]
        if number == len(decided):
            if self.steps is not None:
                lengths = [each.length for each in self.rounds]
                ends = [int(self.steps * sum(lengths[:place]) / sum(lengths)) for place in (number, number + 1)]
                self.decide(steps=[*decided, max(1, ends[1] - ends[0])])
            elif not number:
                if not (self.folder(0) / "config.yaml").exists():
                    return None, max(self._seconds(0), 0.1) / 60  # a step at least
                self.over(0)  # killed before its end: its length is known
            else:
                self._choose_again(number, self._left)
                known = [self.plan["seconds"][self.plan["rounds"][each]] for each in (number, number - 1)]
                step = self._took(number - 1) * known[0] / known[1]
                self.decide(steps=[*decided, max(1, int(self._seconds(number) / step))])
        return self.plan["steps"][number], None

    def over(self, number: int) -> None:
        """Takes notice of the first round's steps, which its trainer has made of minutes."""
        if number == len(self.plan["steps"]):
            config = yaml.safe_load((self.folder(number) / "config.yaml").read_text())
            self.decide(steps=[*self.plan["steps"], int(config["steps"])])

    @property
    def _left(self) -> float:
        """Seconds of a run by the clock."""
        assert self.minutes is not None
        spent: float = self.plan["spent"] + time.perf_counter() - self._begun
        return 60 * self.minutes - spent

    def _seconds(self, number: int) -> float:
        """Those of what is left that a round has for its steps."""
        assert self.minutes is not None
        each = [self.plan["seconds"][place] for place in self.plan["rounds"]]
        costs = [this.length * seconds for this, seconds in zip(self.rounds, each, strict=True)]
        tables: float = self.plan["propagating"][-1] * sum(self.costs.tables(number))
        measuring: float = self.plan["measuring"] * sum(self.costs.images(number))
        left = max(0.0, self._left - 60 * self.minutes * LAST - tables - measuring)
        mine: float = left * costs[number] / sum(costs[number:])
        return mine
