"""What a split is, ready for JSON."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_lab.data.ledger import IGNORED

if TYPE_CHECKING:
    from ssl_lab.data.pool import Pool


def manifest_of(pool: Pool) -> dict[str, Any]:
    """See `Pool.manifest`. What only some splits have, ignored images, has a place in it only then."""
    labels = pool.labels
    rows = {"labeled": pool.labeled, "valid": pool.valid, "test": pool.test}
    ignored = np.flatnonzero(labels == IGNORED)
    if len(ignored):
        rows["ignored"] = ignored
    digest = hashlib.sha256(pool.images.fingerprint().encode())
    for part in (pool.truth, pool.train, *rows.values(), labels[pool.labeled]):
        digest.update(f"{len(part)};".encode() + part.astype("<i8").tobytes())
    counts = {"images": len(pool), "train": len(pool.train)} | {key: len(part) for key, part in rows.items()}
    return {"name": pool.name, "seed": pool.seed, "balance": pool.balance, "imbalance": pool.imbalance,
            "counts": counts, "dropped": pool.dropped.tolist(), "class_names": list(pool.class_names),
            "hash": digest.hexdigest(), "pixels": pool.images.fingerprint(), "labels": labels[pool.labeled].tolist(),
            **{key: part.tolist() for key, part in rows.items()}}
