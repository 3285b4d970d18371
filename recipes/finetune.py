"""Few labels on a pretrained net: fine-tune it, all or its last blocks, by any method that classifies.

    python recipes/finetune.py --from runs/pretrain --data mnist --labels 250 --steps 500
    python recipes/finetune.py --from runs/pretrain --data mnist --labels 40 --method fixmatch --steps 1000
    python recipes/finetune.py --from timm/tf_efficientnet_lite0 --pretrained --data cifar10 --image-size 128 \\
        --labels 250 --train-blocks 2 --steps 300

--from takes the folder of a run, a .safetensors file (with --net if it does not lie in a run's folder), or a timm model
with --pretrained or --weights FILE. The run's model.safetensors is the whole net.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

import ssl_lab as sl
from ssl_lab import presets
from ssl_lab.nets.start import freeze, start_net
from ssl_lab.optim import with_rates


@dataclass
class Settings(sl.Settings):
    start: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "runs/pretrain"
    """What to start from: a run, a file of weights, or timm/MODEL."""
    method: str = "supervised"
    """Name of the method (see `ssl-lab list methods`)."""
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the method: NAME VALUE, as often as you like."""
    train_blocks: int | None = None
    """Train only the last so many blocks of the backbone, and the head; 0: the head alone (default: all)."""
    backbone_rate: float = 0.1
    """The backbone's learning rate, relative to the head's."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step, for methods that take them."""
    lr: float = 0.1
    """Peak learning rate of the head."""
    weight_decay: float = 0.0
    ema: float = 0.99
    """Decay of the averaged weights, which are evaluated."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, settings.data_dir, settings.image_size).split(**settings.split())
    net = start_net(settings.start, pool.classes, pool.style, settings.net, settings.pretrained, settings.weights,
                    settings.seed)
    settings = replace(settings, net=net.name)  # recorded, so that the run is one to start from too
    if settings.train_blocks is not None:
        freeze(net, settings.train_blocks)
    method = presets.build(settings.method, net, pool, {"ema": settings.ema, **settings.arguments})
    optimizer = sl.SGD(lr=sl.schedule.cosine(settings.lr), weight_decay=settings.weight_decay)
    if settings.train_blocks != 0:
        optimizer = with_rates(optimizer, {"net.backbone": sl.schedule.cosine(settings.lr * settings.backbone_rate)})
    trainer = sl.Trainer(optimizer=optimizer, monitors=[sl.PseudoLabels()], **settings.trainer())
    print(trainer.fit(method, pool, labeled=settings.labeled, unlabeled=settings.unlabeled))


if __name__ == "__main__":
    sl.launch(main, Settings)
