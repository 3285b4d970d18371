"""Queries, a file for each paper or family. A new one is a file and its lines here."""

from ssl_lab.active.queries.alfa_mix import AlfaMix
from ssl_lab.active.queries.badge import Badge
from ssl_lab.active.queries.bait import Bait
from ssl_lab.active.queries.bald import BatchBALD
from ssl_lab.active.queries.base import Query
from ssl_lab.active.queries.cal import Cal
from ssl_lab.active.queries.clue import Clue
from ssl_lab.active.queries.cluster_margin import ClusterMargin
from ssl_lab.active.queries.committee import Committee
from ssl_lab.active.queries.coverage import MaxHerding, ProbCover
from ssl_lab.active.queries.discriminative import Discriminative
from ssl_lab.active.queries.drop_query import DropQuery
from ssl_lab.active.queries.epig import Epig
from ssl_lab.active.queries.facility_location import FacilityLocation
from ssl_lab.active.queries.galaxy import Galaxy
from ssl_lab.active.queries.k_center import KCenter
from ssl_lab.active.queries.k_means import KMeans
from ssl_lab.active.queries.learning_loss import LearningLoss
from ssl_lab.active.queries.power import Gibbs, Power, SoftRank
from ssl_lab.active.queries.typiclust import TypiClust
from ssl_lab.active.queries.uncertainty import BALD, Entropy, LeastConfidence, Margin, MeanStd, Random, VariationRatio
from ssl_lab.active.queries.uncertainty_herding import UncertaintyHerding
from ssl_lab.active.queries.view_disagreement import ViewDisagreement
from ssl_lab.active.queries.wrappers import ClassBalanced, CostAware, Prefilter, WithoutDuplicates
from ssl_lab.errors import unknown

QUERIES: dict[str, type[Query]] = {query.name: query for query in (
    Random,
    LeastConfidence, Margin, Entropy, BALD, MeanStd, VariationRatio, BatchBALD, Epig, ViewDisagreement,
    Power, Gibbs, SoftRank, Committee,
    KCenter, KMeans, TypiClust, ProbCover, MaxHerding, FacilityLocation,
    Badge, ClusterMargin, Clue, AlfaMix, Bait, Galaxy, Cal, DropQuery, UncertaintyHerding,
    LearningLoss, Discriminative,
)}
WRAPPERS: dict[str, type[Query]] = {query.name: query for query in (
    Prefilter, ClassBalanced, CostAware, WithoutDuplicates,
)}
"""Around other queries."""


def get(name: str) -> type[Query]:
    """The query or wrapper of this name. Raises UsageError with the nearest names."""
    known = QUERIES | WRAPPERS
    if name not in known:
        raise unknown("query", name, known, "See `ssl-lab list queries`; your own is package.module:Class.")
    return known[name]


__all__ = [
    "BALD",
    "QUERIES",
    "WRAPPERS",
    "AlfaMix",
    "Badge",
    "Bait",
    "BatchBALD",
    "Cal",
    "ClassBalanced",
    "Clue",
    "ClusterMargin",
    "Committee",
    "CostAware",
    "Discriminative",
    "DropQuery",
    "Entropy",
    "Epig",
    "FacilityLocation",
    "Galaxy",
    "Gibbs",
    "KCenter",
    "KMeans",
    "LearningLoss",
    "LeastConfidence",
    "Margin",
    "MaxHerding",
    "MeanStd",
    "Power",
    "Prefilter",
    "ProbCover",
    "Random",
    "SoftRank",
    "TypiClust",
    "UncertaintyHerding",
    "VariationRatio",
    "ViewDisagreement",
    "WithoutDuplicates",
]
