"""Methods side by side: the same splits, initial weights and length, one table and one report.

    python recipes/compare.py --methods fixmatch,flexmatch,mixmatch --data mnist --labels 40 --seeds 3 --minutes 3
    python recipes/compare.py --methods "fixmatch(threshold=0.7),fixmatch,mypackage.soft:Soft" --labels 40 --steps 1000
    python recipes/compare.py --methods all --data mnist --labels 40 --seeds 2 --steps 1000 --workers 2

Each run is a process of recipes/consistency.py with a folder of its own in --out. Finished ones are kept and cut ones
resumed, so the same command goes on where it stopped; with more methods or seeds it adds what is missing. The
supervised baseline is always there, and tuned: the best of two views and three learning rates by validation images (and
their labels) of another split, which no method gets; where one of these runs fails, the comparison stops. The methods
are not tuned (see `ssl_lab/presets.py`).

MNIST, 40 labels, 1,000 steps, test accuracy (%) over seeds 0 and 1, 41 to 312 seconds each on one crowded core: comatch
98.8 ± 0.2, abc 98.7 ± 0.2, simmatch 98.3 ± 0.1, ... fixmatch 98.0 ± 0.2, ... supervised, tuned, 89.7 ± 0.8 (21 s).
`tests/benchmarks/README.md` has all of it, CIFAR-10, and long-tailed MNIST.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import may_run
from ssl_lab.texts import as_file_name
from ssl_lab.workers import workers_of

HERE = Path(__file__).parent
GRID = list(itertools.product(("weak", "strong"), (0.01, 0.03, 0.1)))  # the baseline's view and learning rate
TUNING_SEED = 1000  # of the split on which it is tuned


@dataclass
class Settings(sl.Settings):
    out: Path = Path("runs/compare")
    """Folder of all runs, a folder each, and of the report."""
    methods: str = may_run("fixmatch,flexmatch,freematch", ":")
    """Names, separated by commas, or `all` consistency methods; the supervised baseline is always there. A method may
    have arguments, and several times other ones, or be package.module:MyMethod (not in a --config file)."""
    seeds: int = 3
    """Runs of each method: seeds 0 and up of split, initial weights and training."""
    workers: str = "1"
    """Runs at a time on this machine, slurm or ray (see `ssl_lab/workers.py`). With several, give --steps."""
    preset: Literal["auto", "paper", "short"] = "auto"
    """Where the methods' settings come from; auto: by the number of steps (see recipes/consistency.py)."""


def main(settings: Settings) -> None:
    workers = workers_of(settings.workers, settings.out)
    comparison, jobs = sl.comparison, sl.engine.jobs
    names = comparison.chosen(settings, settings.methods, settings.seeds, workers)
    pool = sl.load(settings.data, **settings.reading())
    sl.announce(pool)
    if not (pool.truth[pool.test] >= 0).any():
        raise sl.UsageError(f"{settings.data} has no test image with a label, and methods are compared by them; an "
                            ".npz file gives them as test_images and test_labels")
    sl.data.inventory.require_same(settings.out, pool, f"the runs in {settings.out} are of")
    shared = {field.name: settings.plain()[field.name] for field in fields(sl.Settings)}

    def job(recipe: str, name: str, view: Sequence[str], method: str | None = None, **changes: object) -> jobs.Job:
        given = ({} if method is None else {"method": method}) | ({"view": list(view)} if view else {})
        flags = {**given, "with": settings.techniques, "optimizer": settings.optimizer or ()}
        return jobs.Job(HERE / f"{recipe}.py", shared | changes | given, settings.out / name, flags=flags)

    valid = comparison.validation_images(pool, settings)
    kind = sl.presets.kind_for(settings.steps) if settings.preset == "auto" else settings.preset
    names, seeds = comparison.able(settings, pool, names, settings.seeds, kind), range(settings.seeds)
    methods = {name: [job("consistency", f"{as_file_name(name)}-{seed}", settings.view, name, seed=seed,
                          preset=kind) for seed in seeds] for name in names}
    views = {each.partition("=")[0].strip(): each.partition("=")[2].strip() for each in settings.view}
    grid = [(views.get(name, name), lr) for name, lr in GRID]
    tuning = [job("supervised", f"tuning/{as_file_name(view)}-{lr}", [view], lr=lr, seed=TUNING_SEED, valid=valid)
              for view, lr in grid]
    failed = comparison.tune(tuning, workers, then=itertools.chain(*methods.values()))
    best = jobs.best(tuning, "valid_accuracy")
    (view,), lr = best.settings["view"], best.settings["lr"]

    supervised = [job("supervised", f"supervised-{seed}", [view], lr=lr, seed=seed) for seed in seeds]
    by_seed = [each for runs in zip(supervised, *methods.values(), strict=True) for each in runs]
    failed += jobs.run_all(by_seed, workers)
    note = (f"The baseline is cross-entropy on the labeled images under the {view} view with a learning rate of {lr}, "
            f"the best of {len(grid)} settings by {best.settings['valid']} validation images of another split.")
    if settings.imbalance is not None:
        note = f"The largest class has {settings.imbalance:g} times the training images of the smallest. {note}"
    comparison.show(pool, comparison.Runs("supervised", supervised),
                    [comparison.Runs(name, runs) for name, runs in methods.items()], [note, *failed], settings.out,
                    balanced=settings.imbalance is not None)


if __name__ == "__main__":
    sl.launch(main, Settings)
