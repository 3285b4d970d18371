"""Features of a net over many images, in evaluation mode."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch
from torch import Tensor

from ssl_lab.batch import At, Style
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.engine.abreast import abreast, lanes
from ssl_lab.engine.feed import pinned, read_ahead
from ssl_lab.engine.placed import place
from ssl_lab.engine.weights import whole
from ssl_lab.features.search import FloatArray
from ssl_lab.nets import Net
from ssl_lab.views import Eval, ViewFactory

STEP = 4.0
"""How many times as long a step of training takes as to embed its images: EfficientNet-Lite0 of 128 px in fp32 2.6 on
one core, 4.0 on two; in bf16 5.8 before its gradients of depthwise convolutions were ours, which halved the step."""


def embed(net: Net, pool: Pool, indices: IntArray, runtime: Runtime, view: ViewFactory = Eval,
          batch: int | None = None) -> FloatArray:
    """float32 [n, D]: the pooled features of images of the pool, under a view.

    The net moves to the runtime's device in channels_last, and its mode is restored. Images of another size than the
    net's: `load(..., image_size=128)` resizes them as they are read, which takes a CPU core a tenth of a millisecond
    per image.

    Args:
        net: whose features.
        pool: whose images.
        indices: int64 [n], which of its images.
        runtime: where it computes.
        view: what the net sees of them (default: the images as they are).
        batch: images that pass the net at a time (default: `batch_of`).

    >>> pool = sl.load("digits")
    >>> net = sl.net("tiny_4", style=pool.style)
    >>> features = sl.features.embed(net, pool, pool.train[:5], sl.Runtime.start("cpu"))
    >>> features.shape, features.dtype
    ((5, 16), dtype('float32'))
    """
    see = view(pool.style)
    batch = batch or batch_of(pool.style, runtime)
    was_training = net.training
    # Outside of inference mode, in which weights that move could never be trained again.
    place(net.eval(), runtime.device)
    features = np.empty((len(indices), net.features_dim), dtype=np.float32)

    def part(start: int) -> tuple[int, IntArray, Tensor]:
        rows = indices[start:start + batch]
        return start, rows, pinned(pool.images.take(rows), runtime.device)

    @torch.inference_mode()
    def passed(given: tuple[int, IntArray, Tensor]) -> None:
        start, rows, images = given
        draw = At(int(rows[0]), len(pool)).draw("embed", len(rows), runtime.device)
        pixels = see(images.to(runtime.device, non_blocking=True), draw)
        with runtime.autocast():
            found = net(pixels.to(memory_format=torch.channels_last)).features
        features[start:start + len(rows)] = found.float().cpu().numpy()

    with whole(net):
        parts = read_ahead(part, range(0, len(indices), batch), runtime.device)
        deque(abreast(lanes(runtime), passed, parts), maxlen=0)
    net.train(was_training)
    return features


def seconds_to_embed(net: Net, pool: Pool, runtime: Runtime) -> float:
    """For an image of the pool among many, here: the least of three times as many batches as pass at once, of which the
    first brings the memory."""
    rows, took = np.resize(pool.train, lanes(runtime) * batch_of(pool.style, runtime)), list[float]()
    for _ in range(3):
        begun = time.perf_counter()
        embed(net, pool, rows, runtime)
        took.append(time.perf_counter() - begun)
    return min(took) / len(rows)


def batch_of(style: Style, runtime: Runtime) -> int:
    """256 images on an accelerator. On a CPU fewer if they are large, so that activations stay in its cache: about
    half a million pixels (32 images of 128 px were twice as fast as 256)."""
    return 256 if runtime.device.type != "cpu" else max(1, min(256, 2**19 // (style.height * style.width)))
