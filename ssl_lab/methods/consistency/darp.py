"""DARP (Kim et al. 2020, arXiv 2007.08844): pseudo-labels refined until each class has its share of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.abc import checked_counts
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class DARP(Method):
    """FixMatch's loss with refined pseudo-labels: r_b in place of q_b = p(weak(u_b)). Over all N unlabeled images,

    r = argmin sum_n KL(r_n || y_n) / H(y_n)  such that  sum_n r_nc = M_c = N * class_counts_c / sum(class_counts)

    and rows sum to 1, so that unsure rows move most. y is q cleaned: of each class, only the largest delta * M_c
    entries are kept, scaled to sum to M_c. By duality r_nc ~ y_nc exp(-price_c H(y_n)); the prices are solved for
    from the latest q of every image seen. The paper's code looks up the r of that solution; here its prices are
    applied to the q of this step, the same for a q that has not changed. Before the first one, r = q.

    Chosen among methods for imbalanced classes because it asks nothing of the net and leaves sure pseudo-labels
    almost as they are, where alignment by a ratio changes sure and unsure ones alike.

    Args:
        images: size of the space of global indices, `len(pool)`.
        class_counts: in proportion to the classes among the unlabeled images, by the paper's default the number of
            labeled images of each class; all positive.
        threshold: least confidence of r.
        start: share of the run before the first solution.
        every: steps between two.
        rounds: of solving each.
        weight: of the unlabeled loss.
        delta: as above; the larger it is, the more entries of a class are kept.

    >>> pool = sl.load("digits").split(labels=10)
    >>> counts = np.bincount(pool.labels[pool.labeled], minlength=10).tolist()
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> method = sl.DARP(net, images=len(pool), class_counts=counts, threshold=0.2)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.logs["changed_rate"].item(), 2)  # nothing is refined before 0.4 of the run
    0.0
    """

    name = "darp"
    family = "consistency"
    paper = "Distribution Aligning Refinery of Pseudo-label for Imbalanced Semi-supervised Learning"
    arxiv = "2007.08844"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True
    shares: Tensor
    predictions: Tensor
    cutoff: Tensor
    scale: Tensor
    prices: Tensor

    def __init__(self, net: Net, images: int, class_counts: Sequence[int], threshold: Scalar = 0.95,
                 delta: float = 2.0, start: float = 0.4, every: int = 10, rounds: int = 10, weight: Scalar = 1.0,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold, self.weight = threshold, weight
        self.delta, self.start, self.every, self.rounds = delta, start, every, rounds
        counts = checked_counts(class_counts, net.classes)
        self.register_buffer("shares", counts / counts.sum(), persistent=False)
        self.register_buffer("predictions", torch.zeros(images, net.classes))  # the latest q, 0 where there is none
        self.register_buffer("cutoff", torch.zeros(net.classes))
        self.register_buffer("scale", torch.ones(net.classes))
        self.register_buffer("prices", torch.zeros(net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        q = losses.probabilities(weak.detach())
        refined = refine(clean(q, self.cutoff, self.scale), self.prices)
        confidence, pseudo = refined.max(dim=1)
        mask = confidence >= at.value(self.threshold)
        self.notes.put(at, u.indices, q)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, mask),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
                "changed_rate": (pseudo != q.argmax(dim=1)).float().mean(),
            },
        )

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        indices, q = self.notes.rows()
        # An image may be in a batch twice: its later row wins, on every device and rank.
        rows = torch.arange(len(indices), device=indices.device)
        latest = rows.new_zeros(len(self.predictions)).scatter_reduce(0, indices, rows, "amax")
        self.predictions[indices] = q[latest[indices]].to(self.predictions.dtype)
        if at.frac >= self.start and at.step % self.every == 0:
            seen = self.predictions.sum(dim=1, keepdim=True) > 0
            target = self.shares * seen.sum()
            cutoff, scale = cleaning(self.predictions, target, self.delta)
            self.cutoff.copy_(cutoff)
            self.scale.copy_(scale)
            self.prices.copy_(solve(clean(self.predictions, cutoff, scale), seen, target, self.rounds))


def cleaning(q: Tensor, target: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Of each class, the least entry to keep, and the factor that makes those kept sum to `target`: float [C] both.

    The largest delta * target_c entries (rounded down, at least one) of q [N, C] are kept, with any equal to the last.
    """
    last = (delta * target).long().clamp(1, len(q)) - 1
    cutoff = q.sort(dim=0, descending=True).values.gather(0, last[None])[0]
    kept = (q * (q >= cutoff)).sum(dim=0)
    return cutoff, (target + 1e-6) / (kept + 1e-6)


def clean(q: Tensor, cutoff: Tensor, scale: Tensor) -> Tensor:
    """Rows proportional to q_c scale_c 1[q_c >= cutoff_c] + 1e-6 that sum to 1: [B, C], all above 0."""
    y = q * scale * (q >= cutoff) + 1e-6
    return y / y.sum(dim=1, keepdim=True)


def refine(y: Tensor, prices: Tensor) -> Tensor:
    """Rows proportional to y_c exp(-prices_c H(y)) that sum to 1. y: float [B, C], above 0; prices: [C]."""
    return (y.log() - prices * _entropy(y)).softmax(dim=1)


def solve(y: Tensor, seen: Tensor, target: Tensor, rounds: int) -> Tensor:
    """The prices [C] with which, after enough rounds, the seen rows of `refine(y, prices)` sum to `target`, so that
    they solve DARP's problem; a few rounds leave them short of it.

    Each round brings every class to its target while rows are not normalized anew, by five steps of Newton's method
    on the logarithm of its sum, which is convex. y: [N, C], above 0. seen: bool [N, 1]. target: sums to seen.sum().
    """
    log_y, entropy, hidden, goal = y.log(), _entropy(y), ~seen, target.log()
    prices = unchanged = torch.zeros_like(target)
    for _ in range(rounds):
        log_r = log_y.addcmul(prices, entropy, value=-1).log_softmax(dim=1).masked_fill(hidden, -torch.inf)
        change = _newton(unchanged, log_r, entropy, goal)
        for _ in range(4):
            change = _newton(change, log_r.addcmul(change, entropy, value=-1), entropy, goal)
        prices = prices + change
    return prices


def _newton(change: Tensor, now: Tensor, entropy: Tensor, goal: Tensor) -> Tensor:
    """The change [C] after a step of Newton's method on logsumexp_n now_nc = goal_c; now_n falls with it by entropy_n.

    In few operations: 50 of these steps follow each other in a solution, and starting them is what takes the time.
    """
    slope = now.softmax(dim=0).T.mv(entropy[:, 0])
    return change.addcdiv(now.logsumexp(dim=0) - goal, slope)


def _entropy(y: Tensor) -> Tensor:
    """H of each row: [B, 1]."""
    entropy: Tensor = torch.special.entr(y).sum(dim=1, keepdim=True)
    return entropy
