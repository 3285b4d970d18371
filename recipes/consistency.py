"""Any consistency method, with the settings of its paper, or with some for minutes on a CPU.

    python recipes/consistency.py --method flexmatch --data mnist --labels 40 --steps 1000
    python recipes/consistency.py --method uda --arguments weight "cyclical(0, 1, cycles=4)" --labels 10 --steps 300
    python recipes/consistency.py --method "mypackage.soft:Soft(temperature=2)" --data mnist --labels 40 --steps 1000
    python recipes/consistency.py --method mixmatch --data cifar100 --labels 2500 --net wrn_28_2 --steps 1048576

The first gave 98.0 ± 0.0% on the test images over seeds 0 and 1, in 81 seconds on one crowded core of an AMD EPYC.

    python recipes/consistency.py --method freematch --data cifar10 --labels 250 --valid 2500 --minutes 5 --seed 100

60.0% of the validation images and 58.0% of the test images, in 5 minutes on one core of an AMD EPYC with bf16; by --net
tiny_16, so by SGD, 42.4 and 43.3. Likewise comatch 57.2 and 56.5, by tiny_16 45.0 and 45.3. One run each. With
--minutes 8, freematch has 62.5 and 60.1, of split 101 61.5 and 58.8, where fixmatch has 57.1 of the test images on
average.

`ssl-lab list methods` names the methods; a method's docstring explains its arguments. `ssl_lab/presets.py` holds the
settings: the papers' from 65,536 steps on, else those for short runs; of these, methods that look at weak and strong
views have wide ones where images have colors or more than 32 px (recipes/fixmatch.py). recipes/compare.py compares
methods.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import MaybeQuantity, may_run


@dataclass
class Settings(sl.Settings):
    method: str = may_run("fixmatch", ":")
    """Name of the method (see `ssl-lab list methods`), or package.module:MyMethod (not in a --config file); with
    arguments if you like, as in "fixmatch(threshold=0.7)"."""
    preset: Literal["auto", "paper", "short", "wide"] = "auto"
    """Where the settings below come from if they are not given. auto: paper by the number of steps, wide for nets
    rapid_..., which Muon trains, else short."""
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the method, in place of the preset's: NAME VALUE, as often as you like, where a value may be a
    schedule."""
    net: str = "auto"
    """Net (see `ssl-lab list nets`); auto: tiny_16; in short runs rapid_32_64_128 where images have colors or more than
    32 px, and the method looks at weak and strong views, as FixMatch does."""
    labeled: int | None = None
    """Labeled images per step."""
    unlabeled: int | None = None
    """Unlabeled images per step."""
    lr: MaybeQuantity = None
    """Peak learning rate, in the course that the recipe has; or a schedule in its place."""
    weight_decay: MaybeQuantity = None
    """Decay of the weights, added to their gradient (L2)."""
    ema: MaybeQuantity = None
    """Decay of the averaged weights, which are evaluated."""
    bn_momentum: float | None = None
    """Of BatchNorm's running statistics."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    preset = sl.presets.for_pool(sl.methods.get(settings.method), pool, settings.preset, settings.steps, settings.net,
                                 settings.weights, settings.view)
    pool = sl.presets.noted(pool, settings.preset, preset.kind)
    settings = sl.presets.fill(dataclasses.replace(settings, preset=preset.kind), preset)
    net = sl.net(settings.net, pool.class_names, pool.style, **settings.beginning(), bn_momentum=settings.bn_momentum)
    net = sl.prepared(preset.begun(net, pool, settings.seed), settings.techniques, pool, settings.seed)
    method = sl.build.method(settings.method, net, pool, settings.arguments,
                             {"ema": settings.ema, **preset.arguments}).with_views(*preset.views)
    optimizer = sl.optimizer(settings.optimizer, preset.optimizer_of(settings.lr, settings.weight_decay))
    trainer = sl.Trainer(optimizer=optimizer, monitors=[sl.PseudoLabels()], **settings.trainer())
    print(trainer.fit(method, pool, labeled=settings.labeled, unlabeled=settings.unlabeled))


if __name__ == "__main__":
    sl.launch(main, Settings)
