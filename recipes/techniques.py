"""What is each technique worth? One recipe with and without each, on the same splits and seeds; one table, one page.

    python recipes/techniques.py --recipe fixmatch --data mnist --labels 40 --steps 500 --seeds 3
    python recipes/techniques.py --recipe supervised --base view strong --data mnist --labels 40 --steps 500 \\
        --try sam --try swa --try lookahead --try lr=0.1 --workers 2

--try names what is tried: techniques (see `ssl-lab list techniques`) and settings of the recipe as NAME=VALUE, together
by `+`; `all` is each technique for accuracy alone. The difference is paired by seed, its interval is Student's, and
with fewer than 3 seeds nothing is ranked. Test images judge; they choose no setting. Each run is a process of the
recipe with a folder of its own in --out: finished ones are kept and cut ones resumed, so the same command goes on where
it stopped.

The second command, 2 min 21 s on two cores of an Intel Xeon: the base has 86.1 ± 0.8%; lr=0.1 adds 2.1 ± 2.1 points,
swa 0.5 ± 1.4, sam 0.1 ± 3.0 (at 1.7 times the cost), lookahead -3.1 ± 3.0: corrected for four comparisons, none can be
told from nothing, as three seeds find 3.9 points in four of five cases. The first one, 35 seconds of one core
for a plain run: FixMatch has 95.8 ± 0.8%, of 33 techniques none helped beyond doubt, and `replicated_sgd`, `drop_path`,
`svi` and `entropy_sgd` did harm, before they were mended. On CIFAR-10 with 250 labels FixMatch of tiny_16 has 35.5 ±
1.1% after as many steps, and nine techniques cannot be told from nothing. All rows are in tests/benchmarks/README.md.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

import ssl_lab as sl
from ssl_lab.config import Texts, may_run
from ssl_lab.texts import as_file_name
from ssl_lab.workers import workers_of

HERE = Path(__file__).parent


@dataclass
class Settings(sl.Settings):
    out: Path = Path("runs/techniques")
    """Folder of all runs, a folder each, and of the report."""
    recipe: Literal["fixmatch", "supervised", "consistency", "openset", "finetune", "distill"] = "fixmatch"
    """The base. Where --with is given too, it is part of the base."""
    net: str = ""
    """Net of the base (see `ssl-lab list nets`; default: the recipe's)."""
    base: dict[str, str] = field(default_factory=dict)
    """Further settings of the base: NAME VALUE, as often as you like."""
    tried: Annotated[Texts, tyro.conf.arg(name="try")] = may_run((), ":")  # noqa: RUF009 - it is a field
    """What is tried beside it, any number of times (default: all)."""
    seeds: int = 3
    """Runs of each: seeds 0 and up of split, initial weights and training."""
    workers: str = "1"
    """Runs at a time on this machine, slurm or ray (see `ssl_lab/workers.py`)."""


def main(settings: Settings) -> None:
    if settings.steps is None:
        raise sl.UsageError("techniques are compared at equal steps, of different times: give --steps, not --minutes")
    if min(settings.seeds, settings.steps) < 1:
        raise sl.UsageError(f"seeds={settings.seeds}, steps={settings.steps}: both must be positive")
    arms, study, jobs = sl.arms, sl.study, sl.engine.jobs
    workers = workers_of(settings.workers, settings.out)
    tried, seeds = arms.arms(settings.tried or ["all"]), range(settings.seeds)
    usual, given = sl.Settings().plain(), settings.plain()
    own = {"out", "resume", "net"}
    shared = {name: given[name] for name in usual if name not in own and given[name] != usual[name]}
    shared |= {"net": settings.net} if settings.net else {}
    shared |= {name.replace("-", "_"): arms.value(text) for name, text in settings.base.items()}

    def job(arm: arms.Arm, seed: int = 0) -> jobs.Job:
        chosen = {**shared, "techniques": [*settings.techniques, *arm.techniques], **arm.settings, "seed": seed}
        if isinstance(chosen.get("view"), str):
            chosen["view"] = [chosen["view"]]
        flags = {"with": chosen["techniques"],  # these may name modules, which no file of settings may
                 **{key: chosen[key] for key in ("view", "optimizer", "method") if chosen.get(key)}}
        out = settings.out / f"{as_file_name(arm.text)}-{seed}"
        return jobs.Job(HERE / f"{settings.recipe}.py", chosen, out, flags)

    tried, refused = arms.allowed(tried, job, arms.check_texts_of)
    pool = sl.load(settings.data, **settings.reading())
    sl.announce(pool)
    sl.data.inventory.require_same(settings.out, pool, f"the runs in {settings.out} are of")
    tried, unable = arms.allowed(tried, job, partial(arms.check_run_of, pool))
    base, *runs = [sl.comparison.Runs(arm.text, [job(arm, seed) for seed in seeds]) for arm in (arms.BASE, *tried)]
    failed = jobs.run_all([each.jobs[seed] for seed in seeds for each in (base, *runs)], workers)
    score = "test_balanced_accuracy" if settings.imbalance is not None else "test_accuracy"
    study.show(f"{settings.recipe} on {pool.name}, {settings.steps:,} steps, {settings.seeds} seeds", base,
               [study.worth(arm, each, base, score) for arm, each in zip(tried, runs, strict=True)],
               [*refused, *unable, *failed], settings.out, score)


if __name__ == "__main__":
    sl.launch(main, Settings)
