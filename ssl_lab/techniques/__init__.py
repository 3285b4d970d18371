"""Techniques: what changes how any method trains, one file per paper. A new one is a file and its lines here.

The regularizers among them are of the three areas of "Avoiding Overfitting: A Survey on Regularization Methods for
Convolutional Neural Networks" (arXiv 2201.03299, read in its abstract): changes of the input (views), inside the net
(dropout, drop_path, weight_norm, weight_rescaling), and of labels (mixing and smoothing in methods, ldam and vs).
"""

from collections.abc import Callable, Sequence

from ssl_lab import texts
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets import Net
from ssl_lab.schedule import MAKERS, Schedule
from ssl_lab.techniques.base import (
    Around,
    DataTechnique,
    Kind,
    NetTechnique,
    StepTechnique,
    Technique,
    TermTechnique,
    WeightsTechnique,
)
from ssl_lab.techniques.data.corrupt_labels import CorruptLabels
from ssl_lab.techniques.data.oversample import Oversample
from ssl_lab.techniques.data.undersample import Undersample
from ssl_lab.techniques.net.autoinit import AutoInit
from ssl_lab.techniques.net.drop_path import DropPath
from ssl_lab.techniques.net.dropout import Dropout
from ssl_lab.techniques.net.gradinit import GradInit
from ssl_lab.techniques.net.rewire import Rewire
from ssl_lab.techniques.net.weight_norm import WeightNorm
from ssl_lab.techniques.net.whiten import Whiten
from ssl_lab.techniques.step.entropy_sgd import EntropySGD
from ssl_lab.techniques.step.gnp import GNP
from ssl_lab.techniques.step.hero import HERO
from ssl_lab.techniques.step.pof import PoF
from ssl_lab.techniques.step.replicated_sgd import ReplicatedSGD
from ssl_lab.techniques.step.sam import SAM
from ssl_lab.techniques.step.saq import SAQ
from ssl_lab.techniques.step.svi import SVI
from ssl_lab.techniques.term.adversarial import SAT, Adversarial, SecondOrder
from ssl_lab.techniques.term.batch_entropy import BatchEntropy
from ssl_lab.techniques.term.bitat import BiTAT
from ssl_lab.techniques.term.class_weights import ClassWeights
from ssl_lab.techniques.term.csq import CSQ
from ssl_lab.techniques.term.cure import CURE
from ssl_lab.techniques.term.cyclical_focal import CyclicalFocal
from ssl_lab.techniques.term.deep_supervision import DeepSupervision
from ssl_lab.techniques.term.dp import DP
from ssl_lab.techniques.term.head_norm import HeadNorm
from ssl_lab.techniques.term.ldam import LDAM
from ssl_lab.techniques.term.linearize import Linearize
from ssl_lab.techniques.term.mixing import CutMix, MixUp
from ssl_lab.techniques.term.noise_consistency import NoiseConsistency
from ssl_lab.techniques.term.noise_tempering import NoiseTempering
from ssl_lab.techniques.term.perturbation_margin import PerturbationMargin
from ssl_lab.techniques.term.qnn import QNN
from ssl_lab.techniques.term.relay import Relay
from ssl_lab.techniques.term.satnl import SatNL
from ssl_lab.techniques.term.scl import SCL
from ssl_lab.techniques.term.symreg import SymReg
from ssl_lab.techniques.term.temperature import Temperature
from ssl_lab.techniques.term.vs import VS
from ssl_lab.techniques.together import Techniques
from ssl_lab.techniques.weights.gradmax import GradMax
from ssl_lab.techniques.weights.layerwise_reinit import LayerwiseReinit
from ssl_lab.techniques.weights.lookahead import Lookahead
from ssl_lab.techniques.weights.lottery import Lottery
from ssl_lab.techniques.weights.prior_correction import PriorCorrection
from ssl_lab.techniques.weights.reinit import Reinit
from ssl_lab.techniques.weights.rigl import RigL
from ssl_lab.techniques.weights.shrink_perturb import ShrinkPerturb
from ssl_lab.techniques.weights.slimming import Slimming
from ssl_lab.techniques.weights.sphere import Sphere
from ssl_lab.techniques.weights.swa import SWA
from ssl_lab.techniques.weights.taylor import Taylor
from ssl_lab.techniques.weights.weight_rescaling import WeightRescaling

