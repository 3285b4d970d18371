"""Nearest neighbors beside scikit-learn's brute force and FAISS's flat index, in one run.

Exact search has no index: its time is from features as they are stored, FAISS's also of an index that is there.

    python tests/benchmarks/search.py                                  # 10,000 queries, 50,000 x 512 features
    python tests/benchmarks/search.py --features STORE/features.npy    # of a feature store: the last rows are queries
    python tests/benchmarks/search.py --rows 10000000 --dim 128 --queries 100 --file rows.npy    # of a float16 file

The made-up features lie around 100 points of a curved surface of 32 dimensions: no approximate index helps where
features fill all of theirs. Timings drift with the machine: compare only numbers of one run.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
from sklearn.neighbors import NearestNeighbors

from ssl_lab.features.approximate import Approximate
from ssl_lab.features.search import top_k, unit

T = TypeVar("T")

PART = 65536  # rows that are made up at a time


def made_up(rows: int, dim: int, seed: int) -> np.ndarray:
    """float32 [rows, dim], of the same surface for any seed."""
    fixed, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    centers = fixed.standard_normal((100, 32))
    first, second = fixed.standard_normal((32, 256)) / 32**0.5, fixed.standard_normal((256, dim)) / 16
    inner = centers[drawn.integers(0, 100, rows)] + 0.7 * drawn.standard_normal((rows, 32))
    outer = np.maximum(np.maximum(inner @ first, 0) @ second, 0) + 0.02 * drawn.standard_normal((rows, dim))
    return outer.astype(np.float32)


def in_file(path: Path, rows: int, dim: int) -> np.ndarray:
    """float16 [rows, dim], memory-mapped, made up if the file is not there."""
    if not path.exists():
        file = np.lib.format.open_memmap(path, "w+", np.float16, (rows, dim))
        for start in range(0, rows, PART):
            file[start:start + PART] = made_up(min(PART, rows - start), dim, 3 + start)
        file.flush()
    return np.load(path, mmap_mode="r")


def flat_index(bank: np.ndarray) -> faiss.IndexFlatIP:
    """float32 [n, D] -> FAISS's exact index of the cosine."""
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(unit(bank))
    return index


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--features", help="an .npy file of real features, in place of made-up ones")
    parser.add_argument("--file", type=Path, help="where made-up features lie, which are not held in memory then; the "
                                                  "rivals, which hold them, are left out")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.features:
        stored = np.load(options.features, mmap_mode="r")
        bank, queries = np.array(stored[:options.rows]), np.array(stored[-options.queries:])
    else:
        queries = made_up(options.queries, options.dim, 2)
        bank = made_up(options.rows, options.dim, 1) if options.file is None else in_file(
            options.file, options.rows, options.dim)
    print(f"{len(queries)} queries, {' x '.join(map(str, bank.shape))} features, k={options.k}")

    start = time.perf_counter()
    index = Approximate.build(bank, options.recall)
    print(f"approximate index: built in {time.perf_counter() - start:.1f} s, probes {index.codes.nprobe} of "
          f"{index.codes.nlist} lists, {index.factor} candidates per neighbor")
    ways: dict[str, Callable[[], np.ndarray]] = {
        "exact": lambda: top_k(queries, bank, options.k)[1],
        "approximate": lambda: index.search(queries, options.k)[1],
    }
    if options.file is None:
        flat = flat_index(bank)
        brute = NearestNeighbors(n_neighbors=options.k, algorithm="brute").fit(unit(bank))
        ways |= {
            "FAISS flat": lambda: flat.search(unit(queries), options.k)[1],
            "FAISS flat, and build": lambda: flat_index(bank).search(unit(queries), options.k)[1],
            "scikit-learn brute": lambda: brute.kneighbors(unit(queries), return_distance=False),
        }
    best, found = dict.fromkeys(ways, float("inf")), {}
    for _ in range(options.repeats):  # in turns, so that all see the same weather
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        pairs = zip(found["exact"], found[name], strict=True)
        recall = np.mean([np.isin(true, rows).mean() for true, rows in pairs])
        print(f"{name:21} {seconds:8.2f} s  {best['exact'] / seconds:6.2f} x as fast as exact  recall {recall:.4f}")
    if options.file is None:
        rival = min(best["FAISS flat, and build"], best["scikit-learn brute"])
        print(f"exact is {rival / best['exact']:.2f} x as fast as the faster rival")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB resident at most")


if __name__ == "__main__":
    main()
