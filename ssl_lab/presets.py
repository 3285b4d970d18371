"""How each method is trained, in one place: the papers' settings, and others for minutes on a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssl_lab import methods
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method, Views
from ssl_lab.nets import Net
from ssl_lab.nets.start import net_of_run
from ssl_lab.notes import once
from ssl_lab.optim import SGD, MuonNormed, Optimizer
from ssl_lab.schedule import Scalar, Schedule, cosine_7_16, course, linear, ramp_up, warm_up
from ssl_lab.techniques import prepared

Kind = Literal["paper", "short", "wide"]
LONG = 2**16  # steps from which the papers' settings are the better ones
S = TypeVar("S")


def sgd(lr: Scalar, weight_decay: Scalar) -> Optimizer:
    """SGD whose rate falls to a fifth of its peak, as in FixMatch."""
    return SGD(course(lr, cosine_7_16), weight_decay)


def up_and_down(peak: float) -> Schedule:
    """Up in a tenth of the steps, then linearly to 0."""
    return warm_up(0.1, linear(peak, 0.0))


def muon(lr: Scalar, weight_decay: Scalar) -> Optimizer:
    """Muon of speed-runs, whose rate goes up and down."""
    return MuonNormed(course(lr, up_and_down), weight_decay)


@dataclass(frozen=True)
class Preset:
    """Which one it is; images per step, the optimizer's peak learning rate and weight decay, decay of the averaged
    weights, momentum of BatchNorm's running statistics; what the method's own arguments are, where not its defaults;
    the net, and what is done to it first (texts of techniques); the optimizer of a rate and a decay; and texts of views
    in place of the method's."""

    kind: Kind
    labeled: int
    unlabeled: int
    lr: float
    weight_decay: float
    ema: float
    bn_momentum: float
    arguments: Mapping[str, Any]
    net: str = "tiny_16"
    prepared: tuple[str, ...] = ()
    optimizer_of: Callable[[Scalar, Scalar], Optimizer] = sgd
    views: tuple[str, ...] = ()

    def begun(self, net: Net, pool: Pool, seed: int) -> Net:
        """The net after what is done to it first, unless it has learned before."""
        return net if net.origin else prepared(net, self.prepared, pool, seed)


# The recipe that FixMatch (Sohn et al. 2020, table 4) and the comparisons of TorchSSL (Zhang et al. 2021, appendix)
# train every method by: WRN-28-2, 2^20 steps, SGD with Nesterov momentum 0.9, learning rate 0.03 cos(7 pi t / 16).
PAPER = Preset("paper", labeled=64, unlabeled=448, lr=0.03, weight_decay=5e-4, ema=0.999, bn_momentum=0.001,
               arguments={})
# Unlabeled images for each labeled one, where not seven: one in the papers and TorchSSL; also in DARP's and ABC's code,
# which loads 64 of both (bbuing9/DARP at 64a94b4, train.py; LeeHyuck/ABC at f70e926, ABCfix.py); three in AdaMatch's
# (google-research/adamatch at 7a0b40c, semi_supervised/adamatch.py), where USB has seven.
RATIO = {"pi_model": 1, "temporal_ensembling": 1, "mean_teacher": 1, "pseudo_label": 1, "vat": 1, "ict": 1,
         "mixmatch": 1, "remixmatch": 1, "s4l": 1, "s4l_exemplar": 1, "hiermatch": 1, "abc": 1, "darp": 1,
         "adamatch": 3, "finessl": 1}  # Gank0078/FineSSL at 76b6f48, configs/peft
# Of the command that Dash's authors publish (idstcv/Dash at bbd13cc, start_train.sh).
RATE = {"dash": 0.06}
PAPER_ARGUMENTS: dict[str, dict[str, Schedule]] = {
    # With the epsilon of 6, in Oliver et al. 2018 (arXiv 1804.09170) and TorchSSL; the paper's own weight is 1.
    "vat": {"weight": ramp_up(0.3, until=0.4)},
}
# What papers set by data set, in place of the method's own defaults, which are those for CIFAR-10.
BY_DATA: dict[tuple[str, str], dict[str, Any]] = {
    # Berthelot et al. 2019, section 4.2, and google-research/mixmatch at 1011a1d, runs/table1.sh, table6.sh, table2.sh
    ("mixmatch", "cifar100"): {"weight": linear(0.0, 150.0, until=1 / 64)},
    ("mixmatch", "svhn"): {"weight": linear(0.0, 250.0, until=1 / 64)},
    ("mixmatch", "stl10"): {"weight": linear(0.0, 50.0, until=1 / 64)},
    ("hiermatch", "cifar100"): {"base": partial(methods.MixMatch, weight=linear(0.0, 150.0, until=1 / 64))},
    # vikasverma1077/ICT at 7be7264, README.md
    ("ict", "svhn"): {"alpha": 0.1},
    # brain-research/realistic-ssl-evaluation at 81fe4b2, lib/hparams.py
    ("vat", "svhn"): {"epsilon": 1.0},
    # TorchSSL at f26e1d4, models/freematch/freematch_utils.py
    ("freematch", "svhn"): {"least": 0.9, "most": 0.95},
    # USB at 1ef4cbe, config/classic_cv/comatch
    ("comatch", "stl10"): {"contrast": 5.0},
}
WEIGHT_DECAY = {"cifar100": 1e-3}  # Sohn et al. 2020, table 4

