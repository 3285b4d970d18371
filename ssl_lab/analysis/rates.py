"""Effective learning rates of weights whose length does not matter (Kodryan et al. 2022, arXiv 2209.03695)."""

from __future__ import annotations

from ssl_lab.batch import Style
from ssl_lab.nets import Net
from ssl_lab.techniques.weights.invariant import free_layers


def effective_rates(net: Net, style: Style, rate: float) -> dict[str, float]:
    """rate / |w|^2 of each layer whose weights w a norm follows, by the layer's name, and "all" of them together

    by which the direction of w moves, the only thing that matters of it. Empty for nets without such layers. Of the
    three regimes of Kodryan et al. 2022 (arXiv 2209.03695: convergence, chaotic equilibrium, divergence) this is the
    coordinate, under plain SGD.

    Args:
        net: with such layers.
        style: of its images; a pass of one shows which layers a norm follows.
        rate: the learning rate.

    >>> rates = sl.analysis.effective_rates(sl.net("tiny_4"), sl.Style(), rate=0.1)
    >>> "all" in rates, min(rates.values()) == rates["all"]
    (True, True)
    """
    squares = {layer.name: layer.weight(net).detach().double().square().sum().item()
               for layer in free_layers(net, style)}
    return {name: rate / each for name, each in squares.items()} | (
        {"all": rate / sum(squares.values())} if squares else {})
