"""Attacks: images nearby that a net gets wrong. The net is in evaluation mode meanwhile, and learns nothing from them.

x: float [B, C, H, W] in [0, 1], which attacked images stay in. targets: int64 [B]. No gradient comes back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.losses import full_precision
from ssl_lab.nets import Net, evaluating


def pgd(net: Net, x: Tensor, targets: Tensor, radius: float, steps: int = 20, size: float | None = None,
        noise: Tensor | None = None, gap: float = 1.0) -> Tensor:
    """Projected gradient ascent in the box of a radius (Madry et al. 2018, arXiv 1706.06083):

        x' <- clip(x' + size sign(grad l(x')), x - radius, x + radius),    from x' = x + radius noise

    size: of a step; by default 2.5 radius / steps. noise: like x, in [-1, 1]; None starts at x. gap: rows move only
    while max_(j != y) p_j - p_y <= gap, looked at before each step (Sitawarin et al. 2020, arXiv 2003.09347): 1 is
    plain ascent, and below -1 nothing moves. Radius 0 gives x.
    """
    size = 2.5 * radius / steps if size is None else size
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    moved = x.detach() if noise is None else (x + radius * noise).clamp(0, 1).detach()
    with evaluating(net), full_precision(x.device), torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_()
            logits = net(moved).logits
            slope, = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), moved)
            moves = (lead(logits.detach(), targets) <= gap).view(-1, 1, 1, 1)
            moved = (moved.detach() + size * moves * slope.sign()).clamp(low, high)
    return moved.detach()


def lead(logits: Tensor, targets: Tensor) -> Tensor:
    """float [B], in [-1, 1]: by how much the likeliest other class is likelier than the right one."""
    p = logits.softmax(dim=1)
    right = p.gather(1, targets[:, None])
    return (p.scatter(1, targets[:, None], -1).amax(dim=1, keepdim=True) - right)[:, 0]


def second_order(net: Net, x: Tensor, targets: Tensor, radius: float, size: int = 3) -> Tensor:
    """One step of length `radius` (L2, in pixels of [0, 1]) along +-d, where d is `krylov`'s answer to H d = g for the
    image's own gradient g and Hessian H of the loss, and the sign is the one that climbs.

    Where the quadratic g'd + d'Hd / 2 promises less than along g itself, it is along g: never worse than first order,
    by that model. size: of the Krylov space; 1 is the gradient's direction.
    """
    eager = torch.compiler.set_stance("force_eager")  # compiled code has no second gradient
    with evaluating(net), full_precision(x.device), torch.enable_grad(), eager:
        near = x.detach().requires_grad_()
        slope, = torch.autograd.grad(F.cross_entropy(net(near).logits, targets, reduction="sum"), near,
                                     create_graph=True)

        def product(direction: Tensor) -> Tensor:
            bent, = torch.autograd.grad(slope, near, direction.view_as(near), retain_graph=True,
                                        materialize_grads=True)
            return bent.flatten(1)

        g = slope.detach().flatten(1)
        steps = [radius * F.normalize(d) for d in (krylov(product, g, size), g)]
        steps = [step * torch.where((g * step).sum(1, keepdim=True) < 0, -1.0, 1.0) for step in steps]
        promised = [(g * step + step * product(step) / 2).sum(1) for step in steps]
    best = torch.where((promised[0] >= promised[1])[:, None], steps[0], steps[1])
    moved: Tensor = (x + best.view_as(x)).clamp(0, 1).detach()
    return moved


def krylov(product: Callable[[Tensor], Tensor], b: Tensor, size: int) -> Tensor:
    """float [B, D]: per row, the d in span{b, Hb, ..., H^(size - 1) b} of least |H d - b|.

    product: directions [B, D] -> H d, row by row. b: [B, D]; rows of zeros give zeros. Rows whose space has fewer
    dimensions than `size` are solved within those that there are.
    """
    basis, images = [F.normalize(b)], []
    for _ in range(size):
        images.append(product(basis[-1]))
        fresh = images[-1]
        for _ in range(2):  # once is not enough in float32
            for known in basis:
                fresh = fresh - (fresh * known).sum(1, keepdim=True) * known
        real = fresh.norm(dim=1, keepdim=True) > 1e-6 * images[-1].norm(dim=1, keepdim=True)
        basis.append(torch.where(real, F.normalize(fresh), 0.0))
    space, seen = (torch.stack(each, dim=2).double() for each in (basis[:size], images))
    weights = torch.linalg.pinv(seen.mT @ seen, hermitian=True, rtol=1e-12) @ (seen.mT @ b.double()[:, :, None])
    found: Tensor = (space @ weights)[:, :, 0].to(b.dtype)
    return found
