"""`ssl-lab bench query`: what a query costs in seconds and memory, alone or beside scikit-activeml."""

from __future__ import annotations

import importlib
import json as jsonlib
import multiprocessing
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab import texts
from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries.view import UNLABELED, FloatArray, PoolView
from ssl_lab.cost import Cost, measured
from ssl_lab.errors import UsageError
from ssl_lab.report import Column, Table, print_tables

ROWS, MEMBERS = 8192, 5  # made at a time; of mc_probs
SAMPLED = {"mc_probs", "view_probs"}
PEERS = {
    "k_center": ("CoreSet", {}),
    "typiclust": ("TypiClust", {}),
    "prob_cover": ("ProbCover", {}),
    "badge": ("Badge", {}),
    "margin": ("UncertaintySampling", {"method": "margin_sampling"}),
    "entropy": ("UncertaintySampling", {"method": "entropy"}),
    "least_confidence": ("UncertaintySampling", {"method": "least_confident"}),
}


@dataclass(frozen=True)
class Size:
    """n rows of dim features in `classes` classes, of which `budget` are to be chosen."""

    n: int
    dim: int
    classes: int
    budget: int


def bench_query(n: int = 50_000, dim: int = 512, classes: int = 10, budget: int = 500, queries: str = "",
                peers: bool = False, seed: int = 0, json: bool = False, files: Path | None = None,
                half: bool = False) -> None:
    """Prints what queries cost on clustered random features: seconds by the clock and of the processor, and the peak of
    memory over that of the inputs.

    Args:
        n: rows.
        dim: features of each.
        classes: of the probabilities.
        budget: rows to choose.
        queries: names separated by commas; empty for all that need no arguments.
        peers: also time scikit-activeml's query of the same name, right after each.
        seed: of the features.
        json: print a list of objects instead of a table.
        files: a folder for the inputs, which are memory-mapped then, and removed in the end.
        half: in float16.
    """
    rows = costs(Size(n, dim, classes, budget), _names(queries), peers, seed, files, half)
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return
    columns = [Column("query"), Column("seconds", "right", ".2f"), Column("CPU seconds", "right", ".2f"),
               Column("peak memory, MB", "right", ".0f")]
    cells = [[row["query"], row["seconds"], row["cpu_seconds"],
              row["peak_memory_bytes"] and row["peak_memory_bytes"] / 1e6] for row in rows]
    if peers:
        columns += [Column("scikit-activeml"), Column("its seconds", "right", ".2f"),
                    Column("times as long", "right", ".1f")]
        for row, line in zip(rows, cells, strict=True):
            both = row["seconds"] and row["peer_seconds"]
            line += [row["peer"], row["peer_seconds"], both and row["peer_seconds"] / row["seconds"]]
    print_tables(Table(f"{n} rows, {dim} features, {classes} classes, budget {budget}", columns, cells))


def costs(size: Size, queries: list[str], peers: bool, seed: int, files: Path | None = None,
          half: bool = False) -> list[dict[str, Any]]:
    """For each query: query, n, dim, classes, budget, seconds, cpu_seconds, peak_memory_bytes, resident_bytes; with
    peers also peer, peer_seconds.

    Each query, and each peer, runs in a process of its own, in turn: it makes the inputs from the seed, runs once on
    a small pool, so that what is loaded on first use is not counted, and then on the whole. peak_memory_bytes is the
    highest resident memory of that process meanwhile, less what was resident when the inputs had been made, and
    resident_bytes all of it; null where the system does not tell (all but Linux). Inputs in `files` are made once, and
    have been read once when a query begins: then pages of theirs are resident, and do not count as memory beside the
    inputs, though the system may take them back. seconds is null where a query cannot do this size, and standard error
    says why; peer and peer_seconds are null where there is no such peer.
    """
    if min(size.n, size.dim, size.classes, size.budget) < 1 or size.budget > size.n - _labels(size):
        raise UsageError(f"cannot choose {size.budget} of {size.n} rows of {size.dim} features and {size.classes} "
                         f"classes, {_labels(size)} of them labeled; expected sizes of at least 1, and a budget of at "
                         "most the unlabeled rows")
    if peers:
        _skactiveml("pool")
    rows = []
    if files is not None:
        files.mkdir(parents=True, exist_ok=True)
    with nullcontext() if files is None else tempfile.TemporaryDirectory(dir=files) as folder:
        made = Made(size, seed, None if folder is None else Path(folder), half)
        if made.folder is not None:
            inputs(made, frozenset[str]().union(*(make_query(query).needs for query in queries)))
        for query in queries:
            name = make_query(query).name
            row = {"query": name, "n": size.n, "dim": size.dim, "classes": size.classes, "budget": size.budget}
            cost = _alone(query, made, peer=False)
            row |= {"seconds": cost and cost.seconds, "cpu_seconds": cost and cost.cpu,
                    "peak_memory_bytes": cost and cost.memory, "resident_bytes": cost and cost.resident}
            if peers:
                known = PEERS.get(name)
                beside = _alone(name, made, peer=True) if known else None
                row |= {"peer": known and known[0], "peer_seconds": beside and beside.seconds}
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Made:
    """How inputs are made: of this size, from this seed, in float16 or float32, in memory or in files of a folder."""

    size: Size
    seed: int = 0
    folder: Path | None = None
    half: bool = False

    def new(self, name: str, *shape: int) -> NDArray[Any]:
        """An array to be filled."""
        dtype = np.float16 if self.half else np.float32
        if self.folder is None:
            return np.empty(shape, dtype)
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, shape)


