"""Few labels on a pretrained net: all of it learns, its last blocks, its biases or low-rank updates of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssl_lab import build, methods
from ssl_lab.config import Settings
from ssl_lab.data import Pool
from ssl_lab.data.inventory import NAME, require_same
from ssl_lab.engine import Callback, Result, Runtime, ShowProgress, Trainer
from ssl_lab.engine.tune import tune, tuning_pools
from ssl_lab.errors import UsageError
from ssl_lab.features.probe import probe_head
from ssl_lab.nets import Net
from ssl_lab.nets.lora import add_lora, merged
from ssl_lab.nets.start import freeze, freeze_statistics, freeze_weights, is_foreign
from ssl_lab.notes import once
from ssl_lab.optim import SGD, with_rates
from ssl_lab.optim import optimizer as optimizer_of
from ssl_lab.schedule import Scalar, Schedule, cosine, course, times, warm_up
from ssl_lab.techniques import WeightsTechnique, together
from ssl_lab.understood import check_texts

RATES = {"all": 0.2, "lora": 0.3, "biases": 1.0}
CLIP = 1.0
"""Largest norm of a gradient where statistics are frozen and unlabeled images learn: no BatchNorm holds what the first
strong views do to the net. Without it, and a warm-up, lite0 on soft labels (CIFAR-10, 96 px, steps of 40) agreed with
69% of them at first, with 16% six steps later, and ended at chance; with both it learns."""
SPACE = {"lr": (5e-4, 0.5), "decay": (1e-6, 1e-3)}
"""What is tuned: the papers' ranges (Kornblith et al. 2019, arXiv 1805.08974; Chen et al. 2020, arXiv 2002.05709) for
the backbone at a fifth of the head's learning rate; `decay` is the product of learning rate and weight decay."""

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class FineTuning:
    """How a pretrained net is trained on.

    method, arguments: by which method. view: texts of views in place of the method's (see `Method.with_views`). learn:
    what of the backbone learns; lora: updates of `rank` (needs the extra `peft`). train_blocks: of "all", only the last
    so many blocks, 0: the head alone. backbone_rate: the backbone's learning rate, relative to `lr`, the head's. head:
    begins as a linear probe of the labels, or as the net's own. statistics: what BatchNorm of the backbone normalizes
    by: its running statistics as they are ("frozen"), or the batch's. labeled, unlabeled: images per step. ema: decay
    of the averaged weights. optimizer: the text of another one than SGD. What is None follows from the method and the
    net, see `filled`.
    """

    method: str = "supervised"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    view: Sequence[str] = ()
    learn: Literal["all", "biases", "lora"] = "all"
    train_blocks: int | None = None
    rank: int = 8
    backbone_rate: float | None = None
    head: Literal["probe", "start"] = "probe"
    statistics: Literal["frozen", "batch"] | None = None
    labeled: int = 32
    unlabeled: int = 128
    lr: Scalar | None = None
    weight_decay: Scalar = 0.0
    ema: Scalar = 0.99
    optimizer: str | None = None

    @classmethod
    def of(cls, settings: object) -> FineTuning:
        """With what settings have of the same name."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(cls)})

    @property
    def by_labels_alone(self) -> bool:
        """Whether unlabeled images play no part."""
        return issubclass(methods.get(self.method), methods.Supervised)

    def check(self, shard: bool = False) -> None:
        """UsageError, before anything is embedded, for what cannot be fine-tuned, or not so, or not on shards."""
        if self.learn == "lora" and shard:
            raise UsageError("--learn lora merges its updates into whole weights, of which a sharded run holds parts; "
                             "leave out --shard, or give --learn all or biases")
        if not methods.get(self.method).classifies:
            raise UsageError(f"{self.method} trains no classifier; pretrain with it, and fine-tune by another method "
                             "from its run")
        if self.learn == "lora" and self.statistics == "batch":
            raise UsageError("--learn lora freezes BatchNorm, so that --statistics batch has no effect; leave it out")
        if self.train_blocks is not None and self.learn != "all":
            raise UsageError(f"--train-blocks and --learn {self.learn} exclude each other; give one")
        check_texts(self.method, self.view, self.optimizer)

    def filled(self, net: Net) -> FineTuning:
        """With what was not given, for this net.

        Of labels alone BatchNorm keeps its statistics, and the net learns slowly. Unlabeled images and their strong
        views are others than those that the statistics of a run of ours are of, which normalizes by those of each batch
        then, and learns fast. A timm net learned from other images altogether: by the batch's statistics its features,
        on which the head begins as a probe, are others at once, and a fast rate makes it forget them. Where statistics
        stay and unlabeled images learn, rates warm up and gradients are clipped (`CLIP`), unless somebody says how.
        """
        self.check()
        many = not self.by_labels_alone
        fast = many and not is_foreign(net)
        rates = RATES | ({"all": 1.0} if fast else {})
        given = {name: value for name in ("statistics", "lr", "backbone_rate")
                 if (value := getattr(self, name)) is not None}
        usual = {"statistics": "batch" if fast and self.learn != "lora" else "frozen", "lr": 0.03 if fast else 0.01,
                 "backbone_rate": rates[self.learn]}
        if many and not fast and (chosen := [name for name in usual if name not in given]):
            said = {"statistics": "BatchNorm keeps its statistics", "lr": "the head learns at 0.01",
                    "backbone_rate": f"the backbone at {rates[self.learn]:g} of that"}
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            once(f"note: {', '.join(said[name] for name in chosen)}: {net.name} learned from other images, and would "
                 f"forget; {flags} {'says' if len(chosen) == 1 else 'say'} otherwise")
        return replace(self, **usual | given)

    def fit(self, net: Net, pool: Pool, runtime: Runtime, seed: int = 0, **trainer: Any) -> Result:
        """Trains `net` on the pool's labels, as far as it is to learn, and leaves a run.

        runtime: embeds for the probe. seed: of LoRA. trainer: further arguments of `Trainer`.
        """
        with_all, techniques = self.filled(net), together(trainer.get("techniques", ()))
        if self.learn == "lora" and (averages := techniques.of(WeightsTechnique)):
            raise UsageError(f"--learn lora merges its updates into the net at the end, and {averages[0].text} puts "
                             "weights of its own there; leave out one of the two")
        net = techniques.net(net, pool, seed)
        if self.head == "probe":
            probe_head(net, pool, runtime)
        if with_all.statistics == "frozen":
            freeze_statistics(net)
        self._choose_what_learns(net, pool, seed)
        method = build.method(self.method, net, pool, self.arguments, {"ema": self.ema}).with_views(*self.view)
        if self.learn == "lora":
            learner = method.predictor
            method.predictor = lambda: merged(learner())  # type: ignore[method-assign]
        lr, rate = with_all.lr, with_all.backbone_rate
        assert lr is not None
        assert rate is not None
        still = with_all.statistics == "frozen" or self.learn == "lora"
        gently = still and not isinstance(method, methods.Supervised)
        fall: Callable[[float], Schedule] = _gentle if gently else cosine
        optimizer = optimizer_of(self.optimizer, SGD(lr=course(lr, fall), weight_decay=self.weight_decay))
        if self.train_blocks != 0:
            slower = times(optimizer.lr, rate) if self.optimizer else course(times(lr, rate), fall)
            optimizer = with_rates(optimizer, {"net.backbone": slower})
        if gently and trainer.get("clip") is None:
            trainer["clip"] = CLIP
        if still and method.splits and not techniques.given and trainer.get("forward", "joint") == "joint":
            trainer["forward"] = "split"  # the same gradient, as no row sees another one, in less time
        return Trainer(optimizer=optimizer, seed=seed, **trainer).fit(
            method, pool, labeled=self.labeled, unlabeled=self.unlabeled)

    def _choose_what_learns(self, net: Net, pool: Pool, seed: int) -> None:
        if self.train_blocks is not None:
            freeze(net, self.train_blocks)
        elif self.learn == "biases":
            freeze_weights(net)
        elif self.learn == "lora":
            add_lora(net, self.rank, pool.style, seed)


def tuned(settings: S, pool: Pool, trials: int, fit: Callable[..., Result]) -> tuple[S, Pool]:
    """The settings with the learning rate and the weight decay that were best in so many trials, and the pool in which
    validation images train too. See `tune`.

    settings: with `lr`, `weight_decay` and `trials`. fit: (settings, pool, further arguments of `Trainer` by name) ->
    the run. UsageError without steps: all trials have the same length.
    """
    if settings.steps is None:
        raise UsageError("--trials needs --steps, so that all trials have the same length")
    out = settings.folder
    settings = replace(settings, out=out, resume=settings.resume and "auto")
    tried, everything = tuning_pools(pool, settings.seed)

    def chosen(values: Mapping[str, float]) -> dict[str, Any]:
        return {"lr": values["lr"], "weight_decay": values["decay"] / values["lr"]}

    def run(values: Mapping[str, float], out: Path, watch: Callback) -> float:
        trial = replace(settings, out=out, resume=None, **chosen(values) | {"trials": 0})
        return float(fit(trial, tried, callbacks=[ShowProgress(), watch]).summary["valid_accuracy"])

    if settings.resume is None:
        (out / NAME).unlink(missing_ok=True)
    require_same(out, pool, f"the trials in {out} are of")
    config = settings.plain() | {"trials": None, "split": tried.manifest()["hash"]}
    best = tune(run, SPACE, trials, out, settings.seed, config, resume=settings.resume is not None)
    return replace(settings, **chosen(best)), everything


def _gentle(peak: float) -> Schedule:
    """A tenth of the run to the peak, then half a cosine wave to zero."""
    return warm_up(0.1, cosine(peak))
