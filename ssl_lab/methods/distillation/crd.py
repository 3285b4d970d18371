"""CRD (Tian et al. 2020, arXiv 1910.10699): tell an image's teacher embedding from those of thousands of others."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.batch import At, Rows
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation.base import Distillation
from ssl_lab.methods.distillation.hooks import Seen, adapters
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.views import ViewFactory, Weak


class CRD(Distillation):
    """L = labeled * H(y, p(x)) + weight * [nce(s, M_t) + nce(t, M_s)]

    nce(a, M) = mean over rows i of -log h(a_i . M_i) - K mean over images j != i of log(1 - h(a_i . M_j))
    h(z) = exp(z / T) / (exp(z / T) + K Z / images),    Z / images = mean over i and j of exp(a_i . M_j / T)

    s and t are the student's and the teacher's pooled features after a linear layer each, which learn, scaled to
    length 1. M_s and M_t remember those of every image: after each step M_i <- unit(momentum M_i + (1 - momentum) v_i),
    and at first they are random. The normalizer Z, which the paper's equation leaves out, is that of the first step, as
    in the authors' code, from which also comes the sum of two losses against memories.

    One step's rows share the K images j, drawn without repetition; in the authors' code each row has its own, which is
    the same in expectation and thousands of times the memory. There, labeled images have negatives of other classes
    alone; here all other images are negatives, as few have labels.

    Args:
        images: size of the space of global indices, `len(pool)`.
        rows: int64 [n], those of the images that train, `pool.unlabeled`; the memories of the others stay random.
        negatives: K of these rows, or all if they are fewer.
        temperature: T.
        momentum: of the memories.
        dim: of the embeddings.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> method = sl.CRD(net, teacher, images=len(pool), rows=torch.from_numpy(pool.unlabeled), negatives=64)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> method.memory.shape
    torch.Size([2, 1797, 128])
    """

    name = "crd"
    paper = "Contrastive Representation Distillation"
    arxiv = "1910.10699"
    unmixable = "keeps what it has seen of each labeled image"
    reads = "features"
    memory: Tensor
    log_mean: Tensor

    def __init__(self, net: Net, teacher: Net | Teacher, images: int, rows: Tensor, negatives: int = 16384,
                 temperature: Scalar = 0.07, momentum: Scalar = 0.5, dim: int = 128, weight: Scalar = 0.8,
                 labeled: Scalar = 1.0, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        if min(len(rows), negatives) < 2:
            raise UsageError(f"CRD with {len(rows)} images that train, negatives={negatives}: expected at least 2 of "
                             "both, as one may be the image itself")
        if rows.max() >= images:
            raise UsageError(f"CRD with images={images}, but row {int(rows.max())} trains: expected len(pool)")
        self.candidates, self.negatives = rows.cpu(), min(negatives, len(rows))
        self.temperature, self.momentum = temperature, momentum
        self.embed = adapters(nn.Linear, [(net.features_dim, dim), (self.teacher.net.features_dim, dim)])
        memory = torch.randn(2, images, dim, generator=generator("crd"))
        self.register_buffer("memory", F.normalize(memory, dim=2))  # M_s, M_t
        self.register_buffer("log_mean", torch.full((2,), torch.nan))  # log(Z / images) of nce(s, M_t), nce(t, M_s)
        self.notes = Notes()

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        s, t = (F.normalize(embed(seen.features), dim=1)
                for embed, seen in zip(self.embed, (student, teacher), strict=True))
        order = torch.randperm(len(self.candidates), generator=generator(at.seed, "crd", at.step))
        chosen = self.candidates[order[: self.negatives]].to(rows.indices.device, non_blocking=True)
        temperature = at.value(self.temperature)
        both = [nce(anchors, memory, rows.indices, chosen, temperature, log_mean) for anchors, memory, log_mean in
                zip((s, t), self.memory.flip(0).unbind(), self.log_mean.unbind(), strict=True)]
        log_mean = torch.stack([each.log_mean for each in both])
        self.notes.put(at, rows.indices, torch.stack([s, t], dim=1), log_mean[None])
        return both[0].loss + both[1].loss

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        indices, embeddings, parts = self.notes.rows()
        self.log_mean.copy_(torch.where(self.log_mean.isnan(), parts.logsumexp(dim=0) - math.log(len(parts)),
                                        self.log_mean))
        remember(self.memory, indices, embeddings, at.value(self.momentum))


class Nce(NamedTuple):
    """loss: scalar. log_mean: scalar, log(Z / images) that was used."""

    loss: Tensor
    log_mean: Tensor


def nce(anchors: Tensor, memory: Tensor, indices: Tensor, chosen: Tensor, temperature: float, log_mean: Tensor) -> Nce:
    """The equation in CRD's docstring.

    anchors: [B, dim] and memory: [images, dim], of length 1. indices: int64 [B], of the anchors' images. chosen: int64
    [K], images that are negatives of all rows but their own. log_mean: scalar, NaN to take that of these scores.
    """
    positive = (anchors * memory[indices]).sum(dim=1) / temperature
    scores = anchors @ memory[chosen].T / temperature
    others = chosen != indices[:, None]
    own = scores.detach().flatten().logsumexp(dim=0) - math.log(scores.numel())
    log_mean = torch.where(log_mean.isnan(), own, log_mean)
    offset = math.log(len(chosen)) + log_mean  # h = sigmoid(score - offset)
    noise = -(F.logsigmoid(offset - scores) * others).sum(dim=1) / others.sum(dim=1)
    return Nce((len(chosen) * noise - F.logsigmoid(positive - offset)).mean(), log_mean)


def remember(memory: Tensor, indices: Tensor, embeddings: Tensor, momentum: float) -> None:
    """memory[:, i] <- unit(momentum * memory[:, i] + (1 - momentum) * v_i), in place.

    memory: [2, images, dim]. indices: int64 [n]. embeddings: [n, 2, dim]; of an image that is there more than once,
    v_i is the mean.
    """
    same = (indices[:, None] == indices).to(memory.dtype)
    mean = torch.einsum("ij,jkd->kid", same / same.sum(dim=1, keepdim=True), embeddings.to(memory.dtype))
    memory[:, indices] = F.normalize(memory[:, indices].lerp(mean, 1 - momentum), dim=2)
