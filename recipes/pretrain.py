"""Self-supervised pretraining: features from images without labels.

    python recipes/pretrain.py --method simclr --data mnist --minutes 10 --out runs/pretrain
    python recipes/finetune.py --from runs/pretrain --data mnist --labels 250 --steps 500

The first command, and the same with byol: test accuracy (%) with 100 labels of MNIST, mean ± standard deviation over 3
splits (`recipes/features.py --labels 100 --learner knn --net tiny_16 --weights runs/pretrain/model.safetensors`), of
the same net at random init and of the pixels; one core of an AMD EPYC that had other work.

              knn          linear probe
    simclr    91.9 ± 1.0   94.6 ± 1.8    4109 steps
    byol      79.8 ± 3.7   89.3 ± 0.3    2395 steps
    init      40.3 ± 3.0   48.3 ± 0.8
    pixels    78.0 ± 1.2   77.0 ± 2.6

    python recipes/pretrain.py --method simclr --data cifar10 --net tiny_48 --minutes 60 --out runs/pretrain
    python recipes/finetune.py --from runs/pretrain --data cifar10 --labels 250 --steps 500

5271 steps in 67 minutes on such a core, and 37 seconds: 56.4%, one seed; with `--method fixmatch --steps 1500` and 12
minutes 60.5%. The same net and labels from scratch, for as long on a core without other work: supervised on strong
views 49.5% in 67 minutes, FixMatch 56.4% in 81 (recipes/fixmatch.py). Frozen, by 250 and 4000 labels, 3 splits: knn
53.3 ± 1.0 and 61.7 ± 0.6%, linear probe 56.4 ± 1.1 and 66.4 ± 0.2%; at random init, by 250, 22.4 ± 1.4 and 24.6 ± 2.4%.

Labels play no part in training, and there may be none. At ten points of the run it measures whether features collapse
and, with --online, how well labeled images tell the classes of others by features. `sl.net(..., weights=FILE)` loads
its model.safetensors.
"""

from dataclasses import dataclass, field

import ssl_lab as sl
from ssl_lab import presets
from ssl_lab.errors import unknown
from ssl_lab.features import Health, OnlineAccuracy
from ssl_lab.optim import LARS, SGD, AdamW, with_rates
from ssl_lab.schedule import cosine, warm_up

# For 256 images a step: SGD's learning rate, tried on 16-pixel digits; that of LARS and its weight decay, the papers'
# (SimSiam and MoCo v2, which use SGD there, have SimCLR's); and arguments for minutes on a CPU. MAE has AdamW, at the
# paper's rate.
# At first, two views of an image are hardly more alike to the net than two images. Where it learns to say of a view
# what it says of the other, as in DINO and SwAV, the little that they share fades away, unless targets are much sharper
# than predictions: hence temperatures of 0.3 against 0.04 and 0.03, for the papers' 0.1 against 0.04 and 0.05. And
# there are more directions and prototypes than dimensions, so that no projection is equally far from all of them.
TABLE: dict[str, tuple[float, float, float, dict[str, object]]] = {
    "simclr": (0.12, 0.3, 1e-6, {}),
    "byol": (0.12, 0.2, 1.5e-6, {"hidden": 1024, "tau": cosine(0.97, 1.0)}),
    "simsiam": (0.4, 0.3, 1e-6, {"dim": 1024, "bottleneck": 256}),
    "barlow_twins": (0.002, 0.2, 1e-6, {"hidden": 1024, "dim": 1024}),
    "vicreg": (0.06, 0.2, 1e-6, {"hidden": 1024, "dim": 1024}),
    "moco_v2": (0.12, 0.3, 1e-6, {"queue": 4096, "momentum": 0.99}),
    "moco_v3": (0.12, 0.3, 1.5e-6, {"hidden": 1024, "momentum": cosine(0.97, 1.0)}),
    "dino": (0.4, 0.3, 1e-6, {"hidden": 512, "dim": 128, "outputs": 256, "norm": True, "temperature": 0.3,
                              "teacher_temperature": 0.04, "momentum": cosine(0.98, 1.0), "center_momentum": 0.5,
                              "frozen": 0.1}),
    "swav": (0.5, 0.3, 1e-6, {"hidden": 512, "dim": 64, "prototypes": 256, "temperature": 0.3, "epsilon": 0.03,
                              "frozen": 0.1}),
    "nnclr": (0.12, 0.3, 1e-6, {"hidden": 1024, "predictor_hidden": 1024, "queue": 4096}),
    "rotation": (0.12, 0.3, 1e-6, {}),
    "mae": (1.5e-4, 1.5e-4, 0.05, {"width": 128, "depth": 2, "heads": 4}),
}


@dataclass
class Settings(sl.Settings):
    method: str = "simclr"
    """Name of the method (see `ssl-lab list methods`, family pretraining)."""
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the method: NAME VALUE, as often as you like."""
    unlabeled: int = 256
    """Images per step."""
    lr: float | None = None
    """Peak learning rate (default: by method and --unlabeled, of SGD, or from 1024 on of LARS)."""
    online: bool = False
    """Measure nearest neighbors and a linear probe at evaluation points, by the labels that there are."""


def main(settings: Settings) -> None:
    if settings.method not in TABLE:
        raise unknown("pretraining method", settings.method, TABLE)
    small, large, decay, arguments = TABLE[settings.method]
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    net = sl.net(settings.net, classes=max(pool.classes, 1), style=pool.style, seed=settings.seed,
                 pretrained=settings.pretrained, weights=settings.weights)
    method = presets.build(settings.method, net, pool, {**arguments, **settings.arguments, "seed": settings.seed})
    many = settings.unlabeled >= 1024
    lr = settings.lr or (large if many else small) * settings.unlabeled / 256
    rate = warm_up(0.05, cosine(lr))
    optimizer = LARS(rate, decay) if many else SGD(rate, 5e-4)
    if settings.method == "mae":
        optimizer = AdamW(rate, decay, betas=(0.9, 0.95))
    if settings.method == "simsiam":
        optimizer = with_rates(optimizer, {"prediction": lr})
    monitors = [Health(), *([OnlineAccuracy()] if settings.online else [])]
    trainer = sl.Trainer(optimizer=optimizer, monitors=monitors, **settings.trainer())
    result = trainer.fit(method, pool, unlabeled=settings.unlabeled)
    said = ("knn_accuracy", "probe_accuracy", "effective_rank")
    print(result, *(f"{name} {result.summary[name]:.4g}" for name in said if name in result.summary))


if __name__ == "__main__":
    sl.launch(main, Settings)
