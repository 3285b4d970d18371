"""`FeatureStore`: the features of all images of a pool, computed once and memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.class_names import Names
from ssl_lab.data import IntArray, Pool
from ssl_lab.data.files import Hold, alone
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features import k_means
from ssl_lab.features.approximate import Approximate
from ssl_lab.features.embed import embed
from ssl_lab.features.search import FloatArray, matrix, top_k, unit, within, without_self
from ssl_lab.files import cannot_write, reserve, write_atomically, write_text
from ssl_lab.nets import Net
from ssl_lab.seeds import seed_of
from ssl_lab.views import Eval, ViewFactory

_FORMAT = 1
_BLOCK = 1024
"""Images embedded before progress is written: what a kill can cost."""
_ROWS = 8192
"""Rows that are compared at a time."""

LARGE = 200_000
"""Images from which on search is approximate."""


class FeatureStore:
    """float32 or float16 [N, D], row i of which is image i of the pool; made by `build`, opened by
    `FeatureStore(folder)`.

    Args:
        folder: where `build` put it.

    >>> pool = sl.load("digits")
    >>> net = sl.net("tiny_4", style=pool.style)
    >>> store = sl.features.FeatureStore.build(net, pool, "features", sl.Runtime.start("cpu"))
    >>> len(store), store.search(store.features[:2], k=1)[1]
    (1797, array([[0],
           [1]]))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        meta = _read_meta(self.folder)
        if meta is None or not _is_whole(meta):
            what = "is no feature store" if meta is None else f"holds {meta['done']} of {meta['rows']} images"
            raise UsageError(f"{self.folder} {what}; FeatureStore.build makes a store, or completes it")
        self.seconds = float(meta["seconds"])
        self.hold = Hold(self.folder)
        self.features: FloatArray = np.load(self.folder / "features.npy", mmap_mode="r")
        self.class_names = tuple(meta["class_names"]) if "class_names" in meta else None
        self._index: Approximate | None = None

    @classmethod
    def build(cls, net: Net, pool: Pool, out: str | Path, runtime: Runtime | None = None,
              view: ViewFactory = Eval, class_names: Names | None = None, half: bool = False) -> FeatureStore:
        """The store of this net's features of this pool in folder `out`, computed as far as it is not there.

        Its own folder in `out` is named by a hash of the net's weights (but the head's), the view, the precision and
        the images, so that `out` may hold stores of many nets and pools. A build that was cut short goes on where it
        stopped. Ranks share the work; of several processes that want the same store, one builds it and the others wait.

        Args:
            class_names: what each feature stands for, where features are logits; another store for others.
            half: in float16, half of the file, which `search` and queries read in blocks; others make a float32 copy.
                Of 8,000 rows, 250 labels and 1,500 tests, three draws: features computed under bf16 (EfficientNet-Lite0
                of CIFAR-10, a small net of MNIST) gave the same 10 neighbors and predictions, as float16 has room for
                their digits; of float32 ones (MNIST's pixels) 99.97% of the neighbors, the same k-NN predictions, and
                the probe's accuracy within 0.1 points.

        Raises:
            UsageError: for a full disk and the like, and for features that float16 does not hold, beyond 65,504.
        """
        runtime = runtime or Runtime.start()
        folder = Path(out) / key_of(net, pool, view, runtime, class_names, half)
        if not runtime.any(not _is_whole(_read_meta(folder)))[0]:
            return cls(folder)
        with alone(folder) if runtime.main else nullcontext():
            runtime.wait()  # until the first rank has the place for itself: all of them find the same
            meta = _read_meta(folder)
            runtime.wait()
            if meta is None:
                meta = {"format": _FORMAT, "net": net.name, "data": pool.name, "rows": len(pool),
                        "dim": net.features_dim, "dtype": "<f2" if half else "<f4", "done": 0, "seconds": 0.0}
                if class_names is not None:
                    meta["class_names"] = list(class_names)
                runtime.from_first(partial(_allocate, folder, meta))
            cls._fill(folder, meta, net, pool, runtime, view)
            runtime.wait()
        return cls(folder)

    @classmethod
    def _fill(cls, folder: Path, meta: dict[str, Any], net: Net, pool: Pool, runtime: Runtime,
              view: ViewFactory) -> None:
        """Embeds what is missing. Rows are written as into any file: through a map, a full disk would be no error but
        the end of the process."""
        path, dtype = folder / "features.npy", np.dtype(meta["dtype"])
        width = dtype.itemsize * meta["dim"]
        first_byte = path.stat().st_size - width * meta["rows"]
        while meta["done"] < len(pool):
            began, start = time.perf_counter(), meta["done"] + runtime.rank * _BLOCK
            rows = np.arange(start, min(start + _BLOCK, len(pool)))
            found = embed(net, pool, rows, runtime, view)
            if runtime.any(bool((np.abs(found) > np.finfo(dtype).max).any()))[0]:
                raise UsageError(f"{net.name} has features beyond {np.finfo(dtype).max:.0f}, which {dtype} does not "
                                 "hold; build the store without half")
            try:
                with path.open("r+b") as file:
                    file.seek(first_byte + width * start)
                    file.write(np.ascontiguousarray(found, dtype=dtype).data)
            except OSError as error:
                raise cannot_write(path, error) from error
            runtime.wait()
            meta["done"] = min(meta["done"] + runtime.world * _BLOCK, len(pool))
            meta["seconds"] += time.perf_counter() - began
            if runtime.main:
                write_text(folder / "meta.json", json.dumps(meta) + "\n")
            runtime.wait()

    def __len__(self) -> int:
        return len(self.features)

    def search(self, queries: ArrayLike, k: int) -> tuple[FloatArray, IntArray]:
        """Cosines float32 [q, k], falling, and rows int64 [q, k] of the k nearest images to each of queries [q, D].

        Exact below 200,000 images; above, by the approximate index, which is built when it is first needed.
        """
        queries = matrix(queries, "queries", self.features.shape[1])
        return top_k(queries, self.features, k) if len(self) < LARGE else self.index().search(queries, k)

    def index(self, recall: float = 0.99) -> Approximate:
        """The approximate index, from its file beside the features, or built for this recall and saved there."""
        import faiss

        codes, note = self.folder / "index.faiss", self.folder / "index.json"
        if self._index is None and note.exists():
            tuned = json.loads(note.read_text(encoding="utf-8"))
            self._index = Approximate(faiss.read_index(str(codes)), self.features, tuned["factor"], tuned["aim"])
        if self._index is None or self._index.aim < recall:
            self._index = Approximate.build(self.features, recall)
            content = faiss.serialize_index(self._index.codes).tobytes()
            note.unlink(missing_ok=True)  # written last, so that it never speaks of another file
            write_atomically(codes, lambda file: file.write(content))
            write_text(note, json.dumps({"factor": self._index.factor, "aim": recall}) + "\n")
        return self._index

    def range_search(self, queries: ArrayLike, cosine: float) -> tuple[IntArray, IntArray, FloatArray]:
        """All (query number, row, cosine) of images at least so alike to queries [q, D], exactly; see `within`."""
        return within(matrix(queries, "queries", self.features.shape[1]), self.features, cosine)

    def near_duplicates(self, cosine: float = 0.95, k: int = 10) -> tuple[IntArray, FloatArray]:
        """Pairs of images at least so alike: rows int64 [P, 2], the smaller first, and cosines [P], falling.

        Each image is held against its k nearest others: a cluster of more than k twins is linked up by pairs, not
        each with each. Above 200,000 images a few pairs may be missed, see `search`.
        """
        k = min(k, len(self) - 1)
        pairs: dict[tuple[int, int], float] = {}
        for start in range(0, len(self), _ROWS):
            own = np.arange(start, min(start + _ROWS, len(self)))
            cosines, rows = without_self(*self.search(self.features[own], k + 1), own)
            for line, place in zip(*np.nonzero(cosines >= cosine), strict=True):
                pair = sorted((int(own[line]), int(rows[line, place])))
                pairs[pair[0], pair[1]] = float(cosines[line, place])
        found = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        alike = np.array(list(pairs.values()), dtype=np.float32)
        order = np.lexsort((found[:, 1], found[:, 0], -alike))
        return found[order], alike[order]

    def kmeans(self, clusters: int, seed: int = 0, steps: int = 25) -> tuple[IntArray, FloatArray]:
        """Spherical k-means of unit features: cluster int64 [N] of each image, centers float32 [clusters, D] of
        length 1. A pure function of the features and the arguments."""
        if not 1 <= clusters <= len(self):
            raise UsageError(f"{clusters} clusters of {len(self)} images: expected 1 to {len(self)}")
        rows = _Unit(self.features)
        centers = k_means.trained(rows, clusters, seed_of(seed, "kmeans"), steps, spherical=True)
        parts = (rows[start:start + _ROWS] for start in range(0, len(self), _ROWS))
        return np.concatenate([top_k(part, centers, 1)[1][:, 0] for part in parts]), centers


