"""Any consistency method, with the settings of its paper unless told otherwise.

    python recipes/consistency.py --method flexmatch --data mnist --labels 40 --steps 1000
    python recipes/consistency.py --method uda --arguments temperature 0.5 --data digits --labels 10 --steps 300

The first gave 98.04% on the test images in 138 seconds on one crowded core of an AMD EPYC (one seed, so no claim).

`ssl-lab list methods` names them; a method's docstring explains its arguments. Batches, learning rate and net are a
preset for minutes on a CPU, the same for all methods.
"""

import inspect
from dataclasses import dataclass, field

import ssl_lab as sl

# What papers set by data set, in place of a method's own defaults.
BY_DATA = {
    # Berthelot et al. 2019; the method's own 75 is for CIFAR-10, with the same ramp.
    ("mixmatch", "cifar100"): {"weight": sl.schedule.linear(0.0, 150.0, until=1 / 64)},
    ("mixmatch", "svhn"): {"weight": sl.schedule.linear(0.0, 250.0, until=1 / 64)},
}


@dataclass
class Settings(sl.Settings):
    method: str = "fixmatch"
    """Name of the method (see `ssl-lab list methods`)."""
    arguments: dict[str, float] = field(default_factory=dict)
    """Arguments of the method: NAME VALUE, as often as you like."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step."""
    lr: float = 0.1
    weight_decay: float = 5e-4
    ema: float = 0.999
    """Decay of the averaged weights, which are evaluated."""
    bn_momentum: float = 0.02
    """Of BatchNorm's running statistics."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, settings.data_dir, settings.image_size).split(**settings.split())
    net = sl.net(settings.net, classes=pool.classes, style=pool.style, seed=settings.seed,
                 pretrained=settings.pretrained, weights=settings.weights, bn_momentum=settings.bn_momentum)
    method = sl.methods.get(settings.method)
    known = inspect.signature(method).parameters
    arguments = {"ema": settings.ema} | BY_DATA.get((settings.method, settings.data), {}) | settings.arguments
    for name in arguments:
        if name not in known:
            raise sl.UsageError(f"{settings.method} has no argument {name!r}; it has {', '.join(list(known)[1:])}")
    sizes = {"images": len(pool), "unlabeled": len(pool.unlabeled)}  # for methods that remember something of each
    arguments |= {name: size for name, size in sizes.items() if name in known}
    optimizer = sl.SGD(lr=sl.schedule.cosine_7_16(settings.lr), weight_decay=settings.weight_decay)
    trainer = sl.Trainer(optimizer=optimizer, **settings.trainer())
    print(trainer.fit(method(net, **arguments), pool, labeled=settings.labeled, unlabeled=settings.unlabeled))


if __name__ == "__main__":
    sl.launch(main, Settings)
