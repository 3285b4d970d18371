"""Methods side by side: the same splits, initial weights and length, one table and one report.

    python recipes/compare.py --methods fixmatch,flexmatch,mixmatch --data mnist --labels 40 --seeds 3 --minutes 3
    python recipes/compare.py --methods all --data mnist --labels 40 --seeds 2 --steps 1000 --processes 2

Each run is a process of recipes/consistency.py with a folder of its own in --out. Finished ones are kept and cut ones
resumed, so the same command goes on where it stopped; with more methods or seeds it adds what is missing. The
supervised baseline is always there, and tuned: the best of two views and three learning rates by validation images
(and their labels) of another split, which no method gets. The methods are not tuned (see `ssl_lab/presets.py`).

MNIST, 40 labels, 1,000 steps (the second command; 21 seconds supervised, 41 to 312 with unlabeled images and 855 with
exemplars, on one crowded core of an AMD EPYC), test accuracy (%), mean ± standard deviation over seeds 0 and 1: abc
98.7 ± 0.2, comatch 98.6 ± 0.3, simmatch 98.4 ± 0.0, remixmatch 98.3 ± 0.1, adamatch 98.1 ± 0.0, freematch 98.1 ± 0.2,
uda 98.1 ± 0.5, flexmatch 98.0 ± 0.0, darp 98.0 ± 0.0, fixmatch 98.0 ± 0.2, softmatch 97.9 ± 0.0, hiermatch 97.9 ±
0.2, reference_prior 97.8 ± 0.1, defixmatch 97.4 ± 0.3, mixmatch 97.1 ± 0.2, dash 95.7 ± 3.4, pi_model 94.2 ± 0.7,
pseudo_label 92.5 ± 0.8, s4l_exemplar 90.6 ± 0.9, supervised (strong view, learning rate 0.1) 89.7 ± 0.8; no better
than that: noisy_student 89.7 ± 3.2, vat 89.1 ± 0.9, ict 79.8 ± 0.7, temporal_ensembling 78.5 ± 3.3, mean_teacher 71.1
± 0.3, s4l 64.6 ± 2.4. All these but noisy_student see weak views alone; the baseline was tuned to strong ones.

CIFAR-10, 250 labels (`--methods fixmatch,mean_teacher,mixmatch,uda,flexmatch,freematch --seeds 1 --steps 2000 --net
tiny_48`, 15 to 27 minutes each there), one seed: mixmatch 44.2, freematch 43.6, supervised (tuned) 42.0, uda 42.0,
flexmatch 42.0, fixmatch 40.9, mean_teacher 36.0. So few steps are too few; see recipes/fixmatch.py for three times as
many.

Long-tailed MNIST (`--methods fixmatch,abc,darp --labels 200 --imbalance 100 --seeds 3 --steps 600`), balanced
accuracy over 3 seeds: abc 78.9 ± 4.7, darp 77.9 ± 2.0, fixmatch 76.0 ± 3.3, supervised (tuned: weak view) 73.5 ± 2.8.
Seeds differ more than methods: seed by seed abc is ahead of FixMatch by 2.8, 0.8 and 5.2, darp by 0.6, 3.3 and 1.9.
"""

import itertools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import ssl_lab as sl
from ssl_lab import comparison

HERE = Path(__file__).parent
GRID = list(itertools.product(("weak", "strong"), (0.01, 0.03, 0.1)))  # the baseline's view and learning rate
TUNING_SEED = 1000  # of the split on which it is tuned


@dataclass
class Settings(sl.Settings):
    methods: str = "fixmatch,flexmatch,freematch"
    """Names, separated by commas, or `all` consistency methods."""
    seeds: int = 3
    """Runs of each method: seeds 0 and up of split, initial weights and training."""
    processes: int = 1
    """Runs at a time. With several, give --steps: they would disturb each other's clocks."""
    preset: Literal["auto", "paper", "short"] = "auto"
    """Where the methods' settings come from; see recipes/consistency.py."""


def main(settings: Settings) -> None:
    consistency = [name for name, method in sl.methods.METHODS.items()
                   if method.family == "consistency" and name != "opencos"]  # which needs recipes/openset.py
    names = consistency if settings.methods == "all" else settings.methods.split(",")
    for name in names:
        sl.methods.get(name)
    if settings.processes > 1 and settings.minutes is not None:
        raise sl.UsageError(f"--minutes {settings.minutes} with --processes {settings.processes}: runs beside each "
                            "other would each get less of the machine; give --steps")
    pool = sl.load(settings.data, settings.data_dir, settings.image_size)
    shared = {field.name: settings.plain()[field.name] for field in fields(sl.Settings)}

    def job(recipe: str, name: str, **changes: object) -> comparison.Job:
        return comparison.Job(HERE / f"{recipe}.py", shared | changes, settings.out / name)

    tuning = [job("supervised", f"tuning/{view}-{lr}", view=view, lr=lr, seed=TUNING_SEED,
                  valid=min(1000, len(pool.train) // 5)) for view, lr in GRID]
    failed = comparison.run_all(tuning, settings.processes)
    best = comparison.best(tuning, "valid_accuracy")
    view, lr = best.settings["view"], best.settings["lr"]

    seeds = range(settings.seeds)
    supervised = [job("supervised", f"supervised-{seed}", view=view, lr=lr, seed=seed) for seed in seeds]
    jobs = {name: [job("consistency", f"{name}-{seed}", method=name, preset=settings.preset, seed=seed)
                   for seed in seeds] for name in names}
    by_seed = [each for runs in zip(supervised, *jobs.values(), strict=True) for each in runs]
    failed += comparison.run_all(by_seed, settings.processes)
    note = (f"The baseline is cross-entropy on the labeled images under the {view} view with a learning rate of {lr}, "
            f"the best of {len(GRID)} settings by {best.settings['valid']} validation images of another split.")
    if settings.imbalance is not None:
        note = f"The largest class has {settings.imbalance:g} times the training images of the smallest. {note}"
    comparison.show(pool, comparison.Runs("supervised", supervised),
                    [comparison.Runs(name, runs) for name, runs in jobs.items()], [note, *failed], settings.out,
                    balanced=settings.imbalance is not None)


if __name__ == "__main__":
    sl.launch(main, Settings)
