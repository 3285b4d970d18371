"""The README's figure: accuracy from scratch against the minutes of a CPU core, of runs that were measured.

    python tests/benchmarks/minutes.py .github/minutes.png

CIFAR-10, 250 labels, test accuracy. `rapid`: the nets of six rounds and, last, the refitted head, of which
recipes/rapid.py tells: 2,280 steps of seeds 0 to 4, and 5,432 of seed 0, on an NVIDIA H200; in minutes of one core of
an Intel Xeon, where 2,280 took 22.0 with all that is beside them. Steps of the longer run are taken to last as long,
and rounds to share the time by the operations of their steps, (24 / 20)^2 as many at 24 px as at 20: no clock was read
at the rounds' ends. The others: seed 0, on one core of a CPU (recipes/fixmatch.py, recipes/finetune.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROUNDS = np.array([[54.7, 60.8, 63.1, 65.8, 68.0, 69.6, 70.4], [56.1, 60.9, 62.4, 65.3, 67.1, 68.3, 68.9],
                   [53.7, 58.3, 60.8, 64.4, 65.5, 66.7, 68.0], [53.8, 58.9, 62.0, 65.6, 67.4, 68.9, 69.4],
                   [54.9, 58.4, 61.2, 64.7, 66.8, 68.0, 69.1]])
LONGER = np.array([57.8, 64.4, 67.1, 70.5, 72.5, 73.6, 73.9])
STEPS, MORE = 2280, 5432
MINUTES = 22.0  # of the first
OTHERS = {"SimCLR, then FixMatch": [(79, 60.5)], "FixMatch": [(31, 47.6), (54, 52.5), (81, 56.4)],
          "labels alone": [(67, 49.5)]}


def ends(steps: int) -> np.ndarray:
    """When each round is over, and the head refitted, at the end of the last."""
    costs = np.array([1, 1, 1, 1.44, 1.44, 1.44, 0])
    return MINUTES * steps / STEPS * costs.cumsum() / costs.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    figure = Figure(figsize=(7, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="minutes of one CPU core (of rapid: by its steps)", ylabel="test accuracy (%)")
    axes.set(xlim=(0, 112), ylim=(45, 77))
    axes.set_title("CIFAR-10, 250 labels, from scratch", loc="left", fontsize="medium")
    mean, spread = ROUNDS.mean(axis=0), ROUNDS.std(axis=0, ddof=1)
    line, = axes.plot(ends(STEPS), mean, marker="o", markersize=4)
    axes.fill_between(ends(STEPS), mean - spread, mean + spread, alpha=0.25, color=line.get_color(), linewidth=0)
    axes.annotate(f"rapid, {STEPS:,} steps\n(five splits)", (ends(STEPS)[-1], mean[-1]), (6, -14),
                  textcoords="offset points", va="top", color=line.get_color())
    line, = axes.plot(ends(MORE), LONGER, marker="o", markersize=4)
    axes.annotate(f"rapid, {MORE:,} steps", (ends(MORE)[-1], LONGER[-1]), (8, 0), textcoords="offset points",
                  va="center", color=line.get_color())
    for name, points in OTHERS.items():
        line, = axes.plot(*zip(*points, strict=True), marker="s", markersize=4)
        axes.annotate(name, points[-1], (8, 0), textcoords="offset points", va="center", color=line.get_color())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(file)


if __name__ == "__main__":
    main()
