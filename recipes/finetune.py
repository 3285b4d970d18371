"""Few labels on a pretrained net: fine-tune all of it, its last blocks, its biases or low-rank updates of its weights.

    python recipes/finetune.py --from runs/pretrain --data mnist --labels 250 --steps 500
    python recipes/finetune.py --from runs/pretrain --data mnist --labels 40 --method fixmatch --steps 1000
    python recipes/finetune.py --from lite0 --data cifar10 --image-size 128 --labels 250 --learn lora --steps 300
    python recipes/finetune.py --from runs/pretrain --data mnist --labels 250 --steps 300 --trials 20 --resume auto

--from takes the folder of a run, a .safetensors file (with --net if it does not lie in a run's folder), a name such as
lite0, or a timm model with --pretrained or --weights FILE. Any method that classifies may train it. The run's
model.safetensors is the whole net, into whose weights the updates of LoRA are merged.

The head begins as a linear probe of the labels, and of labels alone (--method supervised) BatchNorm keeps its
statistics: both make the difference between losing what the net knew and adding to it. With unlabeled images too, a
timm net keeps them, its rates warm up and its gradients are clipped: by the statistics of each batch, at --lr 0.03,
FixMatch from lite0 (CIFAR-10, 250 labels, 96 px) had lost half of its 77% in two steps. A run's net does not: from 126
seconds of SimCLR on MNIST, 40 labels, 150 steps of FixMatch have 87.7 and 89.7% of validation images so, and had 74.9
and 76.4 with --statistics frozen --lr 0.01 --backbone-rate 0.2, then without a warm-up (two splits). --projector starts
from the first layer of the projector (SimCLRv2).

EfficientNet-Lite0 at 128 px on CIFAR-10 (--steps 300), test accuracy (%) of one seed, on one core of an
AMD EPYC that had other work, beside the linear probe of recipes/features.py:

    labels  learn    accuracy   minutes   probe
    40      all      62.0       2         62.6   (--steps 100; self-training on frozen features: 74)
    250     all      81.5       8         77.6
    250     lora     81.0       6
    250     biases   80.8       3.5
    4000    all      91.6       6.5       84.2

With the unlabeled images, at 96 px (--labels 250 --valid 3000 --steps 100, --seed 100 and 101, on two cores of another
EPYC): --method fixmatch 76.5 and 76.4 of the test images in 11 minutes each, --method finessl 78.6 and 79.7 in 14.

A run at 250 labels with a random head, statistics of the batch and --lr 0.1 stood at 65 after 210 steps.

From ten minutes of SimCLR on MNIST, over seeds 0, 1, 2, --steps 300, 4 seconds each: 250 labels 96.8 ± 0.2 (--projector
96.8 ± 0.2, --trials 20 96.5, one seed, 67 seconds), 40 labels 87.6 ± 3.8 (86.8 ± 6.1). FixMatch from there, the second
command: 98.9, one seed, 1 minute. From an hour of it on CIFAR-10 with 250 labels: 56.4 (--projector 54.1), half a
minute; with --method fixmatch --steps 1500 60.5, 12 minutes. From scratch, for as long as with the hour: supervised
49.5, FixMatch 56.4; one seed. Where ten other processes shared two cores of an Intel Xeon, ten minutes of SimCLR were
1,190 steps in place of 4,109, from which the first command had 92.3 and the second 92.7, one seed, where FixMatch from
scratch has 97.7 (recipes/distill.py).

--trials tunes --lr and --weight-decay on validation images (those of --valid, else a fifth of the labels), and then
trains once more on all labels, validation images too. Test images choose nothing: that last run alone measures them (at
its evaluation points as well, for it has no validation images left). Killed at whatever moment, the same command goes
on with --resume auto.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import ssl_lab as sl
from ssl_lab.config import MaybeQuantity, Quantity, may_run


@dataclass
class Settings(sl.Settings):
    start: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "runs/pretrain"
    """What to start from: a run, a file of weights, lite0 and the like, or timm/MODEL."""
    method: str = may_run("supervised", ":")
    """Name of the method (see `ssl-lab list methods`), or package.module:MyMethod (not in a --config file); with
    arguments if you like, as in "fixmatch(threshold=0.7)"."""
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the method: NAME VALUE, as often as you like."""
    projector: bool = False
    """Start from the first layer of the run's projector, and not from the features below it (SimCLRv2)."""
    learn: Literal["all", "biases", "lora"] = "all"
    """What of the backbone learns; lora: updates of --rank (pip install "ssl_lab[peft]")."""
    train_blocks: int | None = None
    """Of --learn all, only the last so many blocks; 0: the head alone."""
    rank: int = 8
    """Of LoRA."""
    backbone_rate: float | None = None
    """The backbone's learning rate, relative to the head's (default: 0.2, or 1 with unlabeled images and a run's net;
    0.3 for lora, 1 for biases)."""
    trials: int = 0
    """Tune --lr and --weight-decay in so many trials (pip install "ssl_lab[tune]")."""
    head: Literal["probe", "start"] = "probe"
    """What the head begins as: a linear probe of the labels, or that of --from (fresh, if it has none that fits)."""
    statistics: Literal["frozen", "batch"] | None = None
    """What BatchNorm of the backbone normalizes by: its running statistics, as they are, or the batch's (default:
    frozen, or batch for methods that take unlabeled images, if the net is a run's and not timm's; always frozen for
    lora)."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step, for methods that take them."""
    lr: MaybeQuantity = None
    """Peak learning rate of the head (default: 0.01, or 0.03 with unlabeled images and a run's net), or a schedule."""
    weight_decay: Quantity = 0.0
    """Decay of the weights, added to their gradient (L2)."""
    ema: Quantity = 0.99
    """Decay of the averaged weights, which are evaluated."""


def main(settings: Settings) -> None:
    how = sl.finetune.FineTuning.of(settings)
    how.check(settings.shard)
    sl.techniques.together(settings.techniques)
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    sl.announce(pool)
    if settings.trials:
        settings, pool = sl.finetune.tuned(settings, pool, settings.trials, fit)
    print(fit(settings, pool, monitors=[] if how.by_labels_alone else [sl.PseudoLabels()]))


def fit(settings: Settings, pool: sl.Pool, **trainer: Any) -> sl.Result:
    net = sl.nets.start.start_net(settings.start, pool.class_names, pool.style, settings.net, settings.pretrained,
                                  settings.weights, settings.seed)
    if settings.projector:
        net = sl.features.with_projector(net, Path(settings.start), pool.style, settings.seed)
    how = sl.finetune.FineTuning.of(settings).filled(net)
    settings = replace(settings, statistics=how.statistics, lr=how.lr, backbone_rate=how.backbone_rate,
                       net=net.name)  # recorded, so that the run is one to start from too
    runtime = sl.Runtime.start(settings.device, settings.precision)
    return how.fit(net, pool, runtime, **settings.trainer() | trainer)


if __name__ == "__main__":
    sl.launch(main, Settings)
