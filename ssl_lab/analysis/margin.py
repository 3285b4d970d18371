"""By how much weights may change before an answer can (after Tsai et al. 2021, arXiv 2103.02200)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.nets import Net
from ssl_lab.techniques.term.perturbation_margin import margins, worst_change

HALVINGS = 40


@torch.no_grad()
def safe_radius(net: Net, x: Tensor, targets: Tensor) -> Tensor:
    """float [B]: the largest radius at which the bound `worst_change` stays below the margin of the right class, so
    that no change of each layer's weights by that share of their norm makes the answer wrong; 0 where it is wrong now.

    By halving an interval, to 1e-12. The bound, after Tsai et al. 2021 (arXiv 2103.02200), is safe and loose: larger
    changes may be harmless, too.

    Args:
        net: whose layers change.
        x: float [B, C, H, W] in [0, 1].
        targets: int64 [B].

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), mean=(0.0,), std=(1.0,))
    >>> x = torch.rand(8, 1, 2, 2)
    >>> radius = sl.analysis.safe_radius(net, x, net(x).logits.argmax(dim=1))
    >>> radius.shape, bool((radius > 0).all())
    (torch.Size([8]), True)
    """
    low = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for power in range(HALVINGS):
        tried = 2.0 ** -(power + 1)
        logits, change = worst_change(net, x, low + tried)
        low = torch.where(change < margins(logits, targets), low + tried, low)
    return low
