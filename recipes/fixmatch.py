"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): few labels, many images. The defaults are for minutes on a CPU.

    python recipes/fixmatch.py --data mnist --labels 40 --minutes 5 --seed 0

Test accuracy 99.2 ± 0.1% over seeds 0, 1, 2 (4953, 4822 and 4845 steps; 574, 336 and 329 seconds on one core of a
crowded AMD EPYC with AVX-512 bf16; seed 0 on both cores, idle: 99.1% in 3427 steps, 4 min 34 s in all). Supervised,
the same net and steps: 76.6 ± 2.2%.

    python recipes/fixmatch.py --data mnist --labels 40 --steps 1000 --view strong=strong_kornia

97.9 ± 0.2% over seeds 0, 1, 2; with our own strong view, the default, 98.0 ± 0.3%.

    python recipes/fixmatch.py --data cifar10 --labels 250 --minutes 79 --net tiny_48 --lr 0.03

56.4% (55.4% with the last weights), one seed, 15,835 steps in 81 minutes on one core; after 31 and 54 minutes it stood
at 47.6 and 52.5%. Supervised on strong views, 97,289 steps or 67 minutes: 49.5% (recipes/supervised.py). Mask rate and
pseudo-label accuracy rose from 0.31 and 0.54 after 8 minutes to 0.55 and 0.69, still rising: it was the number of steps
that limited it. On another core a wide and shallow net, trained by Muon, gets as far in 8 minutes:

    python recipes/fixmatch.py --data cifar10 --labels 250 --valid 2500 --minutes 8 --seed 100 --net rapid_32_64_128 \\
        --with whiten --optimizer "muon_normed(lr=warm_up(0.1, linear(0.08, 0)))" --ema 0.99

59.3% of the validation images, 56.9% of the test images, 3,431 steps in 8 minutes; without these four flags 45.3 and
46.3, 11,416 steps in 9; one run each, on one core of an AMD EPYC with bf16. With --optimizer muon_normed alone, whose
rate is 0.1 then and does not end at 0, and averages of 0.999, the last weights have 50.0% of the validation images and
the averaged ones 38.4, no more than chance on the way. Of gray digits the usual net knows more: with 40 labels of
MNIST, --minutes 4, it has 99.1% of 2,500 validation images, by these flags 97.8. Of 1,633 pictures (recipes/rapid.py,
--minutes 8.5 and 8, splits 100 and 101) neither, beyond doubt: 45.0 and 50.8%, by --optimizer muon_normed 51.8 and
48.6, by these flags 44.8 (split 100).

The paper's run takes a million, of a net 8 times as costly:

    python recipes/fixmatch.py --data cifar10 --labels 250 --net wrn_28_2 --labeled 64 --unlabeled 448 --lr 0.03 \\
        --bn-momentum 0.001 --steps 1048576
"""

from dataclasses import dataclass

import ssl_lab as sl
from ssl_lab.config import MaybeQuantity, Quantity


@dataclass
class Settings(sl.Settings):
    threshold: Quantity = 0.95
    """Least confidence of a pseudo-label."""
    weight: Quantity = 1.0
    """Weight of the unlabeled loss."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step."""
    net: str = "auto"
    """Net (see `ssl-lab list nets`); auto: rapid_32_64_128 where images have colors or more than 32 px, else tiny_16.
    Nets rapid_... are trained by Muon."""
    lr: MaybeQuantity = None
    """Peak learning rate, in the course that the recipe has; or a schedule in its place (default: 0.1 by SGD, 0.08 by
    Muon)."""
    weight_decay: MaybeQuantity = None
    """Decay of the weights (default: 5e-4, added to their gradient, by SGD; 0 by Muon)."""
    ema: MaybeQuantity = None
    """Decay of the averaged weights, which are evaluated (default: 0.999 by SGD, 0.99 by Muon)."""
    bn_momentum: float = 0.02
    """Of BatchNorm's running statistics; 0.001 in the paper's runs of a million steps."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    preset = sl.presets.for_pool(sl.FixMatch, pool, net=settings.net, weights=settings.weights)
    settings = sl.presets.fill(settings, preset)
    net = sl.net(settings.net, pool.class_names, pool.style, **settings.beginning(), bn_momentum=settings.bn_momentum)
    net = sl.prepared(preset.begun(net, pool, settings.seed), settings.techniques, pool, settings.seed)
    method = sl.FixMatch(net, threshold=settings.threshold, weight=settings.weight, ema=settings.ema)
    method.with_views(*preset.views).with_views(*settings.view)
    usual = preset.optimizer_of(settings.lr, settings.weight_decay)
    trainer = sl.Trainer(optimizer=sl.optimizer(settings.optimizer, usual), **settings.trainer())
    print(trainer.fit(method, pool, labeled=settings.labeled, unlabeled=settings.unlabeled))


if __name__ == "__main__":
    sl.launch(main, Settings)
