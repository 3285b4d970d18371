"""Entropy-SGD (Chaudhari et al. 2017), as in Pittorino et al. 2020 (arXiv 2006.07897): towards wide valleys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.optim import Closure
from ssl_lab.schedule import Scalar, linear
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import copies


class EntropySGD(StepTechnique):
    """From x' = mu = x and v' = 0, `steps` times on batches of their own:

        v' <- momentum v' + d,    d = grad L(x') + gamma (x' - x) + decay x'
        x' <- x' - lr (d + momentum v') + noise sqrt(2 lr) xi,    xi ~ N(0, I)
        mu <- average mu + (1 - average) x'

    and then v <- momentum v + (x - mu),  x <- x - pull (x - mu + momentum v).

    mu estimates the mean of Langevin dynamics around x, and x - mu is, up to gamma, the gradient of the local entropy.
    Each training step is one of x'; every `steps` of them, and in the last one, x moves. Learning rate and weight
    decay are the optimizer's, whose own rule and momenta play no part. The noise is the same on all ranks.

    Checked against two codes, Chaudhari's (ucla-vision/entropy-sgd at 61329f9, `python/optim.py`, `train.lua`) and one
    of the paper's experiments (package `sacreddnn`, entropy_sgd.py): a batch of its own for each inner step, momentum
    in both loops, noise outside of it; decay and the pull to x are within it in the latter. There inner steps have a
    fixed rate of 0.1, the outer rate falls from 1 or is 0.1 (times gamma in the latter), the outer loop decays again,
    and gamma grows by (1 + 1e-3)^t; that it goes from 0.1 to 1, and that pull stays, are our choice.

    Beside FixMatch (MNIST, 40 labels, 500 steps, 3 seeds) it gave 94.8 ± 0.7%, and 71.4 ± 1.5 without momentum;
    FixMatch alone has 95.8 ± 0.8.

    No argument turns it off; without noise and momentum, with average = gamma = 0, it is gradient descent.

    Args:
        gamma: how strongly x' is held near x; it is to grow.
        pull: eta gamma in the paper: 1 goes to mu.
        noise, average, steps: eps, alpha and L.
        momentum: Nesterov's, of both loops; the inner one begins anew. It is what keeps the pace: mu lags behind
            x', so that without it x goes 0.5 lr times the gradient for each gradient that is taken, with it 16 lr,
            and SGD with momentum 10.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     descent = sl.SGD(0.1, momentum=0.0, nesterov=False)
    ...     trainer = sl.Trainer(steps=2, optimizer=descent, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> same = sl.EntropySGD(1, gamma=0.0, noise=0.0, average=0.0, momentum=0.0)
    >>> torch.allclose(head(same), head())  # gradient descent
    True
    >>> start = sl.net("tiny_4", classes=10, style=pool.style).head.weight
    >>> near = head(sl.EntropySGD(2, momentum=0.0))  # x goes to a mean that lags behind
    >>> bool((near - start).norm() < (head() - start).norm())
    True
    """

    name = "entropy_sgd"
    paper = "Entropic gradient descent algorithms and wide flat minima"
    arxiv = "2006.07897"
    keeps_copies = True

    def __init__(self, steps: int = 5, gamma: Scalar = linear(0.1, 1.0), pull: float = 1.0, noise: float = 1e-4,
                 average: float = 0.75, momentum: float = 0.9) -> None:
        super().__init__()
        if steps < 1 or not 0 < pull <= 1 or noise < 0 or not 0 <= average < 1 or not 0 <= momentum < 1:
            raise UsageError(f"entropy_sgd: steps={steps}, pull={pull}, noise={noise}, average={average}, "
                             f"momentum={momentum}; expected 1 step or more, a pull above 0 to 1, no negative noise, "
                             "an average and a momentum from 0 to below 1")
        self.steps, self.gamma, self.pull, self.noise = steps, gamma, pull, noise
        self.average, self.momentum = average, momentum

    def begin(self, method: Method, seed: int) -> None:
        weights = [p for p in method.parameters() if p.requires_grad]
        self.centers, self.means = copies(weights, learn=False), copies(weights, learn=False)
        self.inner, self.outer = copies(weights, learn=False), copies(weights, learn=False)
        for velocity in (*self.inner, *self.outer):
            nn.init.zeros_(velocity)
        self._place = {id(weight): place for place, weight in enumerate(weights)}

    @torch.no_grad()
    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        with torch.enable_grad():
            loss = closure()
        gamma, draw = at.value(self.gamma), generator(at.seed, self.name, at.step)
        begins, ends = at.step % self.steps == 0, self.steps - at.step % self.steps == 1 or at.step + 1 == at.total
        for group in optimizer.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            for w in (w for w in group["params"] if w.grad is not None):
                place = self._place[id(w)]
                center, mean, inner = self.centers[place], self.means[place], self.inner[place]
                if begins:
                    center.copy_(w)
                    mean.copy_(w)
                    inner.zero_()
                w.sub_(self._ahead(inner, w.grad + gamma * (w - center) + decay * w), alpha=lr)
                if self.noise:
                    xi = torch.randn(w.shape, generator=draw, dtype=w.dtype)
                    w.add_(xi.to(w.device), alpha=self.noise * math.sqrt(2 * lr))
                mean.lerp_(w, 1 - self.average)
                if ends:
                    w.copy_(center - self.pull * self._ahead(self.outer[place], center - mean))
        return loss

    def _ahead(self, velocity: Tensor, direction: Tensor) -> Tensor:
        """Nesterov's step along `direction`, which `velocity` takes in."""
        return direction + self.momentum * velocity.mul_(self.momentum).add_(direction)
