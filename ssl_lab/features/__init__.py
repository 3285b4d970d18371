"""Features of frozen nets: stored, searched, learned from in seconds, and examined."""

from ssl_lab.features import run as run
from ssl_lab.features import side_by_side as side_by_side
from ssl_lab.features import worth as worth
from ssl_lab.features.anchored import anchored
from ssl_lab.features.approximate import Approximate
from ssl_lab.features.cka import layer_cka, linear_cka
from ssl_lab.features.confident import Doubt, confident_joint, doubt
from ssl_lab.features.crossfit import CrossFitted, cross_fitted
from ssl_lab.features.embed import embed
from ssl_lab.features.fidelity import compared_to_teacher, fidelity
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
from ssl_lab.features.probe import linear_probe, probe_head, set_head, sgd_probe
from ssl_lab.features.projector import with_projector
from ssl_lab.features.propagation import label_propagation
from ssl_lab.features.protocols import Scores, few_label_curve, label_counts, label_free, small_data
from ssl_lab.features.search import neighbors, top_k, within
from ssl_lab.features.self_training import Learner, ensemble, pseudo_labels, self_training
from ssl_lab.features.store import FeatureStore
from ssl_lab.features.stored import stored_logits
from ssl_lab.features.topic import off_topic

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
    "LEARNERS", "Approximate", "CrossFitted", "Doubt", "FeatureStore", "Health", "Learner", "OnlineAccuracy",
    "Scores", "alignment", "anchored", "class_separation", "compared_to_teacher", "confident_joint",
    "cross_fitted", "doubt",
    "effective_rank", "embed", "embedding_std", "ensemble", "few_label_curve", "fidelity", "label_counts",
    "label_free", "label_propagation", "layer_cka", "linear_cka", "linear_probe", "nearest_prototype", "neighbors",
    "off_topic", "probe_head", "pseudo_labels", "self_training", "set_head", "sgd_probe", "small_data",
    "stored_logits", "top_k", "uniformity", "weighted_knn", "with_projector", "within",
]
