"""OpenCoS (Park et al. 2021, arXiv 2107.08943): FixMatch where some unlabeled images are of none of the classes."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net, Output
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak

Values = Tensor | NDArray[Any]


class OpenCoS(Method):
    """L = mean H(y, p(weak(x))) + weight * mean_in 1[max q_b >= threshold] H(argmax q_b, p(strong(u_b)))
                                 + outside * mean_out H(s_b, p'(weak(u_b))),        q_b = p(weak(u_b)) without gradient

    `split_open_set` tells beforehand, by the embeddings of an encoder trained without labels, which images are in
    class, the soft labels s of the others, and which are so surely of a class that they count as labeled. p' is the
    net with BatchNorms of its own, statistics and weights, since images from elsewhere have other statistics.

    A step's unlabeled rows are of both kinds; those of each are repeated until they fill the batch, so that
    both passes have the paper's size. A confident image counts as labeled whenever it comes along among the unlabeled
    ones; the paper's code draws the labeled batch from both, each class as often.

    All are by global index, and only the rows of unlabeled images matter.

    Args:
        in_class: bool [images].
        soft_labels: float [images, C].
        confident: int64 [images], a class, or -1.
        threshold, weight: FixMatch's.
        outside: of the loss of images out of class.

    >>> pool = sl.load("digits").split(labels=10)
    >>> inside = torch.arange(len(pool)) % 2 == 0  # as `split_open_set` would tell
    >>> soft, surely = torch.full((len(pool), 10), 0.1), torch.full((len(pool),), -1)
    >>> method = sl.OpenCoS(sl.net("tiny_4", classes=10, style=pool.style), inside, soft, surely)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.logs["in_class_rate"].item(), 2)
    0.25
    """

    name = "opencos"
    family = "consistency"
    paper = "OpenCoS: Contrastive Semi-supervised Learning for Handling Open-set Unlabeled Data"
    arxiv = "2107.08943"
    unmixable = "has unlabeled images in its labeled loss"
    recipe = "recipes/openset.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    in_class: Tensor
    soft_labels: Tensor
    confident: Tensor

    def __init__(self, net: Net, in_class: Tensor, soft_labels: Tensor, confident: Tensor, threshold: Scalar = 0.95,
                 weight: Scalar = 1.0, outside: Scalar = 0.5, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        images = len(in_class)
        if in_class.dtype != torch.bool or soft_labels.shape != (images, net.classes) or confident.shape != (images,):
            raise UsageError(f"in_class is {in_class.dtype} {list(in_class.shape)}, soft_labels is "
                             f"{list(soft_labels.shape)}, confident {list(confident.shape)}; expected torch.bool "
                             f"[images], [images, {net.classes}] and [images]")
        self.threshold, self.weight, self.outside = threshold, weight, outside
        for name, value in (("in_class", in_class), ("soft_labels", soft_labels), ("confident", confident)):
            self.register_buffer(name, value)
        norms = {name: norm for name, norm in net.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
        self._norm_names = list(norms)
        self.auxiliary_norms = nn.ModuleList(map(copy.deepcopy, norms.values()))

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        inside = self.in_class[u.indices]
        ins, outs = filled(inside), filled(~inside)
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"][ins], u["strong"][ins]))
        confidence, pseudo = losses.pseudo_labels(weak)
        mask = (confidence >= at.value(self.threshold)) & inside[ins]
        sure = self.confident[u.indices[ins]]
        targets = torch.cat([x.targets, sure.where((sure >= 0) & inside[ins], -100)])  # -100: not in the mean
        foreign = self._auxiliary(u["weak"][outs]).logits
        soft = self.soft_labels[u.indices[outs]]
        return Loss(
            {
                "labeled": self.labeled_loss(torch.cat([labeled, weak]), targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, mask),
                "outside": at.value(self.outside) * losses.masked_cross_entropy(foreign, soft, ~inside[outs]),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth[ins], mask),
                "in_class_rate": inside.float().mean(),
            },
        )

    def _auxiliary(self, x: Tensor) -> Output:
        """The net's output with the auxiliary BatchNorms in place of its own."""
        tensors = {f"{name}.{key}": tensor for name, norm in zip(self._norm_names, self.auxiliary_norms, strict=True)
                   for key, tensor in (*norm.named_parameters(), *norm.named_buffers())}
        output: Output = torch.func.functional_call(self.net, tensors, (x,))
        return output


