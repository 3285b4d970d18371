"""A learner on frozen features as a finished run, which predicts new images like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from ssl_lab.afterwards import finished
from ssl_lab.calibration import FEWEST, Calibration, calibrate
from ssl_lab.data import IntArray, Pool
from ssl_lab.data.inventory import inventory, write_inventory
from ssl_lab.data.remarks import loaded
from ssl_lab.engine import Runtime
from ssl_lab.engine.card import card_of
from ssl_lab.engine.evaluate import Predictions, rates, tallies
from ssl_lab.engine.folder import RunFolder, alone_in
from ssl_lab.features.crossfit import cross_fitted
from ssl_lab.features.heads import Head, Linear, fitted
from ssl_lab.features.propagation import label_propagation
from ssl_lab.features.search import FloatArray
from ssl_lab.features.self_training import Learner, self_training
from ssl_lab.files import write_atomically
from ssl_lab.nets import Net, net

SLOW: Mapping[str, Learner] = {"propagation": label_propagation, "self_training": self_training}
"""Learners that read unlabeled rows: fewer folds for these."""
TINY = 1e-12


def save_run(out: Path, learner: str, nets: Sequence[Net], features: Sequence[FloatArray], pool: Pool,
             learners: Mapping[str, Learner], config: Mapping[str, Any], runtime: Runtime) -> dict[str, Any]:
    """Fits the learner to the pool's labels and leaves a run in `out`: weights, card, predictions, summary, which it
    returns. Several nets are an ensemble, the mean of what the learner says on the features of each.

    features: of each net, float32 [N, D], a row for each image of the pool. learners: by name, as `LEARNERS`. config:
    to record. Probabilities are calibrated on validation images, or, where there are none, on labels that were held
    out of the fit in turn.
    """
    labels = pool.labels[pool.train]
    heads = [fitted(learner, each[pool.train], labels, pool.classes) for each in features]
    known = {split: rows[pool.truth[rows] >= 0] for split, rows in (("valid", pool.valid), ("test", pool.test))}
    predicted = {split: Predictions(rows, _logits(heads, [each[rows] for each in features]), pool.truth[rows])
                 for split, rows in known.items() if len(rows)}
    calibration = _calibration(learner, learners[learner], features, pool, predicted.get("valid"))
    measured = {f"{split}_{name}": value for split, found in predicted.items()
                for name, value in _scores(found.logits, found.truth).items()}
    summary = {"method": learner, "data": pool.name, "labels": len(pool.labeled), "valid_images": len(pool.valid),
               "seed": pool.seed, "valid_accuracy": None, "test_accuracy": None, **measured,
               "selection": "what the learner makes of the labels alone", "precision": runtime.precision,
               "device": str(runtime.device), "split": pool.manifest()["hash"], "loaded": loaded(pool)}
    with alone_in(out):
        write_inventory(out, inventory(pool))
        several = len(nets) > 1
        for number, (each, head) in enumerate(zip(nets, heads, strict=True)):
            place = out / "members" / str(number) if several else out
            _leave(place, each, head, pool, config, {} if several else predicted, summary, calibration)
        if several:
            folder = RunFolder(out)
            folder.begin({**config, "net": " + ".join(each.name for each in nets)}, pool.manifest(), 0)
            card = card_of(nets[0], True, pool, None)
            folder.finish({}, summary, predicted, replace(card, kind="ensemble", calibration=calibration,
                                                          members=tuple(str(n) for n in range(len(nets)))))
        finished(out, pool)
    return summary


def _leave(place: Path, seen: Net, head: Head, pool: Pool, config: Mapping[str, Any],
           predicted: Mapping[str, Predictions], summary: Mapping[str, Any], calibration: Calibration) -> None:
    """Writes one net with its head as a run."""
    name = seen.name if seen.unit else f"{seen.name}+unit"
    whole = net(name, pool.class_names, pool.style)
    whole.backbone.load_state_dict(seen.backbone.state_dict())
    whole.mean, whole.std = seen.mean, seen.std
    card = replace(card_of(whole, True, pool, None), calibration=calibration)
    if isinstance(head, Linear):
        with torch.no_grad():
            whole.head.weight.copy_(torch.from_numpy(head.weight))
            whole.head.bias.copy_(torch.from_numpy(head.bias))
    else:
        content = safetensors.numpy.save({"rows": np.ascontiguousarray(head.rows), "beliefs": head.beliefs})
        write_atomically(place / "neighbors.safetensors", lambda file: file.write(content))
        card = replace(card, kind="neighbors", neighbors=head.k)
    folder = RunFolder(place)
    folder.begin({**config, "net": name}, pool.manifest(), 0)
    state = {key: value.cpu().contiguous() for key, value in whole.state_dict().items()}
    folder.finish(state, summary, predicted, card)


def _logits(heads: Sequence[Head], features: Sequence[FloatArray]) -> FloatArray:
    """float32 [n, C]: log of the mean probabilities."""
    probs = np.mean([head(each) for head, each in zip(heads, features, strict=True)], axis=0)
    found: FloatArray = np.log(np.maximum(probs, TINY)).astype(np.float32)
    return found


def _scores(logits: FloatArray, truth: IntArray) -> dict[str, float]:
    return rates(tallies(np.exp(logits.astype(np.float64)), truth))


def _calibration(name: str, learner: Learner, features: Sequence[FloatArray], pool: Pool,
                 valid: Predictions | None) -> Calibration:
    if valid is not None and len(valid.rows) >= FEWEST:
        return calibrate(valid.logits, valid.truth, "validation images")
    labels = pool.labels[pool.train]
    if name == "propagation":
        learner = partial(label_propagation, kept={})
    found = [cross_fitted(each[pool.train], labels, pool.classes, learner, 3 if name in SLOW else 5)
             for each in features]
    probs = np.mean([each.probs for each in found], axis=0)
    return calibrate(np.log(np.maximum(probs, TINY)), labels[found[0].rows], "labels held out in turn")
