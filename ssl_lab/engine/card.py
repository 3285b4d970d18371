"""`model.json`: what it takes, beside its weights, to use a finished run where its data are not at hand."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssl_lab.batch import Style
from ssl_lab.calibration import Calibration, calibrate
from ssl_lab.data import Pool
from ssl_lab.data.reading import AS_BYTES, Reading
from ssl_lab.engine.evaluate import Predictions
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text
from ssl_lab.nets import Net

FORMAT = 1
CARD = "ssl_lab_card"  # the key of its text in another tool's file
UNKNOWN = ("not calibrated: a net is surer of images that it was trained on than of others, and no others with a label "
           "were kept (--valid 50 keeps some; ssl-lab train --calibrate 5 does without, in six trainings)")
"""Of a trained net without validation images. Labels held out unasked would cost more accuracy than calibration gives,
and a temperature by shorter trainings on parts of the labels is worse than none: see tests/benchmarks/README.md. Those
that are as long (`ssl_lab.refits`) cost their time."""


@dataclass(frozen=True)
class Card:
    """What a model is.

    net: its name. class_names: of the logits, in order; empty where no classifier was trained. style: of the images it
    takes. data, labels: what it was trained on. reading: how images were read, which new ones are read by too. kind:
    "net" (model.safetensors holds a `Net`), "neighbors" (neighbors.safetensors holds what the nearest `neighbors` rows
    of its features believe) or "ensemble" (of the runs `members`, in the folder of that name).
    """

    net: str
    class_names: tuple[str, ...]
    style: Style
    data: str
    labels: int
    reading: Reading = AS_BYTES
    calibration: Calibration = field(default_factory=Calibration)
    kind: str = "net"
    neighbors: int = 0
    members: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As JSON."""
        content = {"format": FORMAT, **asdict(self), "calibration": self.calibration.plain()}
        return json.dumps(content, indent=1) + "\n"

    def write(self, run: Path) -> None:
        """As model.json into the run's folder."""
        write_text(run / "model.json", self.text)

    @classmethod
    def read(cls, run: Path) -> Card:
        """The card in this folder. UsageError if there is none, or one that this version cannot read."""
        path = run / "model.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UsageError(f"{run} is no folder of a finished run: there is no model.json in it. Give the --out of "
                             "one that has ended") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error})") from error
        return cls.of_text(text, path)

    @classmethod
    def of_text(cls, text: str, path: Path) -> Card:
        """The card that `text` made. path: where it stands, for the UsageError if this version cannot read it."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("it has another format")
            style, calibration = _tuples(content["style"]), _tuples(content["calibration"])
            parts: dict[str, Any] = {"style": Style(**style), "calibration": Calibration(**calibration),
                                     "reading": Reading.read(content["reading"])}
            return cls(**_tuples(content) | parts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} cannot be read ({error}): it is damaged, or of another version") from error


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    """Lists as the tuples that they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def card_of(net: Net, classifies: bool, pool: Pool, valid: Predictions | None) -> Card:
    """The card of a net that was trained on this pool; calibrated on its predictions of validation images, if there are
    any."""
    calibration = Calibration(source=UNKNOWN)
    if valid is not None:
        calibration = calibrate(valid.logits, valid.truth, "validation images")
    return Card(net.name, pool.class_names if classifies else (), pool.style, pool.name, len(pool.labeled),
                pool.reading, calibration)
