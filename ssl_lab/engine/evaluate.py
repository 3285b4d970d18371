"""Predictions of a net over many images, in evaluation mode and under the evaluation view."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_lab.batch import At, generator
from ssl_lab.data import Pool
from ssl_lab.engine.runtime import Runtime
from ssl_lab.nets import Net
from ssl_lab.views import Eval

IntArray = NDArray[np.int64]
MONITORED = 2000  # test images that a curve is drawn from where there is no validation split


@torch.inference_mode()
def predict(net: Net, pool: Pool, indices: IntArray, runtime: Runtime, batch: int = 256) -> Tensor:
    """Logits float32 [len(indices), classes], on the CPU. The net's mode is restored."""
    view, at = Eval(pool.style), At(0, 1)
    was_training = net.training
    net.eval()
    logits = []
    for start in range(0, len(indices), batch):
        images = pool.images.take(indices[start : start + batch]).to(runtime.device)
        pixels = view(images, at.draw("eval", len(images), runtime.device))
        with runtime.autocast():
            logits.append(net(pixels).logits.float())
    net.train(was_training)
    return torch.cat(logits).cpu() if logits else torch.empty(0, net.classes)


def accuracy(net: Net, pool: Pool, indices: IntArray, runtime: Runtime) -> float:
    """Share of correct predictions in [0, 1] against the pool's truth; NaN without images.

    Each rank predicts its part; all must hold the same net.
    """
    mine = indices[runtime.rank :: runtime.world]
    correct = (predict(net, pool, mine, runtime).argmax(dim=1).numpy() == pool.truth[mine]).sum()
    right, seen = runtime.totals([int(correct), len(mine)])
    return right / seen if seen else math.nan


def monitored(pool: Pool) -> tuple[str, IntArray]:
    """The split, and its rows, that the accuracy curve shows. It chooses nothing."""
    if len(pool.valid):
        return "valid", pool.valid
    chosen = torch.randperm(len(pool.test), generator=generator("monitored"))[:MONITORED].sort().values
    return "test", pool.test[chosen.numpy()]