# A thousand steps or a few: small batches, a higher learning rate, statistics that follow at once. What a method
# ramps up over a 64th of a million steps rises over the first third here, and averages forget a hundred steps.
SHORT = Preset("short", labeled=32, unlabeled=128, lr=0.1, weight_decay=5e-4, ema=0.999, bn_momentum=0.02, arguments={})
# Of the nets of speed-runs, and their optimizer (arXiv 2404.00498); what each is worth: recipes/fixmatch.py.
WIDE = dataclasses.replace(SHORT, kind="wide", net="rapid_32_64_128", prepared=("whiten",), optimizer_of=muon, lr=0.08,
                           weight_decay=0.0, ema=0.99)
LARGE = 32  # pixels: of larger images, crops of half their side train
SHORT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "freematch": {"momentum": 0.99},
    "softmatch": {"momentum": 0.99},
    "adamatch": {"momentum": 0.99},
    # So soon, guesses are too often wrong: the paper's 75 drove CIFAR-10 with 250 labels to chance (11.6% of validation
    # images after 800 steps of tiny_16, at learning rates of 0.1 and 0.03 alike; with 25, 41.6% and 44.3%).
    "mixmatch": {"weight": linear(0.0, 25.0, until=0.3)},
    "hiermatch": {"base": partial(methods.MixMatch, weight=linear(0.0, 25.0, until=0.3))},
    "remixmatch": {"mixed": linear(0.0, 1.5, until=0.3), "anchored": linear(0.0, 0.5, until=0.3)},
}


def preset(method: str, data: str, kind: Kind) -> Preset:
    """The settings of this method on this data set."""
    if kind != "paper":
        short = SHORT if kind == "short" else WIDE
        return dataclasses.replace(short, arguments=SHORT_ARGUMENTS.get(method, {}))
    return dataclasses.replace(PAPER, unlabeled=PAPER.labeled * RATIO.get(method, 7), lr=RATE.get(method, PAPER.lr),
                               weight_decay=WEIGHT_DECAY.get(data, PAPER.weight_decay),
                               arguments=PAPER_ARGUMENTS.get(method, {}) | BY_DATA.get((method, data), {}))


def for_pool(method: type[Method], pool: Pool, kind: Kind | Literal["auto"] = "auto", steps: int | None = None,
             net: str = "auto", weights: str | Path | None = None, view: Sequence[str] = ()) -> Preset:
    """The settings of this method for these images, this net and these views. What they decide is said on stderr.

    In runs that are "wide" a method that looks at weak and strong views sees images of more than 32 px in crops of half
    their side: a random resized crop, the weak view that FixMatch's authors have for ImageNet, and SimCLR's as the
    strong one. Whoever names a view has no other one changed.

    kind: auto: by the number of steps, and of short runs those wide that have a net rapid_... net: its name; auto: of
    the run that has left the weights, else by the kind, or as in `net_for`. steps: of the run; None, one by the clock.
    weights: the file that the net begins with, if any. view: texts of the views that somebody named. UsageError for
    another net in a wide run.
    """
    auto = net == "auto"
    if auto and weights is not None:
        net = net_of_run(Path(weights).parent) or SHORT.net
    if kind == "auto":
        kind = kind_for(steps)
        quick = net_for(method, pool) if net == "auto" else net
        kind = "wide" if kind == "short" and quick.startswith("rapid_") else kind
    found = preset(method.name, pool.name, kind)
    found = dataclasses.replace(found, net=found.net if net == "auto" else net, views=tuple(view))
    if kind == "wide" and not found.net.startswith("rapid_"):
        raise UsageError(f"--preset wide is for nets rapid_..., and the net is {found.net}; change one of the two")
    if auto:
        other = f", trained by Muon; --net {SHORT.net} is a smaller one, by SGD" if kind == "wide" else ""
        once(f"note: the net is {found.net}{other or '; --net takes another'}")
    side = _side(pool)
    if view or kind != "wide" or side <= LARGE or not _sees_weak_and_strong(method):
        return found
    once(f"note: images of {side} px are seen in crops of {side // 2} px; whole by --view weak=weak")
    return dataclasses.replace(found, views=(f"weak=crop(area=0.3, size={side // 2})",
                                             f"strong=simclr(size={side // 2})"))


def net_for(method: type[Method], pool: Pool) -> str:
    """The net from scratch of short runs where nobody names one: that of wide ones where the method looks at weak and
    strong views, as FixMatch does, and images have colors or more than 32 px, else tiny_16, as of a single pixel."""
    fits = _side(pool) > (1 if pool.style.channels == 3 else LARGE)
    return WIDE.net if fits and _sees_weak_and_strong(method) else SHORT.net


def _side(pool: Pool) -> int:
    return min(pool.style.height, pool.style.width)


def _sees_weak_and_strong(method: type[Method]) -> bool:
    """Whether all of its views are these two, and there are some of both."""
    views = getattr(method, "views", None)
    found = {text for kind in views.texts.values() for text in kind.values()} if isinstance(views, Views) else set()
    return found == {"weak", "strong"}


def kind_for(steps: int | None) -> Literal["paper", "short"]:
    """Which preset suits a run of so many steps; None, a run by the clock, is short."""
    return "paper" if steps is not None and steps >= LONG else "short"


def noted(pool: Pool, asked: Kind | Literal["auto"], kind: Kind) -> Pool:
    """The pool, with a line in its notes where `auto` took the papers' settings, made for larger machines."""
    if asked != "auto" or kind != "paper":
        return pool
    return dataclasses.replace(pool, notes=(*pool.notes, f"from {LONG} steps on settings are those of the papers; "
                                            "--preset short has those for minutes on a CPU"))


def fill(settings: S, preset: Preset) -> S:
    """The settings (a dataclass) with the preset's values where they are None, or auto."""
    names = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    given = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)
             if field.name in names and getattr(settings, field.name) in (None, "auto")}
    return dataclasses.replace(settings, **given)  # type: ignore[type-var]
