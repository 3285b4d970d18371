"""Neuronal rewiring (Scabini et al. 2022, arXiv 2207.08148): first weights in an order that evens out strengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.data import Pool
from ssl_lab.nets import Net
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import NetTechnique


class Rewire(NetTechnique):
    """The first weights of each layer in another order, by preferential attachment (PARw)

    after which the strengths of its neurons, the sums of their weights, vary less: those of a layer's inputs by a first
    pass over its outputs, those of its outputs by a second one over the inputs (see `attached`). All convolutions and
    linear layers, the head too. It draws orders, no weights: what the net was initialized by stays.
    No argument turns it off.

    Checked against the authors' code (`weight_rewiring.py`).

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> changed = sl.Rewire()(net, pool, seed=0)
    >>> before = sl.net("tiny_4", classes=10, style=pool.style).head.weight
    >>> after = changed.head.weight
    >>> torch.equal(before, after), torch.equal(before.flatten().sort()[0], after.flatten().sort()[0])
    (False, True)
    """

    name = "rewire"
    paper = "Improving Deep Neural Network Random Initialization Through Neuronal Rewiring"
    arxiv = "2207.08148"
    fresh_only = True

    @property
    def overwrites(self) -> str:
        return "puts the weights of each layer in a random order"

    def check_net(self, net: Net, pool: Pool) -> None:
        """Any net has weights."""

    @torch.no_grad()
    def __call__(self, net: Net, pool: Pool, seed: int) -> Net:
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
                layer.weight.copy_(rewired(layer.weight.cpu(), generator(seed, "rewire", name)))
        return net


def rewired(weight: Tensor, draw: torch.Generator) -> Tensor:
    """The entries of a weight [out, ...] in another order: a pass over its outputs, then one over its inputs."""
    first = attached(weight.flatten(1), draw)
    return attached(first.T, draw).T.reshape(weight.shape)


def attached(matrix: Tensor, draw: torch.Generator) -> Tensor:
    """The entries of each row but the first in another order; float [n, m].

    Row i's weights, ascending, go to columns drawn one after another, without replacement, with probability
    proportional to s + |min s| + 1, s the sum of the rows before: strong columns get small weights.
    """
    rows = matrix.clone()
    strength = torch.zeros(rows.shape[1], dtype=torch.float64)
    for i in range(1, len(rows)):
        strength += rows[i - 1]
        likely = strength + strength.min().abs() + 1
        rows[i, drawn_in_order(likely, draw)] = rows[i].sort().values
    return rows


def drawn_in_order(likely: Tensor, draw: torch.Generator) -> Tensor:
    """All indices as they are drawn without replacement, with probabilities proportional to `likely`, positive [n]: the
    order of log p + Gumbel noise (Yellott 1977)."""
    noise = -torch.empty_like(likely).exponential_(generator=draw).log()
    return (likely.log() + noise).argsort(descending=True)