def inputs(made: Made, needs: frozenset[str] = frozenset()) -> PoolView:
    """A pool of 8 clusters a class in features, with all arrays that queries may need; mc_probs and view_probs only if
    one of them is in `needs`.

    The head is linear, and a row's label is that of its cluster; 10 * classes rows are labeled (half of all at most).
    Arrays are made in place, so that the process never holds much more than they take; where they are there already,
    in files, they are opened.
    """
    size, seed = made.size, made.seed
    if made.folder is not None and (made.folder / "labels.npy").exists():
        found: dict[str, Any] = {path.stem: np.load(path, mmap_mode="r") for path in made.folder.glob("*.npy")}
        return PoolView(np.array(found.pop("labels")), **found, view_probs=found.get("mc_probs"))
    draws = np.random.default_rng(seed)
    clusters = 8 * size.classes
    centers = draws.standard_normal((clusters, size.dim), dtype=np.float32)
    weight = np.stack([centers[c :: size.classes].mean(axis=0) for c in range(size.classes)])
    weight *= 3 / np.linalg.norm(weight, axis=1, keepdims=True)
    cluster = draws.integers(clusters, size=size.n)
    h, p = made.new("embeddings", size.n, size.dim), made.new("probs", size.n, size.classes)
    loss = made.new("predicted_loss", size.n)
    members = made.new("mc_probs", size.n, MEMBERS, size.classes) if needs & SAMPLED else None
    for start in range(0, size.n, ROWS):
        part = slice(start, min(start + ROWS, size.n))
        h[part] = draws.standard_normal(h[part].shape, dtype=np.float32) + centers[cluster[part]]
        logits = h[part].astype(np.float32, copy=False) @ weight.T
        p[part] = _softmax(logits)
        loss[part] = 1 - p[part].max(axis=1)
        if members is not None:
            members[part] = _softmax(logits[:, None] + draws.standard_normal(members[part].shape, dtype=np.float32))
    labels = np.full(size.n, UNLABELED)
    labels[: _labels(size)] = cluster[: _labels(size)] % size.classes
    if made.folder is not None:
        for name, array in (("head_weight", weight), ("head_bias", np.zeros(size.classes)), ("labels", labels)):
            np.save(made.folder / f"{name}.npy", array)
        del h, p, loss, members  # whose pages would count as this process's
        return inputs(made)
    return PoolView(labels, embeddings=h, probs=p, mc_probs=members, view_probs=members, predicted_loss=loss,
                    head_weight=weight, head_bias=np.zeros(size.classes, dtype=np.float32))


def _labels(size: Size) -> int:
    return min(10 * size.classes, size.n // 2)


def _softmax(logits: FloatArray) -> FloatArray:
    powers: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _names(queries: str) -> list[str]:
    if queries:
        return texts.split(queries)
    from ssl_lab.active.queries import QUERIES

    return [name for name in QUERIES if _needs_nothing(name)]


def _needs_nothing(name: str) -> bool:
    try:
        make_query(name)
    except UsageError:
        return False
    return True


def _alone(query: str, made: Made, peer: bool) -> Cost | None:
    """The cost of a query, or of the peer of this name, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, query, made, peer))
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        process.join()
        result = f"its process ended with status {process.exitcode} (-9: too little memory)"
    process.join()
    if isinstance(result, Cost):
        return result
    print(f"{query}: {result}", file=sys.stderr)
    return None


def _run(answer: Connection, query: str, made: Made, peer: bool) -> None:
    size, seed = made.size, made.seed
    small = Size(min(size.n, 400), size.dim, min(size.classes, 10), min(size.budget, 10))
    call, needs = (_peer, frozenset[str]()) if peer else (_house, make_query(query).needs)
    try:
        call(query, inputs(Made(small, seed, half=made.half), needs), small.budget, seed)
        answer.send(call(query, inputs(made, needs), size.budget, seed))
    except (UsageError, MemoryError) as error:
        answer.send(str(error) or "too little memory")


def _house(query: str, view: PoolView, budget: int, seed: int) -> Cost:
    chooser = make_query(query)
    return measured(lambda: chooser(view, budget, seed))[1]


def _peer(query: str, view: PoolView, budget: int, seed: int) -> Cost:
    """scikit-activeml's query, with a logistic classifier of the labeled rows where it wants one, fitted before."""
    name, arguments = PEERS[query]
    x, classes = view.need("embeddings"), view.need("probs").shape[1]
    y = np.where(view.labels == UNLABELED, np.nan, view.labels)
    chooser = getattr(_skactiveml("pool"), name)(random_state=seed, **arguments)
    more = {}
    if name in ("Badge", "UncertaintySampling"):
        linear = importlib.import_module("sklearn.linear_model").LogisticRegression()
        wrapped = _skactiveml("classifier").SklearnClassifier(linear, classes=list(range(classes)))
        more = {"clf": wrapped.fit(x, y), "fit_clf": False}
    return measured(lambda: chooser.query(X=x, y=y, batch_size=budget, **more))[1]


def _skactiveml(part: str) -> Any:
    try:
        return importlib.import_module(f"skactiveml.{part}")
    except ImportError as error:
        raise UsageError(f"peers are timed with scikit-activeml, which cannot be imported ({error}); install it with "
                         "`pip install scikit-activeml`") from error
