"""What queries see of a net: embeddings, probabilities, dropout samples, the head, and what it says of other views."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch

from ssl_lab.active.queries.inputs import ARRAYS
from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.engine import Result, Runtime
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets import Net
from ssl_lab.seeds import generator, seed_of
from ssl_lab.views import Eval, View, Weak

SAMPLES, DROPOUT = 20, 0.5  # of mc_probs
VIEWS = 5  # augmented ones, of view_probs
LIMIT = 2**31  # numbers in either: 8 GiB


@torch.inference_mode()
def arrays_of(net: Net, pool: Pool, rows: IntArray, needs: Collection[str], runtime: Runtime, seed: int = 0,
              samples: int = SAMPLES, dropout: float = DROPOUT, batch: int = 256) -> dict[str, FloatArray]:
    """The arrays named in `needs` (see `ARRAYS`; not predicted_loss, which no net has), float32, for `rows` in order.

    Evaluation views, BatchNorm's running statistics; the mode of the net is restored. Images pass the net once, and
    for view_probs once more for each of 5 weak views (flip where the data allow it, shift), drawn from the seed:
    [:, 0] is the image itself. mc_probs drop features of the head's input, with the same `samples` masks for all rows
    (each sample is one draw of the head's weights, Gal and Ghahramani, arXiv 1506.02142), drawn from the seed.
    """
    for name in needs:
        if name not in ARRAYS or name == "predicted_loss":
            raise unknown("array", name, set(ARRAYS) - {"predicted_loss"})
    net = net.to(runtime.device)
    found: dict[str, FloatArray] = {}
    if {"embeddings", "probs", "mc_probs", "view_probs"} & set(needs):
        for name, each, what in (("mc_probs", samples, "samples"), ("view_probs", 1 + VIEWS, "views")):
            if name in needs and (size := len(rows) * each * net.classes) > LIMIT:
                raise UsageError(f"{name} of {len(rows)} rows, {each} {what} and {net.classes} classes are {size} "
                                 f"numbers; expected at most {LIMIT}. Take a query of probs, or ignore some of the "
                                 "images")
        features, found["probs"] = _forward(net, pool, rows, runtime, batch,
                                            keep=bool({"embeddings", "mc_probs"} & set(needs)))
        found["embeddings"] = features.numpy()
        if "mc_probs" in needs:
            found["mc_probs"] = _dropped(net, features, seed, samples, dropout)
        if "view_probs" in needs:
            found["view_probs"] = _of_views(net, pool, rows, runtime, batch, found["probs"], seed)
    found["head_weight"], found["head_bias"] = (part.float().cpu().numpy() for part in (net.head.weight, net.head.bias))
    return {name: found[name] for name in needs}


def _forward(net: Net, pool: Pool, rows: IntArray, runtime: Runtime, batch: int,
             keep: bool) -> tuple[torch.Tensor, FloatArray]:
    """Features float32 [n, D], or [0, D] if they are not to be kept, and probabilities float32 [n, C]."""
    features = torch.empty(len(rows) if keep else 0, net.features_dim)
    probs = np.empty((len(rows), net.classes), dtype=np.float32)
    for part, pixels in _evaluating(net, pool, rows, runtime, batch):
        output = net(pixels)
        if keep:
            features[part] = output.features.float().cpu()
        probs[part] = output.logits.float().softmax(dim=1).cpu().numpy()
    return features, probs


def _of_views(net: Net, pool: Pool, rows: IntArray, runtime: Runtime, batch: int, itself: FloatArray,
              seed: int) -> FloatArray:
    """float32 [n, 1 + VIEWS, C]; itself: of the images themselves [n, C]."""
    probs = np.empty((len(rows), 1 + VIEWS, net.classes), dtype=np.float32)
    probs[:, 0] = itself
    for number in range(1, 1 + VIEWS):
        for part, pixels in _evaluating(net, pool, rows, runtime, batch, Weak(pool.style), seed_of(seed, number)):
            probs[part, number] = net(pixels).logits.float().softmax(dim=1).cpu().numpy()
    return probs


def _dropped(net: Net, features: torch.Tensor, seed: int, samples: int, dropout: float) -> FloatArray:
    """float32 [n, samples, C]."""
    keep = torch.rand(samples, features.shape[1], generator=generator(seed, "mc_dropout")) >= dropout
    weight, bias = net.head.weight.float().cpu(), net.head.bias.float().cpu()
    probs = np.empty((len(features), samples, net.classes), dtype=np.float32)
    for sample, mask in enumerate(keep):
        probs[:, sample] = (features @ (weight * mask / (1 - dropout)).T + bias).softmax(dim=1).numpy()
    return probs


def version_of(net: Net) -> str:
    """A hash of the net's weights and buffers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    state: Mapping[str, torch.Tensor] = net.state_dict()
    for name in sorted(state):
        numbers = state[name].detach().cpu().contiguous().flatten()
        digest.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def predicted_loss(learner: object, pool: Pool, rows: IntArray, runtime: Runtime, batch: int = 256) -> FloatArray:
    """float32 [n]: the loss that a trained method predicts for each row, by its `predicted_loss(images)`.

    learner: what a fit returned. UsageError unless it is a `Result` whose method predicts its loss.
    """
    predict = getattr(learner.method, "predicted_loss", None) if isinstance(learner, Result) else None
    if predict is None or not isinstance(learner, Result):
        raise UsageError("this query needs predicted_loss: train with a method that predicts its loss (learning_loss), "
                         "and let fit return the trainer's result")
    net, losses = learner.method.predictor(), np.empty(len(rows), dtype=np.float32)
    for part, pixels in _evaluating(net, pool, rows, runtime, batch):
        losses[part] = predict(pixels).float().cpu().numpy()
    return losses


def _evaluating(net: Net, pool: Pool, rows: IntArray, runtime: Runtime, batch: int, view: View | None = None,
                seed: int = 0) -> Iterator[tuple[slice, torch.Tensor]]:
    """Batches of views of `rows` (default: evaluation views), and where they stand, with the net in evaluation mode
    meanwhile."""
    view = view or Eval(pool.style)
    was_training = net.training
    net.eval()
    try:
        for start in range(0, len(rows), batch):
            part = slice(start, start + batch)
            images = pool.images.take(rows[part]).to(runtime.device)
            with runtime.autocast():
                draw = At(start // batch, len(rows), seed).draw("eval", len(images), runtime.device)
                yield part, view(images, draw)
    finally:
        net.train(was_training)
