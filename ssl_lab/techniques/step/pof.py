"""PoF (Sato et al. 2022, arXiv 2207.01847): features that suit a head which moves."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.batch import At, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.ranks import mean_over_ranks
from ssl_lab.optim import Closure, plain
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import gradients, moved


class PoF(StepTechnique):
    """The optimizer's step of all but the head W by grad L(B1) at W - u reach eta grad_W L(B2),    u ~ U(0, 1)

    B1 and B2 are the halves of the batch, each normalized by its own statistics, and eta is the rate that lowers L(B2)
    most. While it acts the head itself never moves. It is for the end of a training, of itself (`after`) or, from the
    first step, of another run's net: `recipes/finetune.py --from RUN --head start --with "pof(after=0)"`. So early,
    where the head is a random one, it trains features for that. Of 500 steps of FixMatch (MNIST, 40 labels, 3 seeds) it
    gave 94.3 ± 0.2% for the last fifth, 74.8 ± 14.1 from the first; FixMatch alone has 95.8 ± 0.8.

    Checked against the authors' code (`PoF-v1`, train.py), which doubles eta until L(B2) rises and then refines it, and
    draws B2 afresh.

    Args:
        after: the fraction of training from which it acts, plain steps before; 0.8 is the authors' 200 epochs, and
            then 50 of it.
        reach: how far beyond that minimum the head goes, gamma in their code.
        first, searched: eta is the best of 0 and `first` times 1, 2, 4, ..., so many.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=2, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> torch.equal(head(sl.PoF(after=1.0)), head())  # the plain step until then
    True
    >>> first = sl.net("tiny_4", classes=10, style=pool.style).head.weight
    >>> torch.equal(head(sl.PoF(after=0.0)), first)  # while it acts, the head never moves
    True
    """

    name = "pof"
    paper = "PoF: Post-Training of Feature Extractor for Improving Generalization"
    arxiv = "2207.01847"
    rates: Tensor

    def __init__(self, after: float = 0.8, reach: float = 2.0, first: float = 1.0, searched: int = 6) -> None:
        super().__init__()
        if not 0 <= after <= 1 or reach < 0 or first <= 0 or searched < 1:
            raise UsageError(f"pof: after={after}, reach={reach}, first={first}, searched={searched}; expected after "
                             "from 0 to 1, no negative reach, a positive first rate, and 1 rate or more")
        self.after, self.reach, self.first, self.searched = after, reach, first, searched

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies:
            raise UsageError(f"pof moves the classifier's head, and {method.name} trains no classifier")

    def begin(self, method: Method, seed: int) -> None:
        self._head = list(method.net.head.parameters())
        self.register_buffer("rates", torch.tensor([0.0, *self._rates]), persistent=False)

    @property
    def _rates(self) -> list[float]:
        return [self.first * 2**k for k in range(self.searched)]

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        if at.frac < self.after:
            return plain(closure, optimizer, at)
        one, other = closure.parts(2)
        found = [other().total.detach()]
        head = [w for w in self._head if w.grad is not None]
        slope = gradients(head)
        for rate in self._rates:
            with moved(head, [-rate * g for g in slope]):
                found.append(other().total.detach())
        eta = self.rates.gather(0, mean_over_ranks(torch.stack(found)).argmin().view(1))
        u = torch.rand((), generator=generator(at.seed, self.name, at.step)).item()
        with moved(head, [-u * self.reach * eta * g for g in slope]):
            loss = one()
        for w in head:
            w.grad = None
        optimizer.step()
        return loss
