"""What is kept of a round of active learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_lab.active.answers import read_json


@dataclass(frozen=True)
class Round:
    """A round's record. labels: labeled images that the net was trained on. ids: what was asked, in selection order;
    empty in the last record, which only measures. query: its name. accuracy: on the test images. version: a hash of
    the weights that the query saw. scores, predicted, confidence: of each id, where known. seconds: of "fit", "arrays"
    and "query". memory: peak bytes of the query above its inputs."""

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


def read_round(path: Path) -> Round:
    """The round that a JSON file holds."""
    content: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                               for key, value in read_json(path, {}).items()}
    return Round(**content)
