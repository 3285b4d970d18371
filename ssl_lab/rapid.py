"""From scratch in minutes: the rounds of `rounds.Rounds` with their nets and their optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_lab import nets, rounds
from ssl_lab.data import Pool
from ssl_lab.engine import Runtime, ShowProgress, Trainer
from ssl_lab.features.embed import seconds_to_embed
from ssl_lab.ladder import LEAST, SMALL, Costs, Round, cropped
from ssl_lab.nets import Net
from ssl_lab.optim import MuonNormed, Optimizer, with_rates
from ssl_lab.optim import optimizer as optimizer_of
from ssl_lab.presets import up_and_down
from ssl_lab.schedule import Scalar, course, times
from ssl_lab.techniques import Technique, prepared


@dataclass(frozen=True)
class Rapid:
    """A wide and shallow net with whitened first filters, trained by Muon in short rounds.

    net: the name of it, or of any other net from scratch; auto: rapid_64_128_256, and by the clock, where its steps are
    quicker, rapid_32_64_128 before it or alone. grown: of the later rounds, where there is time for them; empty: none.
    lr, projector_lr: peaks of the learning rates of filters and projector in the first round. view: texts of views in
    place of the method's. optimizer: the text of another one. beginning: further arguments of `net`.
    """

    net: str = "auto"
    grown: str = "rapid_64_256_512"
    lr: Scalar = 0.08
    projector_lr: Scalar = 0.02
    view: Sequence[str] = ()
    optimizer: str | None = None
    beginning: Mapping[str, Any] = field(default_factory=dict)

    def worth(self, pool: Pool, runtime: Runtime, minutes: float) -> bool:
        """Whether the first round has enough steps in these minutes here, those of the smallest net."""
        net = self._net(pool, self._names[SMALL] or self.net, 0)
        costs = Costs(cropped(rounds.PAIR[:1], pool), lambda _: net, pool)
        an_operation = seconds_to_embed(net, pool, runtime) / costs.image(0)
        return LEAST * costs.step(0) * an_operation <= 60 * minutes

    def fit(self, pool: Pool, runtime: Runtime, out: Path, seed: int = 0, steps: int | None = None,
            minutes: float | None = None, resume: str | None = None, config: Mapping[str, Any] | None = None,
            **trainer: Any) -> tuple[Net, dict[str, Any]]:
        """Leaves a run in `out`; the net of its end, and what summary.json holds. See `Rounds.fit`.

        trainer: further arguments of the rounds' `Trainer`.
        """
        usual: dict[str, Any] = {"callbacks": [ShowProgress()]} | trainer
        names, techniques = self._names, trainer.get("techniques", ())

        def of_round(steps: int | None, minutes: float | None, folder: Path, this: Round) -> Trainer:
            return Trainer(optimizer=self._optimizer(this), seed=seed, steps=steps, minutes=minutes, out=folder,
                           resume="auto", config=config, **usual)

        pair, trio = ([each for each in some if names[each.net]] for some in (rounds.PAIR, rounds.TRIO))
        these = rounds.Rounds(out, lambda number: self._net(pool, names[number], seed, techniques), of_round, pair,
                              trio if names[SMALL] else (), steps, minutes, self.view, seed, not usual["callbacks"],
                              config or {})
        return these.fit(pool, runtime, resume is not None)

    @property
    def _names(self) -> tuple[str, str, str]:
        """Of the nets: FIRST, GROWN and SMALL; empty: none."""
        return ("rapid_64_128_256", self.grown, "rapid_32_64_128") if self.net == "auto" else (self.net, self.grown, "")

    def _net(self, pool: Pool, name: str, seed: int, techniques: Sequence[Technique | str] = ()) -> Net:
        whiten = ("whiten",) if name.startswith("rapid_") else ()
        net = nets.net(name, pool.class_names, pool.style, **{"seed": seed, **self.beginning})
        return prepared(net, [*whiten, *techniques], pool, seed)

    def _optimizer(self, this: Round) -> Optimizer:
        filters, projector = (times(course(rate, up_and_down), this.peak) for rate in (self.lr, self.projector_lr))
        usual: Optimizer = MuonNormed(lr=filters)
        return optimizer_of(self.optimizer, with_rates(usual, {"projector": projector}) if this.contrast else usual)
