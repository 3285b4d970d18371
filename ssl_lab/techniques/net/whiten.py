"""Whitening of patches as a net's first layer (Jordan 2024, arXiv 2404.00498, after Page 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets.rapid import Rapid
from ssl_lab.techniques.base import NetTechnique
from ssl_lab.techniques.images import pixels, some


class Whiten(NetTechnique):
    """W = [U; -U],  U = (L + epsilon)^(-1/2) V'    with the eigenvectors V and eigenvalues L of E[x x']

    over all 2x2 patches x of training images, as the net normalizes them: filters of the first layer of `rapid` nets,
    whose outputs are uncorrelated and of mean square 1. It does not learn. Labels are not looked at.

    Nothing turns it off.

    Args:
        images: how many are looked at.
        epsilon: keeps directions that hardly occur from being blown up.

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("rapid_8_16_16", classes=10, style=pool.style)
    >>> changed = sl.Whiten(images=200)(net, pool, seed=0)
    >>> whitening = changed.backbone.whitening.weight
    >>> whitening.shape, whitening.requires_grad
    (torch.Size([8, 1, 2, 2]), False)
    """

    name = "whiten"
    paper = "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
    arxiv = "2404.00498"
    shards = True

    def __init__(self, images: int = 2000, epsilon: float = 5e-4) -> None:
        if images < 1 or epsilon <= 0:
            raise UsageError(f"whiten(images={images}, epsilon={epsilon}): expected 1 image or more, and a positive "
                             "epsilon")
        self.images, self.epsilon = images, epsilon

    def check_net(self, net: Net, pool: Pool) -> None:
        if not isinstance(net.backbone, Rapid):
            raise UsageError(f"whiten: {net.name} has no layer for it; rapid_64_128_256 and the like have")

    def __call__(self, net: Net, pool: Pool, seed: int) -> Net:
        self.check_net(net, pool)
        assert isinstance(net.backbone, Rapid)
        seen = pixels(pool, some(pool.train, self.images, seed, "whiten"), net.mean.device)
        net.backbone.set_filters(whitening((seen - net.mean) / net.std, self.epsilon))
        return net


def whitening(images: Tensor, epsilon: float) -> Tensor:
    """[4 C, C, 2, 2]: U, by rising eigenvalue. images: float [n, C, H, W] of 2 pixels a side or more."""
    channels = images.shape[1]
    moment = torch.zeros(4 * channels, 4 * channels, dtype=torch.float64, device=images.device)
    count = 0
    for start in range(0, len(images), 500):
        patches = F.unfold(images[start : start + 500], 2).movedim(1, 2).reshape(-1, 4 * channels)
        moment += (patches.T @ patches).double()
        count += len(patches)
    values, vectors = torch.linalg.eigh(moment / count)
    rows = vectors.T / (values.clamp(min=0) + epsilon).sqrt()[:, None]
    found: Tensor = rows.to(images.dtype).view(-1, channels, 2, 2)
    return found