_ALL: tuple[type[Technique], ...] = (
    AutoInit,
    DropPath,
    Dropout,
    GradInit,
    Rewire,
    WeightNorm,
    Whiten,
    BatchEntropy,
    DeepSupervision,
    Relay,
    NoiseConsistency,
    CURE,
    Adversarial,
    SAT,
    SecondOrder,
    PerturbationMargin,
    HeadNorm,
    DP,
    CyclicalFocal,
    Temperature,
    ClassWeights,
    LDAM,
    VS,
    MixUp,
    CutMix,
    SCL,
    QNN,
    SymReg,
    SatNL,
    NoiseTempering,
    Linearize,
    CSQ,
    BiTAT,
    SAM,
    GNP,
    HERO,
    EntropySGD,
    ReplicatedSGD,
    PoF,
    SVI,
    SAQ,
    GradMax,
    LayerwiseReinit,
    Lookahead,
    Reinit,
    ShrinkPerturb,
    Sphere,
    SWA,
    WeightRescaling,
    PriorCorrection,
    Lottery,
    RigL,
    Slimming,
    Taylor,
    Oversample,
    Undersample,
    CorruptLabels,
)
TECHNIQUES = {technique.name: technique for technique in _ALL}


def technique(text: str) -> Technique:
    """The technique that a text describes: a name, or "mypackage.mymodule:Thing", with arguments in parentheses, as in
    sam(rho=0.1), of which any scalar may be a schedule.

    A module is looked for in the current folder too.

    Raises:
        UsageError: with the nearest names for an unknown one, for arguments that it does not take, and for what cannot
            be imported or is no technique.

    >>> sl.techniques.technique("sam(rho=linear(0, 0.1))").rho
    linear(0, 0.1, until=1.0)
    """
    made = texts.make(texts.read(text, "technique", "sam(rho=0.1)"), _maker)
    if not isinstance(made, Technique):
        raise unknown("technique", text, TECHNIQUES, "See `ssl-lab list techniques`.")
    return made


def _maker(name: str) -> Callable[..., Technique | Schedule]:
    if ":" in name:
        found = texts.imported(name, Technique, "technique")
        if not (hasattr(found, "kind") and hasattr(found, "name")):
            raise UsageError(f"{name} needs a kind and a name: derive it from StepTechnique, TermTechnique or another "
                             "one of ssl_lab.techniques, and give it a name")
        return found
    if name in MAKERS:  # of a schedule, among the arguments
        return MAKERS[name]
    if name not in TECHNIQUES:
        raise unknown("technique", name, TECHNIQUES, "See `ssl-lab list techniques`; your own is package.module:Class.")
    return TECHNIQUES[name]


def together(given: Sequence[Technique | str]) -> Techniques:
    """Several techniques as one, which says what they ask for.

    Args:
        given: techniques, or texts as `technique` reads them.

    Raises:
        UsageError: where two of them exclude each other, and as in `technique`.

    >>> try:
    ...     sl.techniques.together(["sam", "gnp"])
    ... except sl.UsageError as error:
    ...     print(error)
    sam and gnp are both rules for a whole step; give one of them
    """
    return Techniques([technique(each) if isinstance(each, str) else each for each in given])


def prepared(net: Net, techniques: Sequence[Technique | str], pool: Pool, seed: int = 0) -> Net:
    """The net as the net techniques among these make it, to build a method around. The same techniques are then given
    to the `Trainer`, which records them and does what the others ask for.

    Args:
        net: to prepare.
        techniques: techniques, or texts as `technique` reads them; those of other kinds leave the net alone.
        pool: whose images it will see.
        seed: of what they draw.

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.prepared(sl.net("tiny_4", classes=10, style=pool.style), ["dropout(rate=0.2)"], pool)
    >>> net.prepared
    ('dropout(rate=0.2)',)
    """
    return together(techniques).net(net, pool, seed)


__all__ = [
    "CSQ",
    "CURE",
    "DP",
    "GNP",
    "HERO",
    "LDAM",
    "QNN",
    "SAM",
    "SAQ",
    "SAT",
    "SCL",
    "SVI",
    "SWA",
    "VS",
    "Adversarial",
    "Around",
    "AutoInit",
    "BatchEntropy",
    "BiTAT",
    "ClassWeights",
    "CorruptLabels",
    "CutMix",
    "CyclicalFocal",
    "DataTechnique",
    "DeepSupervision",
    "DropPath",
    "Dropout",
    "EntropySGD",
    "GradInit",
    "GradMax",
    "HeadNorm",
    "Kind",
    "LayerwiseReinit",
    "Linearize",
    "Lookahead",
    "Lottery",
    "MixUp",
    "NetTechnique",
    "NoiseConsistency",
    "NoiseTempering",
    "Oversample",
    "PerturbationMargin",
    "PoF",
    "PriorCorrection",
    "Reinit",
    "Relay",
    "ReplicatedSGD",
    "Rewire",
    "RigL",
    "SatNL",
    "SecondOrder",
    "ShrinkPerturb",
    "Slimming",
    "Sphere",
    "StepTechnique",
    "SymReg",
    "Taylor",
    "Technique",
    "Techniques",
    "Temperature",
    "TermTechnique",
    "Undersample",
    "WeightNorm",
    "WeightRescaling",
    "WeightsTechnique",
    "Whiten",
    "prepared",
    "technique",
    "together",
]
