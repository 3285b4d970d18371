"""Distillation: a student learns from a frozen teacher, on every image of the batch, labeled or not."""

from ssl_lab.methods.base import Method
from ssl_lab.methods.distillation.at import AttentionTransfer
from ssl_lab.methods.distillation.base import Distillation, MapDistillation
from ssl_lab.methods.distillation.cc import CC
from ssl_lab.methods.distillation.ces_kd import CESKD
from ssl_lab.methods.distillation.crd import CRD
from ssl_lab.methods.distillation.dist import DIST
from ssl_lab.methods.distillation.dkd import DKD
from ssl_lab.methods.distillation.fitnet import FitNet
from ssl_lab.methods.distillation.function_matching import FunctionMatching
from ssl_lab.methods.distillation.kd import KD
from ssl_lab.methods.distillation.logit_std import LogitStd
from ssl_lab.methods.distillation.mutual_learning import MutualLearning
from ssl_lab.methods.distillation.nst import NST
from ssl_lab.methods.distillation.pkt import PKT
from ssl_lab.methods.distillation.review_kd import ReviewKD
from ssl_lab.methods.distillation.rkd import RKD
from ssl_lab.methods.distillation.seed import SEED
from ssl_lab.methods.distillation.self_distillation import SelfDistillation
from ssl_lab.methods.distillation.so_teacher import SoTeacher
from ssl_lab.methods.distillation.soft_labels import SoftLabels
from ssl_lab.methods.distillation.sp import SP
from ssl_lab.methods.distillation.teacher import StoredLogits, Teacher, load_teacher, read_logits
from ssl_lab.methods.distillation.teacher_assistant import TeacherAssistant
from ssl_lab.methods.distillation.vid import VID

DISTILLATION: dict[str, type[Distillation]] = {method.name: method for method in (
    KD, DKD, DIST, LogitStd, FunctionMatching, FitNet, AttentionTransfer, SP, CC, RKD, PKT, VID, NST,
    CRD, SEED, ReviewKD, TeacherAssistant, CESKD,
)}
"""By name; each is built as method(net, teacher, ...)."""

_TEACHERLESS: tuple[type[Method], ...] = (SelfDistillation, MutualLearning, SoTeacher)
TEACHERLESS: dict[str, type[Method]] = {method.name: method for method in _TEACHERLESS}
"""By name; each is built as method(net, ...), and trains without a teacher, or trains one."""

__all__ = [
    "CC",
    "CESKD",
    "CRD",
    "DIST",
    "DISTILLATION",
    "DKD",
    "KD",
    "NST",
    "PKT",
    "RKD",
    "SEED",
    "SP",
    "TEACHERLESS",
    "VID",
    "AttentionTransfer",
    "Distillation",
    "FitNet",
    "FunctionMatching",
    "LogitStd",
    "MapDistillation",
    "MutualLearning",
    "ReviewKD",
    "SelfDistillation",
    "SoTeacher",
    "SoftLabels",
    "StoredLogits",
    "Teacher",
    "TeacherAssistant",
    "load_teacher",
    "read_logits",
]
