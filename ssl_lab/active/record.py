"""What is kept of a round of active learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_lab.active.people.answers import read_json
from ssl_lab.active.people.oracle import Asked
from ssl_lab.active.queries.view import IntArray
from ssl_lab.data import Pool


@dataclass(frozen=True)
class Round:
    """A round's record. labels: labeled images that the net was trained on. ids: what was asked, in selection order;
    empty in the last record, which only measures. query: its name. accuracy: on the test images. version: a hash of
    the weights that the query saw. scores, predicted, confidence: of each id, where known. seconds: of "fit", "arrays"
    and "query". memory: peak bytes of the query above its inputs. watched, sureness: the class and its probability that
    the net predicts of each image of a stop set, which `watch` names. stands_for, like: of each id, how many unlabeled
    images it stands for, and the ids of some; None where no embeddings were at hand."""

    round: int
    labels: int
    accuracy: float | None
    version: str | None
    query: str | None = None
    ids: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    predicted: tuple[int, ...] | None = None
    confidence: tuple[float, ...] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    watch: str | None = None
    watched: tuple[int, ...] | None = None
    sureness: tuple[float, ...] | None = None
    stands_for: tuple[int, ...] | None = None
    like: tuple[tuple[int, ...], ...] | None = None


def read_round(path: Path) -> Round:
    """The round that a JSON file holds."""
    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return Round(**{key: frozen(value) for key, value in read_json(path, {}).items()})


def asked_of(record: Round, pending: IntArray, pool: Pool) -> Asked:
    """What a round's record knows of those of its ids that are pending."""
    places = [record.ids.index(i) for i in pending.tolist()]

    def at(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values[place] for place in places)

    paths = tuple(pool.files[i] for i in pending.tolist()) if pool.files else ("",) * len(pending)
    classes = at(record.predicted)
    predicted = None if classes is None else tuple(pool.class_names[label] for label in classes)
    return Asked(pending, paths, predicted, at(record.confidence), at(record.scores), record.version, pool.class_names,
                 at(record.stands_for))
