"""What scripts that measure import is still there: they are run seldom."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    try:
        importlib.import_module(name)
    finally:
        for module in FOLDER.glob("*.py"):  # names as plain as these are for others to use
            sys.modules.pop(module.stem, None)
