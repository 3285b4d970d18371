"""The words of `ssl-lab` that have no room of their own: quickstart, list, env, cache."""

from __future__ import annotations

import json as jsonlib
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssl_lab import catalog
from ssl_lab.versions import versions

Kind = Literal["methods", "techniques", "optimizers", "queries", "views", "nets", "data", "recipes"]


def quickstart(out: Path = Path("runs/quickstart"), steps: int = 400, seeds: int = 1) -> None:
    """From ten labels to a model in use, on scikit-learn's digits, in minutes, and what each idea on the way gives.

    Args:
        out: folder of the report.
        steps: training steps of each run.
        seeds: runs of each stage, for means and spreads.
    """
    from ssl_lab.quickstart import run

    run(out, steps, seeds)


def list_(kind: Annotated[Kind | None, tyro.conf.Positional] = None, papers: bool = False, json: bool = False) -> None:
    """Lists what there is, with papers, recipes and how each is asked for: methods, techniques, optimizers, queries,
    views, nets, data sets and recipes.

    Args:
        kind: only these.
        papers: the papers that it is made of, each with its name here and how to run it, instead.
        json: print JSON.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if papers:
        from ssl_lab.papers import listed

        rows: object = listed()
        lines = catalog.of_papers(listed(), width)
    else:
        tables = catalog.tables(kind)
        rows, lines = tables if kind is None else tables[kind], catalog.laid_out(tables, width)
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return
    for line in lines:
        bold = width is not None and line[:1].strip() and "NO_COLOR" not in os.environ
        print(f"\033[1m{line}\033[0m" if bold else line)


def env() -> None:
    """Prints versions, the device, and which precision `auto` picks here and why."""
    import torch

    from ssl_lab.engine import Runtime
    from ssl_lab.machine import matmul_tflops

    runtime = Runtime.start()
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else platform.processor()
    peaks = {str(dtype).removeprefix("torch."): matmul_tflops(runtime.device, dtype, seconds=1.0)
             for dtype in (torch.float32, torch.bfloat16)}
    lines = {
        "python": platform.python_version(),
        **versions("torch", "torchvision", "timm", "kornia", "faiss-cpu", "scikit-learn"),
        "device": " ".join(filter(None, [str(runtime.device), name])),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "precision": f"{runtime.precision} ({runtime.reason})",
        "matrix-product peak": ", ".join(f"{dtype} {peak:.2g} TFLOP/s" for dtype, peak in peaks.items()),
    }
    for key, value in lines.items():
        print(f"{key:20} {value}")


def cache(remove: str | None = None, data_dir: Path | None = None) -> None:
    """Lists what is kept on disk to start faster: decoded images, indexes of shards, features, and copies of what lies
    at an address; it is made again.

    Args:
        remove: all, old (not used for 30 days) or the name of one; what a running process uses stays.
        data_dir: where caches lie (default: $SSL_LAB_DATA, else ~/.cache/ssl_lab).
    """
    from ssl_lab.data import kept

    gone, held = ([], []) if remove is None else kept.remove(remove, data_dir)
    rows = [("removed", each) for each in gone] + [("in use, stays", each) for each in held]
    for state, each in rows if remove is not None else [("", each) for each in kept.kept(data_dir)]:
        used = time.strftime("%Y-%m-%d", time.localtime(each.used))
        print(f"{each.folder.name}  {each.what}, {each.rows:,} {each.unit}, {each.size / 2**20:,.1f} MiB, last "
              f"used {used}: {each.source}{f' ({state})' if state else ''}")
    if remove is not None and not rows:
        print("nothing to remove")
