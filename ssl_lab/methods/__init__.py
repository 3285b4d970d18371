"""Methods, one file per paper. A new one is a file and its lines here.

Which families there are, semi-supervised, self-supervised, distillation (and active learning in `ssl_lab.active`), is
the scope of "Annotation efficient learning (a thesis)": we know its abstract alone, and neither its title nor author.
"""

import re
from pathlib import Path

from ssl_lab import texts
from ssl_lab.errors import UsageError, unknown
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.abc import ABC
from ssl_lab.methods.consistency.adamatch import AdaMatch
from ssl_lab.methods.consistency.comatch import CoMatch
from ssl_lab.methods.consistency.darp import DARP
from ssl_lab.methods.consistency.dash import Dash
from ssl_lab.methods.consistency.defixmatch import DeFixMatch
from ssl_lab.methods.consistency.finessl import FineSSL
from ssl_lab.methods.consistency.fixmatch import FixMatch
from ssl_lab.methods.consistency.flexmatch import FlexMatch
from ssl_lab.methods.consistency.freematch import FreeMatch
from ssl_lab.methods.consistency.hiermatch import HierMatch
from ssl_lab.methods.consistency.ict import ICT
from ssl_lab.methods.consistency.mean_teacher import MeanTeacher
from ssl_lab.methods.consistency.mixmatch import MixMatch
from ssl_lab.methods.consistency.noisy_student import NoisyStudent
from ssl_lab.methods.consistency.opencos import OpenCoS
from ssl_lab.methods.consistency.pi_model import PiModel
from ssl_lab.methods.consistency.pseudo_label import PseudoLabel
from ssl_lab.methods.consistency.reference_prior import ReferencePrior
from ssl_lab.methods.consistency.remixmatch import ReMixMatch
from ssl_lab.methods.consistency.s4l import S4L, S4LExemplar
from ssl_lab.methods.consistency.simmatch import SimMatch
from ssl_lab.methods.consistency.softmatch import SoftMatch
from ssl_lab.methods.consistency.temporal_ensembling import TemporalEnsembling
from ssl_lab.methods.consistency.uda import UDA
from ssl_lab.methods.consistency.vat import VAT
from ssl_lab.methods.distillation import (
    CC,
    CESKD,
    CRD,
    DIST,
    DISTILLATION,
    DKD,
    KD,
    NST,
    PKT,
    RKD,
    SEED,
    SP,
    TEACHERLESS,
    VID,
    AttentionTransfer,
    Distillation,
    FitNet,
    FunctionMatching,
    LogitStd,
    MutualLearning,
    ReviewKD,
    SelfDistillation,
    SoftLabels,
    SoTeacher,
    StoredLogits,
    Teacher,
    TeacherAssistant,
    load_teacher,
)
from ssl_lab.methods.labeled_simclr import LabeledSimCLR
from ssl_lab.methods.pretraining.barlow_twins import BarlowTwins
from ssl_lab.methods.pretraining.byol import BYOL
from ssl_lab.methods.pretraining.dino import DINO
from ssl_lab.methods.pretraining.mae import MAE
from ssl_lab.methods.pretraining.moco import MoCoV2, MoCoV3
from ssl_lab.methods.pretraining.nnclr import NNCLR
from ssl_lab.methods.pretraining.rotation import Rotation
from ssl_lab.methods.pretraining.simclr import SimCLR
from ssl_lab.methods.pretraining.simsiam import SimSiam
from ssl_lab.methods.pretraining.swav import SwAV
from ssl_lab.methods.pretraining.vicreg import VICReg
from ssl_lab.methods.supervised import Supervised
from ssl_lab.texts import Call

_ALL: tuple[type[Method], ...] = (
    Supervised,
    PiModel, TemporalEnsembling, MeanTeacher, PseudoLabel, VAT, ICT, MixMatch, ReMixMatch, UDA, S4L, S4LExemplar,
    FixMatch, FlexMatch, FineSSL, FreeMatch, SoftMatch, AdaMatch, DeFixMatch, Dash, SimMatch, CoMatch, NoisyStudent,
    ReferencePrior, LabeledSimCLR, HierMatch, ABC, DARP, OpenCoS,
    SimCLR, BYOL, SimSiam, MoCoV2, MoCoV3, BarlowTwins, VICReg, DINO, SwAV, NNCLR, Rotation, MAE,
    *DISTILLATION.values(), *TEACHERLESS.values(), SoftLabels,
)
METHODS = {method.name: method for method in _ALL}


def get(text: str) -> type[Method]:
    """The method that a text names; see `described`."""
    return described(text)[0]


def described(text: str) -> tuple[type[Method], Call]:
    """The method that a text describes, and the arguments it gives: a name, or "mypackage.mymodule:MyMethod", with
    arguments in parentheses if there are any, as in fixmatch(threshold=0.7).

    A module is looked for in the current folder too. Raises UsageError with the nearest names, and for what cannot be
    imported or is no method.
    """
    call = texts.read(text, "method", "fixmatch(threshold=0.7)")
    if ":" in call.name:
        found = texts.imported(call.name, Method, "method")
        if not hasattr(found, "name") or (found.__init__ is Method.__init__ and not hasattr(found, "views")):
            raise UsageError(f"{call.name} needs a name and views: class attributes, as ssl_lab.methods.Method says")
        return found, call
    if call.name not in METHODS:
        raise unknown("method", call.name, METHODS, "See `ssl-lab list methods`; your own is package.module:Class.")
    return METHODS[call.name], call


def is_described(text: str) -> bool:
    """Whether this text describes a method, rather than naming a file or a folder."""
    name = text.partition("(")[0].strip()
    return name in METHODS or (re.fullmatch(r"[\w.]+:[\w.]+", name) is not None and not Path(text).exists())


__all__ = [
    "ABC",
    "BYOL",
    "CC",
    "CESKD",
    "CRD",
    "DARP",
    "DINO",
    "DIST",
    "DKD",
    "ICT",
    "KD",
    "MAE",
    "NNCLR",
    "NST",
    "PKT",
    "RKD",
    "S4L",
    "SEED",
    "SP",
    "UDA",
    "VAT",
    "VID",
    "AdaMatch",
    "AttentionTransfer",
    "BarlowTwins",
    "CoMatch",
    "Dash",
    "DeFixMatch",
    "Distillation",
    "FineSSL",
    "FitNet",
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "FunctionMatching",
    "HierMatch",
    "LabeledSimCLR",
    "LogitStd",
    "MeanTeacher",
    "Method",
    "MixMatch",
    "MoCoV2",
    "MoCoV3",
    "MutualLearning",
    "NoisyStudent",
    "OpenCoS",
    "PiModel",
    "PseudoLabel",
    "ReMixMatch",
    "ReferencePrior",
    "ReviewKD",
    "Rotation",
    "S4LExemplar",
    "SelfDistillation",
    "SimCLR",
    "SimMatch",
    "SimSiam",
    "SoTeacher",
    "SoftLabels",
    "SoftMatch",
    "StoredLogits",
    "Supervised",
    "SwAV",
    "Teacher",
    "TeacherAssistant",
    "TemporalEnsembling",
    "VICReg",
    "Views",
    "load_teacher",
]