def filled(chosen: Tensor) -> Tensor:
    """int64 [B]: the rows where `chosen` (bool [B]) holds, in order, again and again until there are B.

    If it holds nowhere, all rows, which the caller has to leave out of the loss. Nothing is read back to the host.
    """
    order, count = torch.argsort(~chosen, stable=True), chosen.sum()
    return order[torch.arange(len(chosen), device=chosen.device) % torch.where(count > 0, count, len(chosen))]


class OpenSet(NamedTuple):
    """in_class: bool [N]. soft_labels: float [N, C], rows that sum to 1. confident: int64 [N], a class, or -1."""

    in_class: Tensor
    soft_labels: Tensor
    confident: Tensor

    def by_index(self, rows: Values, images: int) -> OpenSet:
        """The same for all `images` of a pool of which these are the `rows` (int64 [N]); 0 for the others."""
        rows = torch.as_tensor(rows)
        whole = [values.new_zeros(images, *values.shape[1:]).index_copy(0, rows, values) for values in self]
        return OpenSet(*whole)


def check_labels(targets: Values, classes: int) -> None:
    """UsageError unless every class has a labeled image and some class two: a lone image is its own center.

    targets: int64 [L], the classes of the labeled images.
    """
    counts = torch.bincount(torch.as_tensor(targets), minlength=classes)
    if len(counts) != classes or counts.min() < 1 or counts.max() < 2:
        raise UsageError(f"labeled images by class: {counts.tolist()}; to know a class, OpenCoS needs one of each of "
                         f"the {classes} classes, and more to know how much they differ")


def split_open_set(embeddings: Values, labeled: Values, targets: Values, classes: int, deviations: float = 2.0,
                   temperature: float = 0.1, top: float = 0.1) -> OpenSet:
    """Which images are in class, by their likeness to the labeled ones of each class.

    sim_c(z) is the cosine of z and the mean labeled embedding of class c, and z is in class if max_c sim_c(z) >
    mean - deviations * std of that maximum over the labeled images. The soft label is softmax(sim / temperature).
    Confident are the `top` of those in class of which a linear classifier of the labeled embeddings is surest
    (multinomial logistic regression, as in the paper's code, of embeddings that here have length 1).

    embeddings: float [N, D], of images to tell apart. labeled: float [L, D]. targets: int64 [L], their classes.
    UsageError for labels that do not suffice (see `check_labels`).
    """
    from sklearn.linear_model import LogisticRegression

    check_labels(targets, classes)
    embeddings, labeled, targets = map(torch.as_tensor, (embeddings, labeled, targets))
    centers = torch.zeros(classes, labeled.shape[1], dtype=labeled.dtype).index_add_(0, targets, labeled)
    centers = F.normalize(centers, dim=1)  # the mean but for its length
    labeled, embeddings = F.normalize(labeled, dim=1), F.normalize(embeddings, dim=1)
    own, similar = (labeled @ centers.T).amax(dim=1), embeddings @ centers.T
    in_class = similar.amax(dim=1) > own.mean() - deviations * own.std()

    probe = LogisticRegression(C=1e4 / len(labeled), max_iter=1000).fit(labeled.numpy(), targets.numpy())
    confidence, label = torch.from_numpy(probe.predict_proba(embeddings.numpy())).max(dim=1)
    surest = torch.where(in_class, confidence, -1).argsort(descending=True, stable=True)
    surest = surest[: int(top * int(in_class.sum()))]
    confident = torch.full_like(label, -1)
    confident[surest] = label[surest]
    return OpenSet(in_class, (similar / temperature).softmax(dim=1), confident)
