"""Active-learning strategies side by side, on equal initial sets, with intervals, tests and labeling efficiency.

    python recipes/active_benchmark.py --data mnist --queries margin,badge,typiclust --seeds 5 --initial 10 \\
        --final 110 --batches 20 --steps 300 --workers 2
    python recipes/active_benchmark.py --data mnist --queries typiclust,prob_cover --trainers fixmatch --initial 0 \\
        --final 10 --batches 10 --weights simclr.safetensors --seeds 3 --steps 1000

The second is a cold start: from no label to ten, chosen by the embeddings of a backbone. The same command goes on where
it was stopped, and adds what is missing; `ssl_lab/active/study/benchmark.py` has the settings.

MNIST, from 10 to 110 labels (`--queries margin,entropy,badge,cluster_margin,k_center,typiclust`; 27 minutes each on a
busy core of an AMD EPYC), area under the curve (%), 95% interval over seeds, and accuracy with 110 labels. Supervised,
5 seeds, --batches 25 --steps 200: typiclust 69.4 ± 2.9, 86.0; badge 68.3 ± 4.8, 82.9; margin 68.1 ± 3.2, 84.7;
cluster_margin 66.9 ± 4.4, 83.9; random 65.5 ± 5.6, 80.1; k_center 58.3 ± 5.2, 71.1; entropy 50.6 ± 5.0, 56.7. FixMatch,
3 seeds, --batches 50 --steps 200: typiclust 74.8 ± 9.3, 91.5; badge 74.5 ± 7.9, 93.5; random 74.4 ± 7.7, 91.2;
cluster_margin 74.2 ± 17.1, 90.8; margin 73.1 ± 2.5, 90.5; k_center 64.6 ± 9.7, 82.1; entropy 56.9 ± 17.0, 68.1. So none
is better than random beyond doubt; worse are entropy (supervised, p = 0.035) and k_center (FixMatch, p = 0.014).

Cold start, 10 labels, SimCLR's features (10 minutes of recipes/pretrain.py), FixMatch, seeds 0 to 2: typiclust 74.7 ±
5.4%, random 47.5 ± 13.1%, prob_cover by the paper's radius 11.4 ± 0.0%: that comes of k-means clusters, which touch
each other here, so that it is tiny, and all ten picks are ones, the densest digit. The radius of now was measured by
linear probes alone (`ssl_lab/active/queries/coverage.py`).
"""

import ssl_lab as sl
from ssl_lab.active_settings import Benchmark

Settings = Benchmark


def main(settings: Settings) -> None:
    study = sl.active.study
    results = study.benchmark.run_cells(settings, study.benchmark.cells_of(settings))
    variants = [f"{settings.duplicates} copies of each training image" if settings.duplicates > 1 else "",
                f"classes imbalanced by {settings.imbalance:g}" if settings.imbalance else "",
                f"{settings.noise:.0%} wrong answers" if settings.noise else "",
                f"embeddings of a backbone ({settings.weights or settings.backbone or settings.net})"
                if settings.embeddings == "backbone" or not settings.initial else ""]
    about = (f"{settings.data}, {settings.net}, {settings.steps} steps a round, from {settings.initial} to "
             f"{settings.final} labels" + "".join(f"; {variant}" for variant in variants if variant))
    study.show.show_benchmark(results, about, settings.out)


if __name__ == "__main__":
    sl.launch(main, Settings)
