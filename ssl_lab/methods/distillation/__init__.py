"""Distillation: a student learns from a frozen teacher, on every image of the batch, labeled or not."""

from ssl_lab.methods.distillation.at import AttentionTransfer
from ssl_lab.methods.distillation.base import Distillation, MapDistillation
from ssl_lab.methods.distillation.cc import CC
from ssl_lab.methods.distillation.dist import DIST
from ssl_lab.methods.distillation.dkd import DKD
from ssl_lab.methods.distillation.fitnet import FitNet
from ssl_lab.methods.distillation.function_matching import FunctionMatching
from ssl_lab.methods.distillation.kd import KD
from ssl_lab.methods.distillation.logit_std import LogitStd
from ssl_lab.methods.distillation.nst import NST
from ssl_lab.methods.distillation.pkt import PKT
from ssl_lab.methods.distillation.rkd import RKD
from ssl_lab.methods.distillation.sp import SP
from ssl_lab.methods.distillation.teacher import StoredLogits, Teacher, load_teacher
from ssl_lab.methods.distillation.vid import VID

DISTILLATION: dict[str, type[Distillation]] = {method.name: method for method in (
    KD, DKD, DIST, LogitStd, FunctionMatching, FitNet, AttentionTransfer, SP, CC, RKD, PKT, VID, NST,
)}
"""By name; each is built as method(net, teacher, ...)."""

__all__ = [
    "CC",
    "DIST",
    "DISTILLATION",
    "DKD",
    "KD",
    "NST",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "AttentionTransfer",
    "Distillation",
    "FitNet",
    "FunctionMatching",
    "LogitStd",
    "MapDistillation",
    "StoredLogits",
    "Teacher",
    "load_teacher",
]
