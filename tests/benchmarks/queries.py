"""Queries on frozen features, by the accuracy of a linear probe: a first look in minutes, where training takes hours.

    python tests/benchmarks/queries.py --data mnist --queries random,margin,badge,drop_query
    python tests/benchmarks/queries.py --data cifar10 --features FOLDER/features.npy --queries random,badge

features: float [images, D], a row for each image of the data; default: pixels. From --initial to --final labels in
rounds of --batch, of --rows training images drawn by the seed; the probe's strength is fixed, so that nothing is
chosen. mc_probs drop the probe's input as the loop does; view_probs, of pixels alone, are of weak views.
"""

import argparse
import sys

import numpy as np
import torch

import ssl_lab as sl
from ssl_lab import texts
from ssl_lab.active.arrays import DROPOUT, SAMPLES, VIEWS
from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries.view import PoolView
from ssl_lab.active.study.statistics import area, paired_t
from ssl_lab.batch import At
from ssl_lab.features.probe import probe_weights
from ssl_lab.features.search import unit
from ssl_lab.intervals import half_width
from ssl_lab.seeds import generator
from ssl_lab.views import Weak

L2 = 0.01


def softmax(logits):
    return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32)).softmax(-1).numpy()


def arrays(needs, x, weights, views, seed):
    w, b = weights[:, :-1], weights[:, -1]
    found = {"embeddings": x, "probs": softmax(x @ w.T + b), "head_weight": w, "head_bias": b}
    if "mc_probs" in needs:
        masks = (torch.rand(SAMPLES, x.shape[1], generator=generator(seed, "mc_dropout")) >= DROPOUT).numpy()
        found["mc_probs"] = softmax(np.stack([x @ (w * mask / (1 - DROPOUT)).T + b for mask in masks], axis=1))
    if "view_probs" in needs:
        found["view_probs"] = softmax(np.stack([part @ w.T + b for part in (x, *views)], axis=1))
    return {name: found[name] for name in needs}


def curve(pool, features, query, seed, options):
    train, test = pool.train, pool.test
    rows = np.sort(np.random.default_rng(seed).permutation(train)[: options.rows])
    x, truth = unit(features[rows]), pool.truth[rows]
    views = []
    if "view_probs" in query.needs:
        images = pool.images.take(rows)
        views = [unit(Weak(pool.style)(images, At(number, 10, seed).draw("view", len(rows))).numpy()
                      .reshape(len(rows), -1).astype(np.float32)) for number in range(VIEWS)]
    labels = np.full(len(rows), -1)
    start = np.random.default_rng(1000 + seed).permutation(len(rows))[: options.initial]
    labels[start] = truth[start]
    counts, accuracy = [], []
    while True:
        weights = probe_weights(x, labels, pool.classes, l2=L2)
        tested = unit(features[test]) @ weights[:, :-1].T + weights[:, -1]
        counts.append(int((labels >= 0).sum()))
        accuracy.append(float((tested.argmax(axis=1) == pool.truth[test]).mean()))
        if counts[-1] >= options.final:
            return counts, accuracy
        ids = query(PoolView(labels, **arrays(query.needs, x, weights, views, counts[-1])), options.batch, seed)
        labels[ids] = truth[ids]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--features")
    parser.add_argument("--queries", default="random,margin,badge,typiclust")
    for name, default in (("rows", 4000), ("initial", 10), ("final", 110), ("batch", 25), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    pool = sl.load(options.data)
    if options.features:
        features = np.load(options.features, mmap_mode="r")
    else:
        features = pool.images.take(np.arange(len(pool))).numpy().reshape(len(pool), -1).astype(np.float32)
    areas = {}
    for name in texts.split(options.queries):
        curves = [curve(pool, features, make_query(name), seed, options) for seed in range(options.seeds)]
        accuracy = np.array([each for _, each in curves])
        areas[name] = 100 * area(np.array(curves[0][0], dtype=np.float64), accuracy)
        base = areas.get("random") if name != "random" else None
        test = None if base is None else paired_t(areas[name], base)
        against = f"  vs random {test.difference:+.1f} ± {test.half_width:.1f}" if test else ""
        print(f"{name:32} area {areas[name].mean():.1f} ± {half_width(areas[name]):.1f}  last "
              f"{100 * accuracy[:, -1].mean():.1f} ± {half_width(100 * accuracy[:, -1]):.1f}{against}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
