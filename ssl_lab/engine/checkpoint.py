"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import torch

from ssl_lab.errors import UsageError
from ssl_lab.files import write_atomically

FORMAT = "ssl_lab checkpoint 1"


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain values."""
    def write(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # torch wraps what the disk said
            cause = error.__cause__ or error.__context__
            if isinstance(cause, OSError):
                raise cause from error
            raise

    write_atomically(path, write)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, never running code from it.

    Raises UsageError where the file is missing, truncated, or not one of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"no checkpoint at {path}; start the run without --resume, or with --resume auto") from None
    except Exception as error:  # a torn zip, a foreign pickle: torch raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(
            f"{path} cannot be read as a checkpoint ({reason}); it may be truncated or from another program. "
            "Move it away and start again, or name another run with --resume"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"{path} is not a checkpoint of ssl_lab (expected format {FORMAT!r}); name another run")
    return state


def restore(state: dict[str, Any], where: Path, **parts: Any) -> None:
    """Loads state[name] into each part. UsageError where one does not fit; `where` is the run's folder."""
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError) as error:  # torch lists every tensor that does not fit
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"the run in {where} has another {name} than this one ({reason})") from None
