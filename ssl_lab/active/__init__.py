"""Active learning: which images to label next, asking for their labels, and whether it was worth it."""

from ssl_lab.active import queries
from ssl_lab.active import show as show
from ssl_lab.active import study as study
from ssl_lab.active import trainers as trainers
from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people.annotators import Reliability, assign, dawid_skene
from ssl_lab.active.people.label_studio import LabelStudio
from ssl_lab.active.people.oracle import Asked, Command, FromFile, Truth
from ssl_lab.active.plugins import make_oracle, make_query
from ssl_lab.active.queries import *  # noqa: F403
from ssl_lab.active.queries.base import Query, ScoreQuery, Wrapper
from ssl_lab.active.queries.view import PoolView
from ssl_lab.active.stands import Stands, stands_for
from ssl_lab.active.stopping import Estimate, estimate_accuracy, expected_gain, kappa
from ssl_lab.active.study.statistics import (
    Paired,
    area,
    efficiency_interval,
    holm,
    labeling_efficiency,
    labels_needed,
    monotone,
    paired_t,
    win_matrix,
)

__all__ = ["ActiveLoop", "Asked", "Command", "Estimate", "FromFile", "LabelStudio", "Paired", "PoolView", "Query",
           "Reliability", "ScoreQuery", "Stands", "Truth", "Wrapper", "area", "assign", "dawid_skene",
           "efficiency_interval", "estimate_accuracy", "expected_gain", "holm", "kappa", "labeling_efficiency",
           "labels_needed", "make_oracle", "make_query", "monotone", "paired_t", "stands_for", "win_matrix"]
__all__ += queries.__all__
