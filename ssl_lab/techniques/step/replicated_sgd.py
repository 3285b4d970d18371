"""Replicated SGD (Pittorino et al. 2020, arXiv 2006.07897): several nets that attract each other."""

from __future__ import annotations

import torch
from torch import nn

from ssl_lab.batch import At, Loss, mean_loss
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.optim import Closure
from ssl_lab.schedule import Scalar, linear
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import copies, mean_of


class ReplicatedSGD(StepTechnique):
    """L = (1 / y) sum_a L(w_a) + gamma (1 / y) sum_a ||w_a - mean||^2,    mean = (1 / y) sum_a w_a

    over y replicas of all weights, each with momenta of its own, by any optimizer; the gradient passes the mean, where
    its parts cancel. It is taken y times: replica a moves by grad L(w_a) + 2 gamma (w_a - mean), as fast as one net
    alone. The net holds the mean, which is evaluated. All replicas see the same batch: a step costs y steps.
    BatchNorm's running statistics are those of the first replica's passes.

    Checked against code of the paper's experiments (package `sacreddnn`, robust.py and its training script), which
    multiplies the learning rate by y (and so decays y times as much), begins with replicas of independent weights,
    gives each a batch of its own, and evaluates with the mean of the replicas' statistics. There gamma grows
    geometrically, 10,000 times over the run, from where both terms are equal; that it goes from 0.1 to 1, and that
    replicas begin from one net, as a method is given one, are our choice.

    Beside FixMatch (MNIST, 40 labels, 500 steps, 3 seeds) it gave 96.5 ± 0.5%, and 92.5 ± 1.1 at the y-th part of the
    pace; FixMatch alone has 95.8 ± 0.8.

    Args:
        replicas: y; one is the plain step.
        gamma: it is to grow.
        spread: replicas but the first begin with Gaussian noise of so many times the root mean square of each
            tensor.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=2, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> torch.equal(head(sl.ReplicatedSGD(replicas=1)), head())  # the plain step
    True
    >>> torch.allclose(head(sl.ReplicatedSGD(replicas=2, spread=0.0)), head(), atol=1e-6)  # replicas that are the same
    True
    """

    name = "replicated_sgd"
    paper = "Entropic gradient descent algorithms and wide flat minima"
    arxiv = "2006.07897"
    keeps_copies = True

    def __init__(self, replicas: int = 3, gamma: Scalar = linear(0.1, 1.0), spread: float = 0.1) -> None:
        super().__init__()
        if replicas < 1 or spread < 0:
            raise UsageError(f"replicated_sgd: replicas={replicas}, spread={spread}; expected 1 replica or more, and "
                             "no negative spread")
        self.replicas, self.gamma, self.spread = replicas, gamma, spread

    @torch.no_grad()
    def begin(self, method: Method, seed: int) -> None:
        self._mean = [p for p in method.parameters() if p.requires_grad]
        self.weights = nn.ModuleList(copies(self._mean, learn=True) for _ in range(self.replicas))
        for number, replica in enumerate(self.weights):
            draw = generator(seed, self.name, number)
            for w in replica.parameters() if number else ():
                noise = torch.randn(w.shape, generator=draw, dtype=w.dtype).to(w.device)
                w.add_(noise * w.square().mean().sqrt(), alpha=self.spread)
        self._meet()

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        if any(group.get("part") is not None for group in optimizer.param_groups):
            raise UsageError("replicated_sgd trains copies of all weights at one learning rate, and some parts have "
                             "others here; leave it out, or give all parts the same (--backbone-rate 1)")
        replicas = [list(replica.parameters()) for replica in self.weights]
        centers = mean_of([[w.detach() for w in replica] for replica in replicas])
        losses, slopes = [], []
        for replica in replicas:
            with torch.no_grad():
                torch._foreach_copy_(list(self._mean), [w.detach() for w in replica])
            losses.append(closure())
            slopes.append([w.grad for w in self._mean])
        gamma = at.value(self.gamma)
        with torch.no_grad():
            for replica, slope in zip(replicas, slopes, strict=True):
                for w, g, center in zip(replica, slope, centers, strict=True):
                    w.grad = None if g is None else g + 2 * gamma * (w - center)
        for w in self._mean:
            w.grad = None
        optimizer.step()
        self._meet()
        return mean_loss(losses)

    @torch.no_grad()
    def _meet(self) -> None:
        """Puts the replicas' mean into the net."""
        means = mean_of([[w.detach() for w in replica.parameters()] for replica in self.weights])
        torch._foreach_copy_(list(self._mean), means)
