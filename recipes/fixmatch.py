"""FixMatch (Sohn et al. 2020, arXiv 2001.07685).

    python recipes/fixmatch.py --data mnist --labels 40 --minutes 5
"""

from dataclasses import dataclass

import ssl_lab as sl


@dataclass
class Settings(sl.Settings):
    threshold: float = 0.95
    """Least confidence of a pseudo-label."""
    weight: float = 1.0
    """Weight of the unlabeled loss."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step."""
    lr: float = 0.1
    weight_decay: float = 5e-4
    ema: float = 0.999
    """Decay of the averaged weights, which are evaluated."""
    bn_momentum: float = 0.02
    """Of BatchNorm's running statistics; 0.001 in the paper's runs of a million steps."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, settings.data_dir, settings.image_size).split(**settings.split())
    net = sl.net(settings.net, classes=pool.classes, style=pool.style, seed=settings.seed,
                 pretrained=settings.pretrained, weights=settings.weights, bn_momentum=settings.bn_momentum)
    method = sl.FixMatch(net, threshold=settings.threshold, weight=settings.weight, ema=settings.ema)
    optimizer = sl.SGD(lr=sl.schedule.cosine_7_16(settings.lr), weight_decay=settings.weight_decay)
    trainer = sl.Trainer(optimizer=optimizer, **settings.trainer())
    print(trainer.fit(method, pool, labeled=settings.labeled, unlabeled=settings.unlabeled))


if __name__ == "__main__":
    sl.launch(main, Settings)
