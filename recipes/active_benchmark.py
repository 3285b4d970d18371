"""Active-learning strategies side by side, on equal initial sets, with intervals, tests and labeling efficiency.

    python recipes/active_benchmark.py --data mnist --queries margin,badge,typiclust --seeds 5 --initial 10 \\
        --final 110 --batches 20 --steps 300 --processes 2
    python recipes/active_benchmark.py --data mnist --queries typiclust,prob_cover --trainers fixmatch --initial 0 \\
        --final 10 --batches 10 --weights simclr.safetensors --seeds 3 --steps 1000

The second is a cold start: from no label to ten, chosen by the embeddings of a backbone. The same command goes on where
it was stopped, and adds what is missing; `ssl_lab/active/benchmark.py` has the settings.
"""

import ssl_lab as sl
from ssl_lab.active.benchmark import Benchmark, cells_of, run_cells
from ssl_lab.active.show import show_benchmark

Settings = Benchmark


def main(settings: Settings) -> None:
    cells = cells_of(settings)
    results = run_cells(settings, cells)
    variants = [f"{settings.duplicates} copies of each training image" if settings.duplicates > 1 else "",
                f"classes imbalanced by {settings.imbalance:g}" if settings.imbalance else "",
                f"{settings.noise:.0%} wrong answers" if settings.noise else "",
                f"embeddings of a backbone ({settings.weights or settings.backbone or settings.net})"
                if settings.embeddings == "backbone" or not settings.initial else ""]
    about = (f"{settings.data}, {settings.net}, {settings.steps} steps a round, from {settings.initial} to "
             f"{settings.final} labels" + "".join(f"; {variant}" for variant in variants if variant))
    show_benchmark(results, about, settings.out)


if __name__ == "__main__":
    sl.launch(main, Settings)
