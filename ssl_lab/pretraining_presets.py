"""How each pretraining method is trained, in one place: the papers' settings, and others for minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ssl_lab import methods
from ssl_lab.errors import UsageError, unknown
from ssl_lab.optim import LARS, SGD, AdamW, Optimizer, with_rates
from ssl_lab.schedule import Scalar, Schedule, cosine, course, drops, extremes, linear, times, warm_up

Arguments = Mapping[str, Any]
LARGE = 1024  # images per step from which short runs, too, have LARS


@dataclass(frozen=True)
class Pretraining:
    """Images per step; the peak learning rate for 256 of them; the optimizer with a given peak, or schedule; and what
    the method's own arguments are, where not its defaults."""

    unlabeled: int
    lr: float
    optimizer: Callable[[Scalar], Optimizer]
    arguments: Arguments


def _lars(decay: float, warm: float = 0.01, end: float = 0.0) -> Callable[[Scalar], LARS]:
    """LARS with warm-up in a share of the run, then half a cosine wave down to `end` times the peak rate."""
    return lambda lr: LARS(_warm_cosine(lr, warm, end), decay)


def _warm_cosine(lr: Scalar, warm: float, end: float = 0.0) -> Schedule:
    return course(lr, lambda peak: warm_up(warm, cosine(peak, end * peak)) if warm else cosine(peak, end * peak))


def _momentum(decay: float) -> Callable[[Scalar], SGD]:
    """SGD with momentum that is not Nesterov's, half a cosine wave."""
    return lambda lr: SGD(course(lr, cosine), decay, nesterov=False)


def _barlow_twins(lr: Scalar) -> Optimizer:
    slower = times(lr, 0.0048 / 0.2) if callable(lr) else lr * 0.0048 / 0.2
    weights, biases = (_warm_cosine(rate, 0.01, 0.001) for rate in (lr, slower))
    return with_rates(LARS(weights, 1e-6), {}, biases=biases)


# The authors' commands, where there are any, else the papers: for ImageNet, but for those of SimCLR and RotNet, which
# are for CIFAR-10. Rates are for 256 images, as the papers give them; warm-ups are shares of their runs. Weights are
# decayed, biases and norms never, as in most of these. DINO clips the gradient of each tensor at 3, which is left out.
# (What solo-learn at 9187ea3 has in scripts/pretrain/cifar was tuned for CIFAR-10, mostly LARS with another trust
# coefficient, and is not what the papers say.)
PAPER: dict[str, Pretraining] = {
    # google-research/simclr at 383d414, README.md: CIFAR-10, 1000 epochs, 10 of them warm-up
    "simclr": Pretraining(512, 1.0, _lars(1e-4), {"temperature": 0.5}),
    # deepmind/deepmind-research, byol/configs/byol.py: 1000 epochs, 10 of them warm-up
    "byol": Pretraining(4096, 0.2, _lars(1.5e-6), {"tau": cosine(0.996, 1.0), "hidden": 4096, "dim": 256}),
    # facebookresearch/simsiam at a7bc177, main_simsiam.py and README.md (--fix-pred-lr)
    "simsiam": Pretraining(512, 0.05, lambda lr: with_rates(_momentum(1e-4)(lr), {"prediction": extremes(lr)[1]}),
                           {"dim": 2048, "bottleneck": 512}),
    # facebookresearch/barlowtwins at 8e8d284, main.py: 1000 epochs, 10 of them warm-up
    "barlow_twins": Pretraining(2048, 0.2, _barlow_twins, {"redundancy": 0.0051, "hidden": 8192, "dim": 8192}),
    # facebookresearch/vicreg at 4e12602, main_vicreg.py: 10 epochs of warm-up, 1000 in all in the paper
    "vicreg": Pretraining(2048, 0.2, _lars(1e-6, end=0.001), {"hidden": 8192, "dim": 8192}),
    # facebookresearch/moco at 010242b, main_moco.py, and README.md: --mlp --moco-t 0.2 --aug-plus --cos
    "moco_v2": Pretraining(256, 0.03, _momentum(1e-4), {"queue": 65536, "momentum": 0.999, "temperature": 0.2}),
    # facebookresearch/moco-v3 at c349e6e, CONFIG.md: ResNet-50, 1000 epochs
    "moco_v3": Pretraining(4096, 0.3, _lars(1.5e-6), {"temperature": 1.0, "momentum": cosine(0.996, 1.0)}),
    # facebookresearch/dino at 7c446df, main_dino.py, and README.md: ViT-S/16, 16 ranks of 64, 300 epochs, of which the
    # rate warms up for 10 and the teacher for 30. (Its command for ResNet-50 has SGD at 0.03 and a decay of 1e-4.)
    "dino": Pretraining(1024, 5e-4, lambda lr: AdamW(
        course(lr, lambda peak: warm_up(10 / 300, cosine(peak, 1e-6))), cosine(0.04, 0.4)), {
        "momentum": cosine(0.996, 1.0), "teacher_temperature": linear(0.04, 0.07, until=0.1), "frozen": 1 / 300}),
    # facebookresearch/swav at 06b1b7c, scripts/swav_200ep_bs256_pretrain.sh, which has six small crops besides
    "swav": Pretraining(256, 0.6, _lars(1e-6, warm=0.0, end=0.001), {"queue": 3840, "queue_from": 15 / 200,
                                                                     "frozen": 1 / 200}),
    # The paper; no code of its authors was found to check it against: 1000 epochs, 10 of them warm-up
    "nnclr": Pretraining(4096, 0.3, _lars(1e-6), {"queue": 98304, "temperature": 0.1}),
    # gidariss/FeatureLearningRotNet at edafaba, config/CIFAR10_RotNet_NIN4blocks.py: 0.1 for 128 images, 200 epochs
    "rotation": Pretraining(128, 0.2, lambda lr: SGD(
        course(lr, lambda peak: drops(peak, 0.2, 0.3, 0.6, 0.8)), 5e-4), {}),
    # facebookresearch/mae at efb2a80, PRETRAIN.md: 800 epochs, 40 of them warm-up
    "mae": Pretraining(4096, 1.5e-4, lambda lr: AdamW(_warm_cosine(lr, 0.05), 0.05, betas=(0.9, 0.95)),
                       {"width": 512, "depth": 8, "heads": 16}),
}

