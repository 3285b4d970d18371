"""Gradients that hide each image, and what they spend of a privacy budget; see `dp`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import RowLosses
from ssl_lab.nets import Net

_BUDGET = "learns from unlabeled images too, each of which would need a budget of its own, and dp has one for labels"
_THRESHOLDS = "sets thresholds or class shares by all images together, so that each acts on the losses of others"
_MIXES = "mixes images with each other, so that clipping one image's gradient does not bound what it does"
_COMPARES = "compares images with each other in its loss, so that no gradient is of one image"
COUPLED: Mapping[str, str] = {
    "": _BUDGET, **dict.fromkeys(("mixmatch", "remixmatch", "ict"), _MIXES),
    **dict.fromkeys(("flexmatch", "freematch", "softmatch", "adamatch", "dash", "darp", "abc", "hiermatch", "opencos",
                     "finessl"),
                    _THRESHOLDS),
    **dict.fromkeys(("simmatch", "comatch", "simclr", "moco_v2", "moco_v3", "nnclr", "swav", "barlow_twins", "vicreg",
                     "dino", "crd", "rkd", "sp", "cc", "pkt", "reference_prior"), _COMPARES)}
"""Why methods cannot be private, by name; "" for others."""
ALLOWED = ("swa", "lookahead", "dropout", "drop_path", "rewire")
"""Techniques that see weights alone, or one image at a time."""


class Beside(Mapping[str, str]):
    """What `dp` excludes: all but `ALLOWED`."""

    def __getitem__(self, name: str) -> str:
        if name in ALLOWED:
            raise KeyError(name)
        return "it may look at images beside the private gradient, and the promise would be false"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def private_gradient(net: Net, losses: RowLosses, x: Tensor, targets: Tensor, expected: float, clip: float | None,
                     noise: float, chunk: int, draw: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """(1 / expected) (sum_i g_i min(1, clip / |g_i|) + noise clip z), by parameter, and the mean loss (not private)

    g_i the gradient of the mean loss of image i's views, by all parameters of the net that learn together.

    x: float [n, K, C, H, W], K views of n images; n may be 0. targets: int64 [n]. losses: of rows. clip: None for no
    limit, with noise 0. chunk: images whose gradients are held at once. draw: of z, on the CPU.
    """
    learning = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in net.named_parameters() if not p.requires_grad} | dict(net.named_buffers())

    def loss_of(weights: dict[str, Tensor], views: Tensor, target: Tensor) -> Tensor:
        logits = torch.func.functional_call(net, (weights, fixed), (views,)).logits
        return losses(logits, target.expand(len(views))).mean()

    each = torch.func.vmap(torch.func.grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different")
    total, loss = {name: torch.zeros_like(w) for name, w in learning.items()}, x.new_zeros(())
    with full_precision(x.device):
        for views, labels in zip(torch.split(x, chunk), torch.split(targets, chunk), strict=True):
            if not len(views):
                continue
            slopes, values = each(learning, views, labels)
            loss = loss + values.sum() / max(1, len(x))
            squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in slopes.values()]).sum(dim=0)
            share = torch.ones_like(squares) if clip is None else (clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1)
            for name, g in slopes.items():
                total[name] += torch.tensordot(share, g, dims=1)
    if noise:
        if clip is None:
            raise UsageError("private_gradient: noise needs a limit of each image's gradient to be measured by")
        for g in total.values():
            g += noise * clip * torch.randn(g.shape, generator=draw, dtype=g.dtype).to(g.device)
    return {name: g / expected for name, g in total.items()}, loss


@functools.cache
def noise_for(epsilon: float | None, delta: float, rate: float, steps: int) -> float:
    """The smallest noise multiplier, to a hundredth of epsilon, that spends no more than this budget."""
    def found() -> float:
        from opacus.accountants.utils import get_noise_multiplier

        return float(get_noise_multiplier(target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps,
                                          accountant="rdp"))
    try:
        return _quietly(found)
    except ValueError as error:
        raise UsageError(f"dp: no noise keeps epsilon={epsilon}, delta={delta:g} over {steps} steps at a sampling rate "
                         f"of {rate:.3g}: {error}") from error


@functools.cache
def epsilon_of(noise: float, delta: float, rate: float, steps: int) -> float:
    """What so many steps spend, by Renyi accounting of the Poisson-subsampled Gaussian mechanism."""
    def found() -> float:
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(noise, rate, steps)]
        return float(accountant.get_epsilon(delta))
    return _quietly(found)


def _quietly(compute: Callable[[], float]) -> float:
    """opacus warns where its grid of orders ends: the epsilon is then larger than it need be, and still right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compute()
