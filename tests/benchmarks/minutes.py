"""The README's figure: accuracy from scratch against the minutes of a CPU core, of runs that were measured.

    python tests/benchmarks/minutes.py .github/minutes.png

CIFAR-10, 250 labels, test accuracy. `rapid`, by the clock of two cores that know bf16, whose minutes count twice: the
nets of the rounds and, last, the refitted head, of --minutes 60 and of 10 (recipes/rapid.py). The others, on one core:
recipes/fixmatch.py, of seeds 100 and 101, on an EPYC with bf16; recipes/finetune.py, and FixMatch of tiny_48, seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

SECONDS = ([56, 122, 195, 275, 355, 434, 610, 792, 973, 1156, 1808, 2201, 2584, 2978, 3363, 3537],
           [57, 138, 208, 299, 390, 482, 679, 859, 1045, 1223, 1862, 2237, 2607, 2989, 3366, 3533],
           [53, 128, 203, 288, 375, 463, 665, 841, 1019, 1202, 1815, 2203, 2589, 2982, 3369, 3533],
           [59, 135, 215, 305, 399, 496, 687, 896, 1095, 1298, 2039, 2488, 2936, 3371, 3536],
           [54, 128, 195, 287, 380, 470, 672, 888, 1078, 1291, 1945, 2424, 2886, 3358, 3519])
HOUR = ([50.7, 55.5, 59.5, 63.5, 65.0, 66.5, 69.0, 71.4, 73.2, 74.5, 76.2, 76.6, 78.1, 78.9, 80.1, 80.9],
        [53.0, 58.2, 60.8, 64.4, 66.1, 67.7, 70.3, 71.5, 73.7, 74.4, 75.6, 77.1, 77.8, 79.0, 80.0, 81.5],
        [49.6, 54.0, 57.5, 62.3, 64.4, 65.6, 67.9, 69.2, 70.4, 72.0, 73.9, 74.2, 75.4, 76.2, 77.4, 79.7],
        [49.8, 55.1, 58.2, 63.3, 65.3, 66.8, 68.2, 69.3, 71.0, 71.9, 76.0, 76.0, 77.2, 78.0, 80.2],
        [50.9, 55.7, 58.2, 62.6, 64.7, 65.9, 68.4, 69.5, 71.1, 72.3, 74.2, 75.5, 76.6, 77.7, 79.7])
"""Of --minutes 60, seeds 0 to 4, after each round and at the end; their rounds end at times of their own."""
TEN = [70.2, 69.8, 68.4, 69.5, 69.2]
"""Of --minutes 10, seeds 0 to 4, of since 52b31e9, by which steps are quicker; the hours are of before it."""
OTHERS = {"SimCLR, then FixMatch": [(79, 60.5)], "FixMatch of tiny_48": [(31, 47.6), (54, 52.5), (81, 56.4)],
          "labels alone": [(67, 49.5)], "FixMatch": [(8, 57.1)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    figure = Figure(figsize=(7, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="minutes of one CPU core", ylabel="test accuracy (%)")
    axes.set(xlim=(0, 150), ylim=(45, 85))
    axes.set_title("CIFAR-10, 250 labels, from scratch", loc="left", fontsize="medium")
    seconds = np.linspace(max(each[0] for each in SECONDS), min(each[-1] for each in SECONDS), 100)
    found = np.array([np.interp(seconds, *each) for each in zip(SECONDS, HOUR, strict=True)])
    mean, spread, when = found.mean(axis=0), found.std(axis=0, ddof=1), 2 * seconds / 60
    line, = axes.plot(when, mean)
    color, ends = line.get_color(), [each[-1] for each in HOUR]
    axes.fill_between(when, mean - spread, mean + spread, alpha=0.25, color=color, linewidth=0)
    axes.errorbar(when[-1], np.mean(ends), np.std(ends, ddof=1), marker="o", color=color)
    axes.annotate(f"rapid, two cores for an\nhour ({len(ends)} splits)", (when[-1], mean[-1]), (8, 0),
                  textcoords="offset points", va="center", color=color)
    axes.errorbar(20, np.mean(TEN), np.std(TEN, ddof=1), marker="o", color=color, mfc="white", zorder=3)
    axes.annotate(f"for 10 minutes\n({len(TEN)} splits)", (20, np.mean(TEN)), (-3, 8),
                  textcoords="offset points", ha="center", color=color)
    for name, points in OTHERS.items():
        line, = axes.plot(*zip(*points, strict=True), marker="s", markersize=4)
        axes.annotate(name, points[-1], (8, 0), textcoords="offset points", va="center", color=line.get_color())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(file)


if __name__ == "__main__":
    main()
