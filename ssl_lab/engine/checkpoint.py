"""Checkpoints: written whole or not at all, read without running code; the one before the last is kept too.

That of a sharded run has its tensors in a folder beside it, to which every rank writes, and names that folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ssl_lab.errors import UsageError
from ssl_lab.files import cannot_write, sync, write_atomically, write_text

FORMAT = "ssl_lab checkpoint 2"
FILES = "files.json"
"""In a folder of tensors, written last: names its files and their bytes, so that a torn one is known as such."""


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept: checkpoint.pt -> checkpoint.previous.pt."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def exists(path: Path) -> bool:
    """Whether a run left a checkpoint. A kill between the two renames of `save` leaves the previous one alone."""
    return path.exists() or previous(path).exists()


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain values; the one that was there becomes the previous one.

    Nothing changes before all of the new one is on the disk, and a damaged file never replaces a previous one, nor
    does one whose folder of tensors is damaged. Raises UsageError for a full disk, a read-only folder and the like.
    """
    def write(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # torch wraps what the disk said
            cause = error.__cause__ or error.__context__
            if isinstance(cause, OSError):
                raise cause from error
            raise

    fresh = path.with_name(f"{path.stem}.new{path.suffix}")
    write_atomically(fresh, write)
    folder = state.get("sharded")  # that of a step that is run again was there before, and makes no second checkpoint
    spare = sharded_folder(path) not in (None, folder) if folder else damage(path) is None
    try:
        if spare:
            path.replace(previous(path))
        fresh.replace(path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, never running code from it. If it is damaged or missing, reads the previous
    one, and says so on stderr.

    Raises UsageError where neither can be read, or where the file is not one of ours.
    """
    if not exists(path):
        raise UsageError(f"no checkpoint at {path}; start the run without --resume, or with --resume auto")
    try:
        return _read(path)
    except _DamagedError as error:
        try:
            state = _read(previous(path))
        except UsageError:
            raise UsageError(f"{path} cannot be read as a checkpoint ({error}); it may be truncated or from another "
                             "program. Move it away and start again, or name another run with --resume") from None
        print(f"note: {path} cannot be read ({error}); going on from {previous(path).name}, step {state['step']}",
              file=sys.stderr)
        return state


def saved(path: Path, resume: str | Path | None) -> dict[str, Any] | None:
    """The checkpoint to go on from: none if `resume` is None, and with "auto" only one that is there; see `load`."""
    if resume is None or (resume == "auto" and not exists(path)):
        return None
    return load(path)


def damage(path: Path) -> str | None:
    """What is wrong with a file that should be a zip archive, as torch writes them; None if it is whole.

    torch.load does not compare checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except FileNotFoundError:
        return "it is missing"
    except Exception as error:  # zipfile, zlib and struct raise many kinds, by which bytes are wrong
        return _first_line(error)
    return bad and f"wrong checksum of {bad}"


def restore(state: Mapping[str, Any], where: Path, **parts: Any) -> None:
    """Loads state[name] into each part. UsageError where one does not fit; `where` is the run's folder."""
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError) as error:  # torch lists every tensor that does not fit
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"the run in {where} has another {name} than this one ({reason})") from None


def list_files(folder: Path) -> None:
    """Writes the list that makes a folder of tensors a whole one."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
    write_text(folder / FILES, json.dumps(sizes, indent=1) + "\n")


def check_files(folder: Path) -> None:
    """UsageError unless the folder has the files of its list, each as long as it was written."""
    try:
        sizes = json.loads((folder / FILES).read_text(encoding="utf-8"))
        torn = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError, AttributeError):
        raise _DamagedError(f"{folder} holds no whole checkpoint of a sharded run") from None
    if torn:
        raise _DamagedError(f"{folder / torn[0]} is damaged: it has not the {sizes[torn[0]]} bytes that were written")


def sharded_folder(path: Path) -> str | None:
    """The name of the folder that holds the tensors of a sharded run's checkpoint; None if either is damaged."""
    try:
        name: str | None = _read(path).get("sharded")
    except UsageError:
        return None
    return name


def keep_only(run: Path, *names: str | None) -> None:
    """Removes from a run's folder the folders of tensors that no checkpoint names any more: all but `names`."""
    for path in run.glob("sharded-*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


class _DamagedError(UsageError):
    """The file is missing or damaged; the message is the reason."""


def _read(path: Path) -> dict[str, Any]:
    reason = damage(path)
    if reason:
        raise _DamagedError(reason)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign pickle, a damaged directory: torch raises many kinds
        raise _DamagedError(_first_line(error)) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"{path} is not a checkpoint of ssl_lab (expected format {FORMAT!r}); name another run")
    if "sharded" in state:
        check_files(path.parent / state["sharded"])
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