@dataclass(frozen=True)
class _Unit:
    """Features [N, D], rows of which are read, and brought to length 1, when they are asked for."""

    features: FloatArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.features.shape

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, which: Any) -> FloatArray:
        return unit(self.features[which])


def key_of(net: Net, pool: Pool, view: ViewFactory, runtime: Runtime, class_names: Names | None = None,
           half: bool = False) -> str:
    """24 hexadecimal digits that change with whatever changes the features, or what they are called."""
    digest = hashlib.sha256(f"{_FORMAT} {net.name} {view(pool.style)!r} {runtime.precision}".encode())
    digest.update(b"" if class_names is None else json.dumps(class_names).encode())
    digest.update(b"float16" if half else b"")
    digest.update(pool.images.fingerprint().encode())
    for name, tensor in net.state_dict().items():
        if not name.startswith("head."):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:24]


def _allocate(folder: Path, meta: dict[str, Any]) -> None:
    """An array of zeros on disk, and a note that nothing of it is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "features.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": meta["dtype"], "fortran_order": False,
                                                        "shape": (meta["rows"], meta["dim"])})
            reserve(file, file.tell() + np.dtype(meta["dtype"]).itemsize * meta["rows"] * meta["dim"])
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / "features.npy").unlink(missing_ok=True)
        raise cannot_write(folder, error) from error
    write_text(folder / "meta.json", json.dumps(meta) + "\n")


def _is_whole(meta: dict[str, Any] | None) -> bool:
    return meta is not None and meta["done"] >= meta["rows"]


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """The store's description, if it is one and its array has the size that it says."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        meta.setdefault("dtype", "<f4")
        array = np.load(folder / "features.npy", mmap_mode="r")
        good = meta["format"] == _FORMAT and array.shape == (meta["rows"], meta["dim"]) and array.dtype == meta["dtype"]
        return meta if good else None
    except Exception:  # damaged arrays raise nearly anything
        return None
