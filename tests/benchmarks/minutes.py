"""The README's figure: accuracy from scratch against the minutes of a CPU core, of runs that were measured.

    python tests/benchmarks/minutes.py .github/minutes.png

CIFAR-10, 250 labels, test accuracy. `rapid`: the nets of the rounds and, last, the refitted head, of which
recipes/rapid.py tells: 2,280 and 7,500 steps of seeds 0 to 4 on an NVIDIA H200; in minutes of one core of an Intel
Xeon, where 2,280 took 22.0 with all that is beside them. Operations of the longer run, and within a run, are taken to
last as long: no clock was read there. By the clock of two cores, whose minutes count twice: --minutes 60 (seed 0 on a
Xeon, 1 and 2 on an AMD EPYC, 3 and 4 on a slower one) and 10 (seeds 0 to 4, on the quicker EPYC), all with bf16; 60
(seed 0) and 10 (seeds 0 to 2) on an EPYC without. The others: on one core of a CPU (recipes/fixmatch.py,
recipes/finetune.py), seed 0; FixMatch with the net that it has by default now, of seeds 100 and 101, on an EPYC with
bf16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

SHORT = np.array([[54.7, 60.8, 63.1, 65.8, 68.0, 69.6, 70.4], [56.1, 60.9, 62.4, 65.3, 67.1, 68.3, 68.9],
                  [53.7, 58.3, 60.8, 64.4, 65.5, 66.7, 68.0], [53.8, 58.9, 62.0, 65.6, 67.4, 68.9, 69.4],
                  [54.9, 58.4, 61.2, 64.7, 66.8, 68.0, 69.1]])
WHOLE = np.array([[56.7, 62.5, 65.2, 67.6, 69.4, 70.7, 72.3, 73.5, 75.2, 75.7, 76.4, 77.4, 77.7, 78.1],
                  [56.2, 61.9, 64.2, 67.5, 69.3, 70.6, 72.5, 73.6, 74.5, 75.1, 75.8, 76.4, 76.9, 77.7],
                  [54.4, 59.6, 62.2, 65.6, 66.9, 68.5, 69.3, 70.5, 71.4, 72.0, 72.8, 73.6, 74.4, 74.3],
                  [56.1, 61.5, 64.8, 67.9, 69.8, 70.4, 73.1, 74.0, 75.3, 75.8, 76.3, 77.1, 77.5, 78.2],
                  [55.7, 59.7, 62.8, 66.4, 68.0, 69.0, 70.5, 71.9, 73.1, 74.2, 75.2, 75.8, 76.2, 76.2]])
STEPS = {"2,280 steps": (SHORT, [380] * 6), "7,500 steps": (WHOLE, [535] * 6 + [1072] + [535] * 6)}
TFLOP = np.array([0.0812] * 3 + [0.1184] * 3 + [0.2884] * 7)
"""Of a step of each round (`ladder.Costs`)."""
TABLES = np.array([0.0] + [13.0] * 6 + [32.4] * 6)
"""TFLOP of the features for labels before each round."""
MINUTES = 22.0  # of 2,280 steps
FAST_SECONDS = ([123, 272, 415, 592, 780, 953, 1543, 1859, 2168, 2487, 2810, 3123, 3428, 3481],
                [108, 238, 368, 529, 689, 853, 1453, 1785, 2128, 2460, 2788, 3129, 3453, 3516],
                [107, 240, 371, 541, 700, 857, 1442, 1778, 2109, 2443, 2787, 3124, 3456, 3519],
                [70, 148, 219, 315, 401, 492, 682, 900, 1115, 1338, 2060, 2538, 2977, 3475, 3557],
                [58, 125, 194, 273, 366, 452, 634, 828, 999, 1187, 1896, 2285, 2701, 3079, 3439, 3523])
FAST = ([55.7, 61.8, 64.2, 67.2, 68.8, 70.8, 72.8, 74.1, 74.8, 75.8, 76.5, 76.8, 77.0, 76.9],
        [57.9, 63.3, 64.7, 67.7, 69.4, 70.8, 72.3, 74.2, 74.7, 75.3, 75.8, 76.0, 76.4, 76.9],
        [55.8, 60.3, 62.6, 65.6, 67.2, 68.4, 70.6, 71.5, 72.2, 73.3, 73.9, 74.7, 75.0, 75.0],
        [51.6, 55.1, 57.9, 62.0, 63.5, 64.7, 66.6, 67.2, 68.6, 69.5, 71.0, 72.6, 73.2, 74.6, 76.0],
        [50.7, 53.9, 56.4, 59.7, 61.8, 63.0, 65.8, 67.3, 68.5, 69.6, 71.1, 72.3, 73.2, 73.7, 73.9, 74.4])
"""Of --minutes 60 with bf16, seeds 0 to 4, after each round and at the end; their rounds end at times of their own."""
HOUR = ([169, 334, 487, 689, 921, 1125, 1789, 2353, 2902, 3455, 3534],
        [52.3, 56.7, 59.0, 61.3, 62.8, 64.1, 67.3, 68.8, 69.5, 71.0, 71.7])  # seconds of two cores
TEN = [60.7, 58.7, 57.9]  # of --minutes 10, seeds 0 to 2
FAST_TEN = [69.8, 69.0, 67.3, 68.5, 67.6]  # seeds 0 to 4, with bf16
OTHERS = {"SimCLR, then FixMatch": [(79, 60.5)], "FixMatch of tiny_48": [(31, 47.6), (54, 52.5), (81, 56.4)],
          "labels alone": [(67, 49.5)], "FixMatch": [(8, 57.1)]}


def costs(steps: list[int]) -> np.ndarray:
    """TFLOP until the end of each round, and of the refitted head, which is as good as none."""
    done: np.ndarray = (TFLOP[: len(steps)] * steps + TABLES[: len(steps)]).cumsum()
    return np.append(done, done[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    figure = Figure(figsize=(7, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="minutes of one CPU core (of rapid unless named by the clock: by its operations)",
                              ylabel="test accuracy (%)")
    axes.set(xlim=(0, 180), ylim=(45, 83))
    axes.set_title("CIFAR-10, 250 labels, from scratch", loc="left", fontsize="medium")
    a_tflop = MINUTES / costs(STEPS["2,280 steps"][1])[-1]
    for name, (found, steps) in STEPS.items():
        mean, spread, when = found.mean(axis=0), found.std(axis=0, ddof=1), a_tflop * costs(steps)
        line, = axes.plot(when, mean, marker="o", markersize=4)
        axes.fill_between(when, mean - spread, mean + spread, alpha=0.25, color=line.get_color(), linewidth=0)
        axes.annotate(f"rapid, {name}\n(five splits)", (when[-1], mean[-1]), (8, 0) if len(steps) > 6 else (-14, 24),
                      textcoords="offset points", va="center", color=line.get_color())
    seconds = np.linspace(max(each[0] for each in FAST_SECONDS), min(each[-1] for each in FAST_SECONDS), 100)
    hour = np.array([np.interp(seconds, *each) for each in zip(FAST_SECONDS, FAST, strict=True)])
    mean, spread, when = hour.mean(axis=0), hour.std(axis=0, ddof=1), 2 * seconds / 60
    axes.plot(when, mean, color="black", linewidth=1)
    ends = [each[-1] for each in FAST]
    axes.errorbar(when[-1], np.mean(ends), np.std(ends, ddof=1), marker="D", markersize=4, color="black")
    axes.fill_between(when, mean - spread, mean + spread, alpha=0.2, color="black", linewidth=0)
    axes.annotate("by the clock of two cores with\nbf16: --minutes 60 (five splits), and 10", (78, 78), (-60, 4),
                  textcoords="offset points")
    axes.errorbar(20, np.mean(FAST_TEN), np.std(FAST_TEN, ddof=1), marker="D", markersize=5, color="black", mfc="white",
                  zorder=3)
    line, = axes.plot([2 * each / 60 for each in HOUR[0]], HOUR[1], marker="D", markersize=4)
    axes.annotate("by the clock of two\ncores without bf16:\n--minutes 60, and 10", (120, HOUR[1][-1]), (8, -14),
                  textcoords="offset points", va="center", color=line.get_color())
    axes.errorbar(20, np.mean(TEN), np.std(TEN, ddof=1), marker="D", markersize=4, color=line.get_color(), mfc="white")
    for name, points in OTHERS.items():
        line, = axes.plot(*zip(*points, strict=True), marker="s", markersize=4)
        aside = (24, -12) if points[-1][0] < 20 else (8, 0)  # clear of the lines that begin there
        axes.annotate(name, points[-1], aside, textcoords="offset points", va="center", color=line.get_color())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(file)


if __name__ == "__main__":
    main()
