"""What queries cost against the number of rows: seconds, memory, and slopes of log-log plots, 1 where cost is linear.

    python tests/benchmarks/scale.py --sizes 10000,100000,1000000 --files FOLDER --half --out scale.html

Inputs are those of `ssl-lab bench query`, in files of FOLDER of which one size is there at a time: ten million rows of
128 features and 10 classes take 5.7 GB, 2.9 with --half. Memory is beside them. Slopes are of lines through all sizes,
of CPU seconds. With --rows FILE each measurement is a line of that file, and those that it holds are not made again.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from ssl_lab import texts
from ssl_lab.bench.query import Size, costs
from ssl_lab.report import Band, Column, Report, Table, curves, print_tables

QUERIES = "margin,k_center,badge,typiclust,cluster_margin,prob_cover,max_herding"
FIGURES = {"seconds": ("seconds", 1, ".2f"), "cpu_seconds": ("CPU seconds", 1, ".2f"),
           "peak_memory_bytes": ("peak memory, MB, beside the inputs", 1e6, ".0f"),
           "resident_bytes": ("resident memory, MB, with what was read of files", 1e6, ".0f")}


def slope(sizes, values):
    """d log(value) / d log(size), over the sizes that have a value; None of fewer than two."""
    known = [(size, value) for size, value in zip(sizes, values, strict=True) if value]
    if len(known) < 2:
        return None
    return float(np.polyfit(*np.log(known).T, 1)[0])


def measured(options, queries, sizes):
    """{(query, size): row}, of `costs`."""
    path, found = options.rows, {}
    lines = path.read_text().splitlines() if path and path.exists() else []
    for row in map(json.loads, lines):
        if [row[name] for name in ("dim", "classes", "budget")] == [options.dim, options.classes, options.budget]:
            found[row["query"], row["n"]] = row
    for size in sizes:
        left = [query for query in queries if (query, size) not in found]
        for row in costs(Size(size, options.dim, options.classes, options.budget), left, False, options.seed,
                         options.files, options.half) if left else []:
            found[row["query"], size] = row
            print(json.dumps(row), flush=True)
            if path:
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", default=QUERIES)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    for name, default in (("dim", 128), ("classes", 10), ("budget", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--rows", type=Path, help="a file of JSON lines")
    parser.add_argument("--out", type=Path, help="an HTML page with the plot")
    options = parser.parse_args()
    queries, sizes = texts.split(options.queries), [int(size) for size in options.sizes.split(",")]
    rows = measured(options, queries, sizes)
    tables, lines = [], {}
    for key, (what, unit, form) in FIGURES.items():
        cells = []
        for query in queries:
            values = [rows[query, size][key] for size in sizes]
            cells.append([query, *(value and value / unit for value in values)])
            if key == "cpu_seconds":
                cells[-1].append(slope(sizes, values))
                known = [(size, value) for size, value in zip(sizes, values, strict=True) if value]
                x, y = np.array(known, dtype=float).reshape(-1, 2).T
                lines[query] = Band(x, np.log10(y), np.zeros(len(y)))
        columns = [Column("query"), *(Column(f"{size:,}", "right", form) for size in sizes)]
        columns += [Column("slope", "right", ".2f")] * (key == "cpu_seconds")
        tables.append(Table(f"{what}, of rows of {options.dim} features, budget {options.budget}", columns, cells))
    print_tables(*tables)
    if options.out:
        report = Report("What queries cost against the number of rows")
        report.figure(curves(lines, y="log10 of CPU seconds", x="rows", log=True), "Seconds against rows.")
        for table in tables:
            report.table(table)
        report.write(options.out)


if __name__ == "__main__":
    sys.exit(main())
