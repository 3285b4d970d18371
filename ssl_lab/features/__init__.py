"""Features of frozen nets: stored, searched, learned from in seconds, and examined."""

from ssl_lab.features.anchored import anchored
from ssl_lab.features.cka import layer_cka, linear_cka
from ssl_lab.features.embed import embed
from ssl_lab.features.health import (
    Health,
    OnlineAccuracy,
    alignment,
    class_separation,
    effective_rank,
    embedding_std,
    uniformity,
)
from ssl_lab.features.knn import nearest_prototype, weighted_knn
from ssl_lab.features.probe import linear_probe, sgd_probe
from ssl_lab.features.propagation import label_propagation
from ssl_lab.features.search import Approximate, neighbors, top_k, within
from ssl_lab.features.self_training import Learner, ensemble, self_training
from ssl_lab.features.store import FeatureStore

LEARNERS: dict[str, Learner] = {
    "knn": weighted_knn,
    "prototype": nearest_prototype,
    "probe": linear_probe,
    "propagation": label_propagation,
    "self_training": self_training,
    "anchored": anchored,
}
"""The learners on frozen features: (features, labels with -1 = unlabeled, queries, classes) -> probabilities."""

__all__ = [
    "LEARNERS", "Approximate", "FeatureStore", "Health", "Learner", "OnlineAccuracy", "alignment", "anchored",
    "class_separation",
    "effective_rank", "embed", "embedding_std", "ensemble", "label_propagation", "layer_cka", "linear_cka",
    "linear_probe", "nearest_prototype", "neighbors", "self_training", "sgd_probe", "top_k", "uniformity",
    "weighted_knn", "within",
]
