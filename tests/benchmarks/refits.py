"""What `ssl-lab train --calibrate N` gives: errors of the probabilities on test images, before and after.

    python tests/benchmarks/refits.py digits mnist --parts 5 --labels 40 --seeds 3 --steps 200

Printed for each seed: accuracy, the expected calibration error (%) at T = 1 and at the temperature of the refits, that
temperature, and in how many of 100 test images the set that promises 90% holds the right class, with its mean size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from ssl_lab.calibration import Calibration, prediction_sets
from ssl_lab.data import load
from ssl_lab.engine import Runtime
from ssl_lab.engine.evaluate import rates, tallies
from ssl_lab.refits import calibrate_by_refits, dealt
from ssl_lab.ways import Plan

SHOWN = ("accuracy", "ECE at T = 1", "ECE", "T", "covered of 90", "set size", "times as long")


def measured(data: str, method: str, labels: int, seed: int, steps: int, net: str, parts: int) -> list[float]:
    pool, runtime = load(data).split(labels=labels, seed=seed), Runtime.start("cpu")
    plan, begun = Plan("scratch", net, method), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        plan.fit(pool, runtime, seed, steps=steps, out=out, callbacks=[], evaluations=1)
        alone = time.process_time() - begun
        fit = partial(plan.fit, runtime=runtime, seed=seed)
        fitted = calibrate_by_refits(out, pool, dealt(pool, parts, seed), fit, runtime, steps)
        seconds = time.process_time() - begun
        with np.load(out / "predictions.npz") as found:
            logits, truth = found["test_logits"], found["test_truth"]
    before, after = (rates(tallies(each.probabilities(logits), truth)) for each in (Calibration(), fitted))
    least = fitted.threshold(0.9)
    assert least is not None
    sets = prediction_sets(fitted.probabilities(logits), least)
    return [100 * after["accuracy"], 100 * before["ece"], 100 * after["ece"], fitted.temperature,
            100 * sets[np.arange(len(truth)), truth].mean(), sets.sum(axis=1).mean(), seconds / alone]


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("data", nargs="+")
    for name, usual in (("parts", 5), ("labels", 40), ("seeds", 3), ("steps", 200)):
        flags.add_argument(f"--{name}", type=int, default=usual)
    flags.add_argument("--methods", default="supervised,fixmatch")
    flags.add_argument("--net", default="tiny_8")
    given = flags.parse_args()
    for data in given.data:
        for method in given.methods.split(","):
            rows = np.array([measured(data, method, given.labels, seed, given.steps, given.net, given.parts)
                             for seed in range(given.seeds)])
            for name, values in zip(SHOWN, rows.T, strict=True):
                print(f"{data} {method} {name}: {', '.join(f'{value:.3g}' for value in values)}; mean "
                      f"{values.mean():.3g}", flush=True)


if __name__ == "__main__":
    main()
