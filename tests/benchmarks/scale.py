"""What queries cost against the number of rows: seconds, memory, and slopes of log-log plots, 1 where cost is linear.

    python tests/benchmarks/scale.py --sizes 10000,100000,1000000 --files FOLDER --half --out scale.html

Inputs are those of `ssl-lab bench query`, in files of FOLDER of which one size is there at a time: ten million rows of
128 features and 10 classes take 5.7 GB, 2.9 with --half. Memory is beside them. Slopes are of lines through all sizes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from ssl_lab import texts
from ssl_lab.bench.query import Size, costs
from ssl_lab.report import Band, Column, Report, Table, curves, print_tables

QUERIES = "margin,entropy,random,k_center,badge,max_herding,uncertainty_herding"


def slope(sizes, values):
    """d log(value) / d log(size), over the sizes that have a value; None of fewer than two."""
    known = [(size, value) for size, value in zip(sizes, values, strict=True) if value]
    if len(known) < 2:
        return None
    return float(np.polyfit(*np.log(known).T, 1)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", default=QUERIES)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    for name, default in (("dim", 128), ("classes", 10), ("budget", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--out", type=Path, help="an HTML page with the plot")
    options = parser.parse_args()
    queries, sizes = texts.split(options.queries), [int(size) for size in options.sizes.split(",")]
    seconds, memory = ({query: [] for query in queries} for _ in range(2))
    for size in sizes:
        for query, row in zip(queries, costs(Size(size, options.dim, options.classes, options.budget), queries, False,
                                             options.seed, options.files, options.half), strict=True):
            seconds[query].append(row["seconds"])
            memory[query].append(row["peak_memory_bytes"] and row["peak_memory_bytes"] / 1e6)
            print(size, query, row["seconds"], row["peak_memory_bytes"], flush=True)
    tables = []
    for what, values, form in (("seconds", seconds, ".2f"), ("peak memory, MB", memory, ".0f")):
        columns = [Column("query"), *(Column(f"{size:,}", "right", form) for size in sizes),
                   Column("slope", "right", ".2f")]
        tables.append(Table(f"{what}, of rows of {options.dim} features, budget {options.budget}", columns,
                            [[query, *values[query], slope(sizes, values[query])] for query in queries]))
    print_tables(*tables)
    if options.out:
        report = Report("What queries cost against the number of rows")
        lines = {}
        for query in queries:
            known = [(size, value) for size, value in zip(sizes, seconds[query], strict=True) if value]
            x, y = np.array(known, dtype=float).reshape(-1, 2).T
            lines[query] = Band(x, np.log10(y), np.zeros(len(y)))
        report.figure(curves(lines, y="log10 of seconds", x="rows", log=True), "Seconds against rows.")
        for table in tables:
            report.table(table)
        report.write(options.out)


if __name__ == "__main__":
    sys.exit(main())
