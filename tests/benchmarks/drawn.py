"""What coverage queries lose where drawn rows stand for all: the value of what they maximize, and a probe's accuracy.

    python tests/benchmarks/drawn.py --data mnist --features FOLDER/features.npy --most 50000,10000,5000

features: float [images, D], a row for each image of the data. Of --rows training images drawn by the seed, --initial
have labels; each query chooses --budget more, of which --most are compared with each other. The value is over all
rows; share: of the way to the value of the query on all rows from that of as many random picks. The probe's strength is
fixed.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np
import torch

import ssl_lab as sl
from ssl_lab import texts
from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries.base import PoolView
from ssl_lab.active.queries.coverage import gaussian
from ssl_lab.active.queries.facility_location import FacilityLocation
from ssl_lab.active.queries.uncertainty_herding import adapted_radius, adapted_temperature, margins
from ssl_lab.features.probe import probe_weights
from ssl_lab.features.search import unit

L2 = 0.01


def softmax(logits):
    return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32)).softmax(-1).numpy()


def value(name, x, view, labeled, picks, seed):
    """What a query maximizes, over all rows: the mean of weight * the highest similarity to a labeled or chosen row."""
    similarity, weight = partial(gaussian, sigma=1.0), np.ones(len(x))
    if name == "facility_location":
        similarity = FacilityLocation().similarity
    if name == "uncertainty_herding":
        similarity = partial(gaussian, sigma=adapted_radius(x[labeled], seed))
        weight = margins(view.probs, adapted_temperature(x[labeled], view.labels[labeled], view.probs) or 1.0)
        weight[labeled] = 0
    centers = x[np.append(labeled, picks)]
    parts = [similarity(x[start : start + 4096] @ centers.T).max(axis=1) for start in range(0, len(x), 4096)]
    return float((weight * np.concatenate(parts)).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--features", required=True)
    parser.add_argument("--queries", default="max_herding,facility_location,uncertainty_herding")
    parser.add_argument("--most", default="50000,10000,5000", help="falling; the first is all rows")
    for name, default in (("rows", 50_000), ("initial", 10), ("budget", 40), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    pool, features = sl.load(options.data), np.load(options.features, mmap_mode="r")
    tested = unit(features[pool.test])
    for name in texts.split(options.queries):
        found = {}
        for seed in range(options.seeds):
            rows = np.sort(np.random.default_rng(seed).permutation(pool.train)[: options.rows])
            x, truth = unit(features[rows]), pool.truth[rows]
            labels = np.full(len(rows), -1)
            labeled = np.sort(np.random.default_rng(1000 + seed).permutation(len(rows))[: options.initial])
            labels[labeled] = truth[labeled]

            def probe(labels, x=x):
                return probe_weights(x, labels, pool.classes, l2=L2)

            weights = probe(labels)
            view = PoolView(labels, embeddings=x, probs=softmax(x @ weights[:, :-1].T + weights[:, -1]))
            for most in ["random", *map(int, options.most.split(","))]:
                query = make_query("random" if most == "random" else f"{name}(most={most})")
                began = time.process_time()
                picks = query(view, options.budget, seed)
                seconds = time.process_time() - began
                known = labels.copy()
                known[picks] = truth[picks]
                weights = probe(known)
                right = (tested @ weights[:, :-1].T + weights[:, -1]).argmax(axis=1) == pool.truth[pool.test]
                found.setdefault(most, []).append((value(name, x, view, labeled, picks, seed), 100 * right.mean(),
                                                   seconds))
        table = {most: np.array(each) for most, each in found.items()}
        chance, best = table["random"][:, 0], table[int(options.most.split(",")[0])][:, 0]
        for most, each in table.items():
            share = (each[:, 0] - chance) / (best - chance)
            print(f"{name:20} {most!s:>7}: value {each[:, 0].mean():.4f}, share {share.mean():.3f} (least "
                  f"{share.min():.3f}), probe {each[:, 1].mean():.1f} ± {each[:, 1].std(ddof=1):.1f}, "
                  f"{each[:, 2].mean():.1f} CPU s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
