"""`ssl-lab runs`: what the runs below a folder are doing, read from the folder alone, while they run or afterwards."""

from __future__ import annotations

import json as jsonlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from ssl_lab.errors import UsageError
from ssl_lab.locks import LOCK, is_taken
from ssl_lab.report import Column, Table, print_tables
from ssl_lab.report.metrics import read_metrics

BEGUN = ("config.yaml", "settings.yaml", "settings.json")  # of a run, one that a study has planned, a benchmark's cell
ENDED = ("summary.json", "result.json")
COLUMNS = [Column("run"), Column("state"), Column("done", "right", ".0%"), Column("accuracy", "right", ".2%"),
           Column("minutes", "right", ".1f"), Column("to go", "right", ".1f"), Column("")]


def runs(out: Annotated[Path, tyro.conf.Positional] = Path("runs"), json: bool = False) -> None:
    """Lists the runs below a folder: done, running (since when, and for how long yet), waiting, or ended without a
    result, with the reason.

    Args:
        out: the folder of a study, or of all runs.
        json: print JSON.
    """
    rows = [looked_at(folder, out) for folder in folders_of_runs(out)]
    if not rows:
        raise UsageError(f"there is no run in {out}; a run's folder holds one of {', '.join(BEGUN)}")
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return
    states = Counter(row["state"] for row in rows)
    said = ", ".join(f"{count} {state}" for state, count in states.items())
    cells = [[row[key] for key in ("run", "state", "share", "accuracy", "minutes", "minutes_to_go", "reason")]
             for row in rows]
    print_tables(Table(f"{out}: {said}", COLUMNS, cells))


def folders_of_runs(out: Path) -> Iterator[Path]:
    """Every folder at or below `out` that holds a run, sorted; UsageError if there is no such folder.

    Of a run that has others inside (rounds, stages) these are its own, and are not listed.
    """
    if not out.is_dir():
        raise UsageError(f"there is no folder {out}; give the --out of a study, or the folder that holds all runs")
    if any((out / name).exists() for name in BEGUN):
        yield out
        return
    for path in sorted(out.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from folders_of_runs(path)


def looked_at(folder: Path, out: Path) -> dict[str, Any]:
    """run: its path below `out`. state: done, running, waiting, stopped or failed. share: of its steps, those that are
    done. accuracy: the last that was measured, on test images or else on validation images. minutes: that it ran,
    minutes_to_go: by its speed until now. reason: its last words, where it ended without a result."""
    ended = next((_json(folder / name) for name in ENDED if (folder / name).exists()), None)
    taken = ended is None and is_taken(folder)
    rows = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    last = rows[-1] if rows else {}
    steps, seconds = _steps(folder), last.get("seconds", 0.0)
    share = 1.0 if ended is not None else min(1.0, last.get("step", 0) / steps) if steps else None
    words = "" if ended is not None or taken else _last_words(folder / "log.txt")
    state = ("done" if ended is not None else "running" if taken else "failed" if words.startswith("error")
             else "stopped" if rows or words else "waiting")
    to_go = seconds * (1 - share) / share / 60 if state == "running" and share else None
    since = f"since {time.strftime('%H:%M:%S', time.localtime((folder / LOCK).stat().st_mtime))}" if taken else ""
    return {"run": str(folder.relative_to(out)), "state": state, "share": share, "accuracy": _accuracy(ended, rows),
            "minutes": _minutes(ended, rows),
            "minutes_to_go": to_go, "reason": since or words}


def _minutes(ended: dict[str, Any] | None, rows: list[dict[str, float]]) -> float | None:
    found = next((each["seconds"] for each in (ended, *rows[-1:]) if each and "seconds" in each), None)
    return found if found is None else (sum(found) if isinstance(found, list) else found) / 60


def _accuracy(ended: dict[str, Any] | None, rows: list[dict[str, float]]) -> float | None:
    if ended is not None and isinstance(ended.get("accuracy"), list):  # of a loop: the end of its curve
        return ended["accuracy"][-1] if ended["accuracy"] else None
    for found in filter(None, [ended, *reversed(rows)]):
        for key in ("test_accuracy", "valid_accuracy"):
            if found.get(key) is not None:
                return float(found[key])
    return None


def _steps(folder: Path) -> int | None:
    """How many there will be; None where it is by the clock, and not known yet."""
    for name in ("config.yaml", "settings.yaml"):
        if (folder / name).exists():
            found = yaml.safe_load((folder / name).read_text(encoding="utf-8")) or {}
            if isinstance(found.get("steps"), int):
                return int(found["steps"])
    return None


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = jsonlib.loads(path.read_text(encoding="utf-8"))
    return found


def _last_words(log: Path) -> str:
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
