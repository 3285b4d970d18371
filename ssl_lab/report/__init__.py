"""What a run was like: metrics to curves, tables and one self-contained HTML file."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ssl_lab.report.html import Report
from ssl_lab.report.images import image_grid
from ssl_lab.report.map import image_map, in_two_dimensions
from ssl_lab.report.metrics import Band, Row, band, mean_and_spread, read_metrics, series
from ssl_lab.report.plots import curves, heat_map
from ssl_lab.report.stages import stage_report, stage_table
from ssl_lab.report.tables import Column, Table, mean_spread, print_tables
from ssl_lab.report.text import Markup

if TYPE_CHECKING:
    from ssl_lab.report import analysis as analysis
    from ssl_lab.report import features as features
    from ssl_lab.report import finished as finished
    from ssl_lab.report import robustness as robustness

__all__ = ["Band", "Column", "Markup", "Report", "Row", "Table", "band", "curves", "heat_map", "image_grid",
           "image_map", "in_two_dimensions", "mean_and_spread", "mean_spread", "print_tables", "read_metrics", "series",
           "stage_report", "stage_table"]
_PAGES = ("analysis", "features", "finished", "robustness")


def __getattr__(name: str) -> ModuleType:  # what recipes show takes nets and methods; a table takes neither
    if name not in _PAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
