"""What a method is: an `nn.Module` whose `forward(batch, at)` returns a `Loss`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets import Ema, Net, Output
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, by_name, named
from ssl_lab.views.naming import replaced, text_of

Forward = Literal["joint", "split"]
RowLosses = Callable[[Tensor, Tensor], Tensor]
"""Logits float [B, C] and targets (int64 [B], or probabilities [B, C]) -> the loss of each row, float [B]."""
Edit = nn.Parameter | tuple[nn.Parameter, Tensor]
"""A parameter that was written into: all of it, or where a mask of its shape is true."""
IGNORED = -100  # torch's: a target that does not count


@dataclass(frozen=True)
class Views:
    """The views that a method consumes: name -> factory, e.g. `{"weak": Weak, "strong": Strong}`.

    The loop builds each from the data set's style and hands them over as `batch.labeled["weak"]`. Two names with the
    same factory are two independent draws.

    Attributes:
        labeled, unlabeled: the views of images with labels and without; an empty one asks for no such images.
        poisson: each image is in a step's batch by a coin of its own, so that batches have the size that was asked
            for on average.

    >>> views = sl.Views(unlabeled={"first": sl.Strong, "second": sl.Strong})  # two independent draws
    >>> method = sl.FixMatch(sl.net("tiny_4")).with_views(weak=sl.Eval)
    >>> list(views.unlabeled), method.views.labeled["weak"] is sl.Eval
    (['first', 'second'], True)
    """

    labeled: Mapping[str, ViewFactory] = field(default_factory=dict)
    unlabeled: Mapping[str, ViewFactory] = field(default_factory=dict)
    poisson: bool = False

    @property
    def texts(self) -> dict[str, dict[str, str]]:
        """What they are, by kind and name."""
        return {kind: {name: text_of(view) for name, view in views.items()} for kind, views in self.by_kind.items()}

    @property
    def by_kind(self) -> dict[str, Mapping[str, ViewFactory]]:
        """Those of "labeled" and of "unlabeled" images."""
        return {"labeled": self.labeled, "unlabeled": self.unlabeled}


class Method(nn.Module):
    """Base of every method: owns the net that learns and its moving average, which is evaluated.

    A subclass writes `forward`; it keeps heads, teachers, queues and thresholds as modules and buffers, so that
    `state_dict` holds them, and moves them in `after_step`, for which micro-batches leave `ranks.Notes`. `views` is
    declared on the class, or set on the instance where it depends on arguments.

    Args:
        net: the net that learns. Where the method classifies, a head that no longer learns, as pretraining leaves it,
            learns again.
        ema: decay of the averaged weights (0 evaluates the plain net).

    Raises:
        UsageError: where none of the net's weights learns.

    >>> class Entropy(sl.Method):  # to be minimized, beside cross-entropy
    ...     name, family, paper, arxiv, recipe = "entropy", "consistency", "Grandvalet and Bengio 2004", "", ""
    ...     views = sl.Views(labeled={"weak": sl.Weak}, unlabeled={"weak": sl.Weak})
    ...     def forward(self, batch, at):
    ...         x, u = (out.logits for out in self.joint(batch.labeled["weak"], batch.unlabeled["weak"]))
    ...         unsure = sl.losses.cross_entropy(u, sl.losses.probabilities(u))
    ...         return sl.Loss({"labeled": sl.losses.cross_entropy(x, batch.labeled.targets), "entropy": unsure})
    >>> sl.testing.check_method(Entropy, compile=False)
    """

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    arxiv: ClassVar[str]
    recipe: ClassVar[str]
    views: Views
    classifies: bool = True  # whether the head learns the pool's classes; not so in pretraining
    unmixable: ClassVar[str] = ""  # why its labeled images must be whole ones, not mixtures of two, if they must
    splits: ClassVar[bool] = False  # whether a view of its joint pass only makes targets; see `set_forward`
    _forward_policy: Forward = "joint"
    _row_losses: RowLosses | None = None  # in place of cross-entropy; see `labeled_by`

    def __init__(self, net: Net, ema: Scalar = 0.999) -> None:
        super().__init__()
        if not any(p.requires_grad for p in net.parameters()):
            raise UsageError(f"none of the weights of this {net.name} learns, as in the averaged net that predictor() "
                             "gives, or in a teacher: load its state_dict() into another net, or take "
                             "sl.net(..., weights=...) with the folder of its run")
        heads = [part.head for part in net.modules() if isinstance(part, Net) and hasattr(part, "head")]
        for head in heads if self.classifies else []:  # several nets in one have one each
            if not any(p.requires_grad for p in head.parameters()):
                head.requires_grad_(True)
        self.net = net
        self.ema = Ema(net, ema, warm_up=10)  # also short runs are to forget their first steps

    def forward(self, batch: Batch, at: At) -> Loss:
        """The loss of one (micro-)batch. Scalars are read with `at.value`; nothing is read back to the host."""
        raise NotImplementedError

    def after_step(self, at: At) -> None:
        """After the optimizer's step: moves averages, queues and thresholds."""
        self.ema.update(self.net, at)

    def edited(self) -> Sequence[Edit]:
        """The parameters that learn into which `after_step` has just written: the optimizer forgets their momenta."""
        return ()

    def predictor(self) -> Net:
        """The net that is evaluated and exported."""
        return self.ema.net

    def account(self, steps: int) -> dict[str, float | str | None]:
        """What a run of so many steps adds to its summary, such as a privacy budget that it has spent."""
        return {}

    def with_views(self, *texts: str, **views: ViewFactory | str) -> Self:
        """This method, under other views from now on: `with_views(strong=sl.views.kornia(...))`.

        Args:
            views: by the names that the method has for them, of labeled and unlabeled images alike, where `weak` is
                weak_1, weak_2 and so on too; a text describes one, see `views.named`.
            texts: as --view has them, "strong=simclr" or, for a method whose views are all the same, "strong".

        Raises:
            UsageError: for a name that it does not have.
        """
        made = {name: named(view) if isinstance(view, str) else view for name, view in views.items()}
        kinds = replaced(self.name, self.views.by_kind, by_name(texts) | made)
        self.views = Views(kinds["labeled"], kinds["unlabeled"], self.views.poisson)
        return self

    def joint(self, *views: Tensor, constant: int | None = None) -> tuple[Output, ...]:
        """One pass of the net over all views together, so that BatchNorm sees them as one batch.

        Args:
            views: float [B_i, C, H, W]; returns one Output for each, in order.
            constant: the number of the view whose output only makes targets: after `set_forward("split")` it passes
                by itself, without gradient.
        """
        if constant is not None and self._forward_policy == "split":
            with torch.no_grad():
                target = self.net(views[constant])
            others = self.joint(*views[:constant], *views[constant + 1 :])
            return *others[:constant], target, *others[constant:]
        sizes = [len(view) for view in views]
        output = self.net(torch.cat(views))
        return tuple(map(Output, output.features.split(sizes), output.logits.split(sizes)))

    def labeled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of rows by their labels: every method's labeled term. Cross-entropy, unless a technique has
        something else in its place.

        Args:
            targets: int64 [B], of which -100 does not count, or probabilities [B, C].
        """
        if self._row_losses is None:
            return losses.cross_entropy(logits, targets)
        if targets.ndim == 2:
            return self.labeled_losses(logits, targets).mean()
        counted = targets != IGNORED
        return (self.labeled_losses(logits, targets.clamp(min=0)) * counted).sum() / counted.sum()

    def labeled_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of each row by itself, float [B]; see `labeled_loss`."""
        return (self._row_losses or losses.cross_entropies)(logits, targets)

    @contextmanager
    def labeled_by(self, wrap: Callable[[RowLosses], RowLosses]) -> Iterator[None]:
        """Within it, what `wrap` makes of the losses of labeled rows takes their place. For methods around methods."""
        before = self._row_losses
        self._row_losses = wrap(before or losses.cross_entropies)
        try:
            yield
        finally:
            self._row_losses = before

    def set_forward(self, policy: Forward) -> None:
        """How views pass that only make targets: "joint" with the others, as in the papers, or "split" from them.

        Split saves their backward pass. BatchNorm then normalizes them, and the other views, by statistics of their
        own, and each of the two passes moves the running statistics; without BatchNorm and dropout, the gradient is
        the same. UsageError if the method has no such views (see `splits`).
        """
        if policy not in get_args(Forward):
            raise unknown("forward policy", policy, get_args(Forward))
        if policy == "split" and not self.splits:
            raise UsageError(f"{self.name} has no view that only makes targets in its joint pass; "
                             "use forward 'joint'")
        self._forward_policy = policy
