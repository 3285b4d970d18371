"""Similarity of representations: linear CKA between features, and between the layers of two nets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets import Net
from ssl_lab.views import Eval

COLUMNS = 2**14  # of a layer's output that are centered and multiplied at a time


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centered kernel alignment of two sets of features of the same images (Kornblith et al. 2019,
    arXiv 1905.00414), in [0, 1].

        ||Yc' Xc||_F^2 / (||Xc' Xc||_F ||Yc' Yc||_F)

    Xc and Yc are x and y with each column's mean taken away. Invariant to rotation and to isotropic scaling of
    either, not to any invertible map. NaN if all rows of one are equal. Few images and many features raise it:
    compare only values of the same n. Computed with the smaller of [n, n] and [D, E] matrices.

    Args:
        x: [n, D], the features of n images.
        y: [n, E], other features of the same images.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(100, 8))
    >>> turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    >>> round(sl.features.linear_cka(x, 3 * x @ turn), 6)  # the same, turned and scaled
    1.0
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 2:
        raise UsageError(f"features have shapes {list(a.shape)} and {list(b.shape)}; expected [n, D] and [n, E] "
                         "of the same n of 2 or more images")
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    if len(a) <= min(a.shape[1], b.shape[1]):
        return gram_cka(a @ a.T, b @ b.T)
    with np.errstate(invalid="ignore"):
        return float(np.square(b.T @ a).sum() / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def gram_cka(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """The same from Gram matrices [n, n] of centered features: <K, M> / (||K|| ||M||)."""
    with np.errstate(invalid="ignore"):
        return float((k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m)))


def layer_cka(first: Net, second: Net, pool: Pool, indices: IntArray, runtime: Runtime,
              first_layers: Sequence[str] | None = None, second_layers: Sequence[str] | None = None,
              ) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Linear CKA between layers of two nets on images of the pool, in evaluation mode (Kornblith et al. 2019, arXiv
    1905.00414).

    Maps are flattened, as there. All images pass at once and each layer leaves an [n, n] matrix, so that a few hundred
    images are right.

    Args:
        first, second: the nets.
        pool: whose images pass.
        indices: int64 [n], which of its images.
        runtime: where it computes.
        first_layers, second_layers: submodules of the backbone by name. By default those without submodules that hold
            weights, if any do, and give a row for each image: not a layer whose weight alone is used, nor one that sees
            windows of images as a batch.

    Returns:
        float64 [layers of first, layers of second], and the names of both.

    Raises:
        UsageError: for layers given that are not there, or give no row for each image.

    >>> pool = sl.load("digits")
    >>> net = sl.net("tiny_4", style=pool.style)
    >>> values, rows, _ = sl.features.layer_cka(net, net, pool, pool.train[:50], sl.Runtime.start("cpu"))
    >>> values.shape == (len(rows), len(rows)), bool(np.allclose(np.diag(values), 1))
    (True, True)
    """
    mine, mine_names = _grams(first, pool, indices, runtime, first_layers)
    theirs, their_names = _grams(second, pool, indices, runtime, second_layers)
    return np.array([[gram_cka(a, b) for b in theirs] for a in mine]), mine_names, their_names


def _grams(net: Net, pool: Pool, indices: IntArray, runtime: Runtime,
           layers: Sequence[str] | None) -> tuple[list[NDArray[np.float64]], list[str]]:
    modules = {name: module for name, module in net.backbone.named_modules() if name}
    leaves = [name for name, module in modules.items() if not list(module.children())]
    weighted = [name for name in leaves if list(modules[name].parameters())]
    asked = (weighted or leaves) if layers is None else layers
    grams: dict[str, NDArray[np.float64]] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor) and output.shape[:1] == (len(indices),):
                grams[name] = _gram(output)

        handles.append(modules[name].register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    was_training = net.training
    try:
        for name in asked:
            if name not in modules:
                raise unknown("layer", name, modules, f"It is not in the backbone of {net.name}.")
            keep(name)
        net.eval().to(runtime.device)  # outside of inference mode, in which weights that move cannot be trained again
        images = pool.images.take(indices).to(runtime.device)
        with torch.inference_mode(), runtime.autocast():
            net(Eval(pool.style)(images, At(0, 1).draw("cka", len(images), runtime.device)))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers or () if name not in grams]:
        raise UsageError(f"layer {missing[0]} of {net.name} gives no row for each image; leave it out")
    found = [name for name in asked if name in grams]
    return [grams[name] for name in found], found


def _gram(output: Tensor) -> NDArray[np.float64]:
    """[n, n], of centered columns, block by block: in double precision a whole map would be twice as large again."""
    gram = torch.zeros(len(output), len(output), dtype=torch.float64, device=output.device)
    for part in torch.split(output.reshape(len(output), -1), COLUMNS, dim=1):
        rows = part.double()
        rows = rows - rows.mean(dim=0)
        gram += rows @ rows.T
    return gram.cpu().numpy()
