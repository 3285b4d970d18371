"""The page of what a net's features are worth, alone or beside another net's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_lab.data import IntArray, Pool
from ssl_lab.features.health import some
from ssl_lab.features.worth import Layers, Worth
from ssl_lab.report.html import NAME, Report
from ssl_lab.report.map import Layout, image_map, in_two_dimensions
from ssl_lab.report.metrics import Band, line
from ssl_lab.report.plots import curves, heat_map
from ssl_lab.report.tables import Column, Table


def table_of(found: Sequence[Worth], pool: Pool, queries: IntArray) -> Table:
    """A row for each number that was measured, a column for each net."""
    return Table(f"{pool.name}, {len(pool.labeled)} labels, {len(queries)} test images", [
        Column("measure"), *(Column(each.name, "right") for each in found)],
        [[name, *(each.numbers.get(name) for each in found)] for name in {**found[0].numbers, **found[-1].numbers}])


def write_features(found: Sequence[Worth], layers: Layers | None, pool: Pool, queries: IntArray, learner: str,
                   layout: Layout, shown: int, seed: int, out: Path) -> Path:
    """Writes report.html into the folder `out` and returns its path.

    learner: of the few-label curve. layout, shown: of the map, and how many images are on it.
    """
    report = Report(f"The features of {found[0].name}", f"{pool.name}, by recipes/evaluate.py")
    report.table(table_of(found, pool, queries))
    report.text("±: half of a 95% interval of the mean over draws of the labels; the test images are the same in all.")
    if curve := next((each.curve for each in found if each.curve), None):
        report.section("Few labels")
        lines = {each.name: Band(*np.array([(few.labels, few.mean, few.half_width) for few in each.curve])
                                 .reshape(-1, 3).T) for each in found}
        report.figure(curves(lines, "test accuracy", "labels", percent=True, log=True),
                      f"{learner} on frozen features. Band: 95% interval over {len(curve[0].accuracies)} draws.")
    report.section("Map")
    rows = some(queries if len(queries) else pool.train, shown)
    for each in found:
        if np.isfinite(each.features[rows]).all():
            points = in_two_dimensions(each.features[rows], layout, seed)
            report.figure(image_map(points, pool.truth[rows], pool.images.take(rows).numpy(), pool.class_names),
                          f"Features of {each.name}: {len(rows)} images by {layout.upper()}, colored by class. Point "
                          "at one to see it.")
    if layers is not None:
        report.section("Layers")
        places = np.arange(1, len(layers.theirs) + 1)
        lines = {name: line(places, row)
                 for name, row in zip(layers.mine, np.nan_to_num(layers.alike), strict=True)}
        report.figure(heat_map(lines, f"CKA of layers of {found[0].name}", f"layer of {found[1].name}, in order"),
                      f"Linear CKA on {layers.images} train images: full color is 1, the same up to rotation.")
    report.write(out / NAME)
    return out / NAME
