"""Is the accuracy that stop advice estimates the test accuracy, and does its interval hold it in 95% of cases?

    python tests/benchmarks/stopping.py --data mnist
    python tests/benchmarks/stopping.py --data digits

Rounds of active learning on pixels by a linear probe, as in queries.py. At each round the test accuracy is compared
with what the loop says (predictions of the last rounds against the answers), with what the labeling page says
(out-of-fold), and with the plain share of right out-of-fold predictions and its Wilson interval. What 50 more labels
bring is compared with the test accuracy two rounds of 25 later.
"""

import argparse

import numpy as np
from queries import L2, arrays

import ssl_lab as sl
from ssl_lab import texts
from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries.view import PoolView
from ssl_lab.active.stopping import Estimate, advise, estimate_accuracy, expected_gain
from ssl_lab.active.watch import RECENT, held_out_estimate
from ssl_lab.features import linear_probe
from ssl_lab.features.crossfit import cross_fitted
from ssl_lab.features.probe import probe_weights
from ssl_lab.features.search import unit
from ssl_lab.intervals import wilson


def learner(features, labels, queries, classes):
    return linear_probe(features, labels, queries, classes, l2=L2)


def run(pool, features, query, seed, options):
    """For each round: labels, test accuracy, and the estimates."""
    rows = np.sort(np.random.default_rng(seed).permutation(pool.train)[: options.rows])
    x, truth = unit(features[rows]), pool.truth[rows]
    labels = np.full(len(rows), -1)
    start = np.random.default_rng(1000 + seed).permutation(len(rows))[: options.initial]
    labels[start] = truth[start]
    right, sure, found = [], [], []
    while True:
        weights = probe_weights(x, labels, pool.classes, l2=L2)
        given = arrays({"embeddings", "probs"}, x, weights, (), 0)
        tested = unit(features[pool.test]) @ weights[:, :-1].T + weights[:, -1]
        accuracy = float((tested.argmax(axis=1) == pool.truth[pool.test]).mean())
        free = np.flatnonzero(labels == -1)
        online = estimate_accuracy(right[-RECENT:], sure[-RECENT:], given["probs"][free].max(axis=1))
        folds = held_out_estimate(x, labels, pool.classes, learner)
        plain = cross_fitted(x, labels, pool.classes, learner)
        hits = int((plain.probs.argmax(axis=1) == labels[plain.rows]).sum())
        naive = Estimate(hits / max(len(plain.rows), 1), *wilson(hits, len(plain.rows)))
        found.append((int((labels >= 0).sum()), accuracy, {"loop": online, "page": folds, "plain share": naive}))
        if found[-1][0] >= options.final:
            return found
        needed = {name: given[name] for name in query.needs}
        ids = query(PoolView(labels, **needed), options.batch, seed)
        right += (given["probs"][ids].argmax(axis=1) == truth[ids]).tolist()
        sure += given["probs"][ids].max(axis=1).tolist()
        labels[ids] = truth[ids]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--queries", default="random,margin,badge,typiclust")
    for name, default in (("rows", 4000), ("initial", 25), ("final", 250), ("batch", 25), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    pool = sl.load(options.data)
    features = pool.images.take(np.arange(len(pool))).numpy().reshape(len(pool), -1).astype(np.float32)
    for name in texts.split(options.queries):
        runs = [run(pool, features, make_query(name), seed, options) for seed in range(options.seeds)]
        for how in ("loop", "page", "plain share"):
            pairs = [(accuracy, said[how]) for each in runs for _, accuracy, said in each if said[how] is not None]
            off = 100 * np.array([said.value - accuracy for accuracy, said in pairs])
            inside = np.mean([said.low <= accuracy <= said.high for accuracy, said in pairs])
            width = 50 * np.mean([said.high - said.low for _, said in pairs])
            gains = []
            for each in runs:
                known = [(n, accuracy, said[how]) for n, accuracy, said in each if said[how] is not None]
                for place in range(2, len(known) - 50 // options.batch):
                    past = known[: place + 1]
                    gain = expected_gain([n for n, _, _ in past], [said for _, _, said in past])
                    true = known[place + 50 // options.batch][1] - past[-1][1]
                    stop = advise([n for n, _, _ in past], [said for _, _, said in past]).stop
                    gains.append((gain.value - true, gain.low - 1e-9 <= true <= gain.high, stop, true))
            offs = np.array(gains, dtype=float)
            print(f"{options.data:7} {name:10} {how:12} n {len(pairs):3}  off {off.mean():+5.1f}, absolute "
                  f"{np.abs(off).mean():4.1f}  inside {inside:4.0%}  half width {width:4.1f} | gain off "
                  f"{100 * offs[:, 0].mean():+4.1f}, absolute {100 * np.abs(offs[:, 0]).mean():3.1f}  inside "
                  f"{offs[:, 1].mean():4.0%}  stops {int(offs[:, 2].sum())} of {len(offs)}, then true gain "
                  f"{100 * offs[offs[:, 2] > 0, 3].mean() if offs[:, 2].any() else float('nan'):.1f}", flush=True)


if __name__ == "__main__":
    main()
