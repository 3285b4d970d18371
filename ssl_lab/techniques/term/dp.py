"""DP-SGD at scale (De et al. 2022, arXiv 2204.13650): weights that tell next to nothing of any one image."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method, Supervised
from ssl_lab.methods.base import Views
from ssl_lab.nets import Net
from ssl_lab.optim import SGD, AdamW, Optimizer
from ssl_lab.optim.adaptive import Padam, RAdam
from ssl_lab.optim.lars import LARS
from ssl_lab.optim.muon import Muon
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.privacy import COUPLED, Beside, epsilon_of, noise_for, private_gradient
from ssl_lab.techniques.weights.invariant import BatchNorm

SAFE_OPTIMIZERS = (SGD, AdamW, RAdam, Padam, Muon, LARS)
"""Functions of gradients and weights alone: what they do to a private gradient stays private."""


class DP(TermTechnique):
    """The step's gradient is (1 / B) (sum_i clip(mean_k grad l(view_k x_i)) + noise * clip * N(0, I))

    with clip(g) = g min(1, clip / |g|_2), the mean over the `views` random views of an image taken *before* clipping
    (augmentation multiplicity), B the batch on average, and each labeled image in the batch by a coin of its own
    (Poisson sampling), which is what the accountant takes for granted. Momentum, decay and the moving average come
    after it and cost nothing.

    What is promised: the weights at all steps, and all that is made of them, are (epsilon, delta)-differentially
    private with regard to adding or removing one *labeled* image with its label, for whoever does not know the seed,
    by which all noise is drawn. Labeled-only privacy: training sees no other image, so that images without labels are
    trivially safe, and need no budget. All-image privacy, in which a method also learns from unlabeled images, is not
    offered: there an image acts on the losses of others, or needs a budget of its own; such methods are refused. No
    argument turns it off: without noise and clipping, too, rows are drawn by coins.
    What is *not* covered: training losses in metrics.jsonl and on the page, validation and test images (calibration
    uses the former), pixel means of the data as a whole, the weights that training began from, the choice of settings
    by several runs, and a data set that shows one person in several images.

    Checked against the authors' code (`jax_privacy`, an older commit), which rescales to clip 1 by 1 / C; its weight
    standardization is left out.

    Nets have to do without BatchNorm: --net tiny_16+gn. The paper takes clip 1, K 16, large batches, no momentum, no
    decay (`--optimizer "sgd(lr=2, momentum=0, nesterov=False, weight_decay=0)"`).

    MNIST, 4,000 labels, recipes/supervised.py with these and --labeled 512 --steps 500 --net tiny_16+gn --with
    "dp(epsilon=E, delta=1e-5, views=4)", one seed, 13 to 15 minutes of one core: test accuracy 23.5% for epsilon 1,
    79.2% for 3, 93.1% for 8; 94.0% of the same run without it, and 97.0% by the usual SGD (3.4 minutes).

    Args:
        epsilon, delta: the budget of the whole run; noise follows from them, the sampling rate and the number of
            steps, by the accountant of `opacus` (Renyi, pip install "ssl_lab[dp]"), and summary.json says what was
            spent.
        noise: give it in place of epsilon; 0 is no privacy.
        clip: C; None does not clip, which only noise=0 allows.
        views: K.
        chunk: images whose gradients are held at once.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4+gn", classes=10, style=pool.style))
    >>> term = sl.DP(noise=1.0, epsilon=None).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled']
    """

    name = "dp"
    paper = "Unlocking High-Accuracy Differentially Private Image Classification through Scale"
    arxiv = "2204.13650"
    serves = "privacy"
    excludes: ClassVar[Mapping[str, str]] = Beside()
    one_pass = True
    rate: Tensor

    def __init__(self, epsilon: float | None = 8.0, delta: float = 1e-5, clip: float | None = 1.0, views: int = 1,
                 noise: float | None = None, chunk: int = 64) -> None:
        super().__init__()
        if noise is not None and epsilon not in (None, 8.0):
            raise UsageError(f"dp: epsilon={epsilon} and noise={noise} exclude each other: one follows from the other")
        if noise is None and (epsilon is None or not epsilon > 0):
            raise UsageError(f"dp: epsilon={epsilon}; expected a budget above 0")
        if not 0 < delta < 1 or views < 1 or chunk < 1 or (noise is not None and not noise >= 0):
            raise UsageError(f"dp: delta={delta}, views={views}, noise={noise}, chunk={chunk}; expected a delta from 0 "
                             "to 1 (without these), 1 view and 1 image or more, and noise of 0 or more")
        if clip is None and noise != 0:
            raise UsageError("dp: without clipping one image can change the gradient by any amount, and no noise hides "
                             "it: clip=None goes with noise=0 alone, which is no privacy")
        if clip is not None and not clip > 0:
            raise UsageError(f"dp: clip={clip}; expected a length above 0")
        self.epsilon, self.delta, self.clip, self.views_of_each, self.noise, self.chunk = (
            epsilon, delta, clip, views, noise, chunk)

    @property
    def text(self) -> str:
        said = {"epsilon": (self.epsilon, 8.0), "delta": (self.delta, 1e-5), "clip": (self.clip, 1.0),
                "views": (self.views_of_each, 1), "noise": (self.noise, None), "chunk": (self.chunk, 64)}
        parts = ", ".join(f"{name}={value!r}" for name, (value, usual) in said.items() if value != usual)
        return f"dp({parts})" if parts else "dp"

    def check(self, method: Method, pool: Pool) -> None:
        if type(method) is not Supervised:  # another may have another loss
            raise UsageError(f"dp: {method.name} {COUPLED.get(method.name, COUPLED[''])}; supervised can be private")
        if find_spec("opacus") is None:
            raise UsageError('dp counts what is spent by opacus, which is not installed: pip install "ssl_lab[dp]"')
        net: Net = method.net
        if any(isinstance(part, BatchNorm) for part in net.modules()):
            raise UsageError(f"dp: {net.name} has BatchNorm, by which each image acts on the others of its batch: take "
                             f"--net {net.name}+gn, which has GroupNorm in its place")
        if self.noise != 0 and self.delta >= 1 / max(1, len(pool.labeled)):
            raise UsageError(f"dp: delta={self.delta:g} with {len(pool.labeled)} labeled images: at 1 over their "
                             "number or more, it promises nothing, as a run may give one away; make it smaller")

    def check_optimizer(self, optimizer: Optimizer) -> None:
        if type(optimizer) not in SAFE_OPTIMIZERS:
            raise UsageError(f"dp: {type(optimizer).__name__} may look at losses or images beside the private "
                             f"gradient; take one of {', '.join(each.__name__ for each in SAFE_OPTIMIZERS)}")

    def begin(self, pool: Pool, seed: int) -> None:
        view, = self.base.views.labeled.values()
        self.views = Views(labeled={f"view_{k + 1}": view for k in range(self.views_of_each)}, poisson=True)
        self._images = len(pool.labeled)
        self.register_buffer("rate", torch.zeros((), dtype=torch.float64))

    def forward(self, batch: Batch, at: At) -> Loss:
        rows = batch.labeled
        if not rows.expected or at.world > 1:
            raise UsageError("dp: batches have to come by Poisson sampling, to one process, or the budget is not what "
                             "is spent; train with sl.Trainer, without torchrun and micro-batches")
        rate = rows.expected / self._images
        self.rate.fill_(rate)
        noise = noise_for(self.epsilon, self.delta, rate, at.total) if self.noise is None else self.noise
        x = torch.stack(list(rows.views.values()), dim=1)
        found, loss = private_gradient(self.net, self.base.labeled_losses, x, rows.targets, rows.expected, self.clip,
                                       noise, self.chunk, generator(at.seed, "dp", at.step))
        slope = sum(((w * found[name]).sum() for name, w in self.net.named_parameters() if name in found),
                    torch.zeros((), device=x.device))
        return Loss({"labeled": loss.float() + (slope - slope.detach()).float()})

    def account(self, steps: int) -> dict[str, float | str | None]:
        rate = float(self.rate)
        noise = noise_for(self.epsilon, self.delta, rate, steps) if self.noise is None else self.noise
        spent = epsilon_of(noise, self.delta, rate, steps) if noise else None
        private = (f"weights, for each of {self._images} labeled images (add or remove one; Poisson sampling)" if noise
                   else "nothing: noise is 0")
        return {**super().account(steps), "epsilon": spent, "delta": self.delta if noise else None,
                "noise_multiplier": noise, "sampling_rate": rate, "private": private}