# For 256 images a step: SGD's learning rate, tried on 16-pixel digits; that of LARS and its weight decay, the papers'
# (SimSiam and MoCo v2, which use SGD there, have SimCLR's); and arguments for minutes on a CPU. MAE has AdamW, at the
# paper's rate.
# At first, two views of an image are hardly more alike to the net than two images. Where it learns to say of a view
# what it says of the other, as in DINO and SwAV, the little that they share fades away, unless targets are much sharper
# than predictions: hence temperatures of 0.3 against 0.04 and 0.03, for the papers' 0.1 against 0.04 and 0.05. And
# there are more directions and prototypes than dimensions, so that no projection is equally far from all of them.
SHORT: dict[str, tuple[float, float, float, Arguments]] = {
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


def preset(method: str, kind: Literal["paper", "short"], unlabeled: int | None = None) -> Pretraining:
    """The settings of the method that a text describes; one that is not the house's has SimCLR's, but for arguments.
    unlabeled: images per step, in place of the preset's; the rate follows them.

    Raises UsageError for a method that does not pretrain.
    """
    name = method.partition("(")[0].strip()
    if ":" not in name and name not in SHORT:
        raise unknown("pretraining method", name, SHORT)
    learner = methods.get(method)
    if learner.classifies:
        raise UsageError(f"{method} does not pretrain: it trains a classifier; see recipes/consistency.py")
    known = learner.name in SHORT
    name = learner.name if known else "simclr"
    found = PAPER[name] if kind == "paper" else _short(name, (unlabeled or 256) >= LARGE)
    found = found if known else replace(found, arguments={})
    return Pretraining(unlabeled or found.unlabeled, found.lr, found.optimizer, found.arguments)


def _short(method: str, large: bool) -> Pretraining:
    small_rate, large_rate, decay, arguments = SHORT[method]

    def optimizer(lr: Scalar) -> Optimizer:
        rate = course(lr, lambda peak: warm_up(0.05, cosine(peak)))
        if method == "mae":
            return AdamW(rate, decay, betas=(0.9, 0.95))
        made: Optimizer = LARS(rate, decay) if large else SGD(rate, 5e-4)
        return with_rates(made, {"prediction": extremes(lr)[1]}) if method == "simsiam" else made

    return Pretraining(256, large_rate if large else small_rate, optimizer, arguments)
