"""Deep Reference Priors (Gao et al. 2022, arXiv 2202.00187): nets that agree on an image, but not on everything."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net, Output
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import seed_of
from ssl_lab.views import Strong, Weak


class ReferencePrior(Method):
    """L = sum_k H(y, p_k(weak(x))) + K / (1 - tau^2) * [H(y|w) - alpha * H(y)]

    over K nets with predictions p_k, the particles w of a uniform prior. A reference prior maximizes the mutual
    information H(y) - H(y|w) of w and the labels y of n images; alpha weighs the two. Per image,
    H(y|w) = -(1/KU) sum_kb 1[max_c w_kbc >= threshold] sum_c m_kbc (tau log w_kbc + (1 - tau) log s_kbc)
    with w = p(weak(u)), without gradient, s = p(strong(u)) and m = tau w + (1 - tau) s: an upper bound of the entropy
    of m, of the rows of which a particle is sure. H(y) is the entropy, divided by n, of
    (1/K) sum_k p_k(y_1|weak(u_1)) ... p_k(y_n|weak(u_n)) over the C^n outcomes for n consecutive rows, with gradient.

    Particles are evaluated by the mean of their averaged logits. Particle 0 is `net`; the others start from its
    weights, each tensor in a random order, which makes them fresh draws if its own are (not so if it is pretrained).
    The sum over particles, where the authors' code has the mean, lets each learn at the rate that one net would; they
    multiply the learning rate by K instead, and divide the weight decay.

    Args:
        particles: K.
        order: n; the unlabeled rows of a rank must be a multiple.
        alpha, tau: as above.
        threshold: least confidence of a row in H(y|w).
        seed: of the particles' weights.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.ReferencePrior(sl.net("tiny_4", classes=10, style=pool.style), particles=2, order=2)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['conditional', 'labeled', 'marginal']
    """

    name = "reference_prior"
    family = "consistency"
    paper = "Deep Reference Priors: What is the best way to pretrain a model?"
    arxiv = "2202.00187"
    unmixable = "has several losses of each labeled image"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})

    net: Ensemble

    def __init__(self, net: Net, particles: int = 4, order: int = 2, alpha: Scalar = 0.05, tau: Scalar = 1 / 3,
                 threshold: Scalar = 0.95, seed: int = 0, ema: Scalar = 0.999) -> None:
        if particles < 1 or order < 1:
            raise UsageError(f"reference prior with particles={particles}, order={order}: expected at least 1 of each.")
        others = [rearranged(net, seed_of(seed, "particle", k)) for k in range(1, particles)]
        super().__init__(Ensemble([net, *others]), ema)
        self.order = order
        self.alpha, self.tau, self.threshold = alpha, tau, threshold

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u, tau = batch.labeled, batch.unlabeled, at.value(self.tau)
        if len(u) % self.order:
            raise UsageError(f"reference prior of order {self.order} with {len(u)} unlabeled images in a batch of one "
                             "rank: expected a multiple of the order.")
        outputs = self.net.each(torch.cat([x["weak"], u["weak"], u["strong"]]))
        logits = torch.stack([output.logits for output in outputs], dim=1)
        count = logits.shape[1]
        labeled, weak, strong = logits.tensor_split((len(x), len(x) + len(u)))
        log_weak, log_strong = (part.log_softmax(dim=2, dtype=torch.promote_types(part.dtype, torch.float32))
                                for part in (weak, strong))
        confidence, pseudo = losses.pseudo_labels(weak.flatten(0, 1))
        mask = confidence >= at.value(self.threshold)
        conditional = bounded_entropy(log_weak.detach(), log_strong, tau).flatten() * mask
        scale = count / (1 - tau**2)
        return Loss(
            {
                "labeled": count * self.labeled_loss(labeled.flatten(0, 1), x.targets.repeat_interleave(count)),
                "conditional": scale * conditional.mean(),
                "marginal": -scale * at.value(self.alpha) * joint_entropy(log_weak, self.order),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().mean(dim=1).argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth.repeat_interleave(count), mask),
            },
        )


class Ensemble(Net):
    """Nets as one: their features side by side, [B, K * D], and the mean of their logits."""

    def __init__(self, particles: Sequence[Net]) -> None:
        nn.Module.__init__(self)  # each particle has its own backbone, head and normalization
        first = particles[0]
        self.name, self.classes = f"{len(particles)} x {first.name}", first.classes
        self.features_dim, self.class_names = len(particles) * first.features_dim, first.class_names
        self.particles = nn.ModuleList(particles)

    def each(self, x: Tensor) -> list[Output]:
        """What each of them says of the images x, float [B, C, H, W] in [0, 1]."""
        return [particle(x) for particle in self.particles]

    def forward(self, x: Tensor) -> Output:
        features, logits = zip(*self.each(x), strict=True)
        return Output(torch.cat(features, dim=1), torch.stack(logits).mean(dim=0))


@torch.no_grad()
def rearranged(net: Net, seed: int) -> Net:
    """A copy of the net with the entries of each weight tensor (2 or more dimensions) in a random order."""
    other = copy.deepcopy(net)
    draw = torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        if weight.ndim >= 2:
            order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return other


def bounded_entropy(log_p: Tensor, log_q: Tensor, tau: float) -> Tensor:
    """-sum_c m_c (tau log p_c + (1 - tau) log q_c) with m = tau p + (1 - tau) q: at least the entropy of m.

    log_p, log_q: log-probabilities [..., C]; returns [...]. Equal to the entropy where p = q.
    """
    mixed = tau * log_p.exp() + (1 - tau) * log_q.exp()
    return -(mixed * (tau * log_p + (1 - tau) * log_q)).sum(dim=-1)


def joint_entropy(log_p: Tensor, order: int) -> Tensor:
    """Entropy of the labels of `order` consecutive rows under a uniform mixture of particles, per row: scalar.

    log_p: log-probabilities [B, K, C], B a multiple of order. The mean over the B / order groups takes
    (B / order) * K * C^order numbers.
    """
    groups = log_p.view(-1, order, *log_p.shape[1:]).unbind(dim=1)
    joint = groups[0]
    for row in groups[1:]:
        joint = (joint[:, :, :, None] + row[:, :, None, :]).flatten(2)
    mixture = joint.logsumexp(dim=1) - math.log(log_p.shape[1])
    entropy = -(mixture.exp() * mixture).sum(dim=1)
    return entropy.mean() / order
