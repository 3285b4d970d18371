"""`ssl-lab report`: the page of a run, written again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from ssl_lab.config import data_of, reading_of
from ssl_lab.data import Pool, load
from ssl_lab.errors import UsageError
from ssl_lab.report.run import write_report


def report(run: Annotated[Path, tyro.conf.Positional], data: str | None = None, data_dir: Path | None = None,
           remote_gb: float | None = None) -> None:
    """Writes report.html into the folder of a finished run, as each run of a recipe does when it ends.

    Numbers are those that the run stored. The images are read once more, for thumbnails; where they are gone, the page
    says so.

    Args:
        run: folder of the run (its --out).
        data: where the images lie now (default: where they lay for the run).
        data_dir: where data sets lie (default: as for the run).
        remote_gb: gigabytes that may be copied to this machine from an address (default: as for the run).
    """
    pool, missing = _images(run, data, {"data_dir": data_dir, "remote_gb": remote_gb})
    print(f"The report is {write_report(run, pool, missing)}")
    if missing:
        print(f"note: it is without thumbnails: {missing}")


def _images(run: Path, data: str | None, others: Mapping[str, Any]) -> tuple[Pool | None, str]:
    """The images of a run, read as it read them but for what others say; else why there are none."""
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text()) if config.is_file() else None
    settings = settings if isinstance(settings, dict) else {}
    reading = reading_of(settings) | {name: value for name, value in others.items() if value is not None}
    try:
        return load(data or data_of(settings, run), **reading), ""
    except (UsageError, OSError) as error:
        if data is not None:
            raise
        return None, f"the images cannot be read ({error}); --data says where they lie now"
