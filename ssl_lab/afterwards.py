"""What is done with every finished run: the engine has it done, without knowing what the rooms above it ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AFTERWARDS: list[Callable[[Path, Any], object]] = []
"""Each is called with the folder of a run that has ended and its `Pool`. Filled where the package is imported."""


def finished(out: Path, pool: Any) -> None:
    """Does all of it. What fails is said in a word: the run is done and saved, and does not fail by it."""
    for action in AFTERWARDS:
        try:
            action(out, pool)
        except Exception as error:  # whatever it is
            print(f"note: the run in {out} is finished, but {action.__name__} failed ({type(error).__name__}: "
                  f"{error})", file=sys.stderr)
