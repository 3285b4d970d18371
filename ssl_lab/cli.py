"""The `ssl-lab` command: its words, of which each is a thin call of a function that code can call too."""

from __future__ import annotations

import importlib
import json as jsonlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import tyro

import ssl_lab
from ssl_lab.command_line import HELP, run_command
from ssl_lab.errors import unknown
from ssl_lab.exits import exit_with_status
from ssl_lab.flags import overview, width_here

Kind = Literal["methods", "techniques", "optimizers", "queries", "views", "nets", "data", "recipes"]


def quickstart(out: Path = Path("runs/quickstart"), steps: int = 400, seeds: int = 1) -> None:
    """From ten labels to a model in use, on scikit-learn's digits, in minutes, and what each idea on the way gives.

    out: folder of the report. steps: training steps of each run. seeds: runs of each stage, for means and spreads.
    """
    from ssl_lab.quickstart import run

    run(out, steps, seeds)


def list_(kind: Annotated[Kind | None, tyro.conf.Positional] = None, papers: bool = False, json: bool = False) -> None:
    """Lists what there is, with papers, recipes and how each is asked for: methods, techniques, optimizers, queries,
    views, nets, data sets and recipes.

    kind: only these. papers: the papers that it is made of, each with its name here and how to run it, instead. json:
    print JSON.
    """
    from ssl_lab import catalog

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
    from ssl_lab.engine.machine import matmul_tflops

    runtime = Runtime.start()
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else platform.processor()
    peaks = {str(dtype).removeprefix("torch."): matmul_tflops(runtime.device, dtype, seconds=1.0)
             for dtype in (torch.float32, torch.bfloat16)}
    lines = {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in
           ("ssl_lab", "torch", "torchvision", "timm", "kornia", "faiss-cpu", "scikit-learn")},
        "device": " ".join(filter(None, [str(runtime.device), name])),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "precision": f"{runtime.precision} ({runtime.reason})",
        "matrix-product peak": ", ".join(f"{dtype} {peak:.2f} TFLOP/s" for dtype, peak in peaks.items()),
    }
    for key, value in lines.items():
        print(f"{key:20} {value}")


def cache(remove: str | None = None, data_dir: Path | None = None) -> None:
    """Lists what is kept on disk to start faster: decoded images, indexes of shards, features; it is made again.

    remove: all, old (not used for 30 days) or the name of one; what a running process uses stays.
    data_dir: where caches lie (default: $SSL_LAB_DATA, else ~/.cache/ssl_lab).
    """
    import time

    from ssl_lab.data import kept

    gone, held = ([], []) if remove is None else kept.remove(remove, data_dir)
    rows = [("removed", each) for each in gone] + [("in use, stays", each) for each in held]
    for state, each in rows if remove is not None else [("", each) for each in kept.kept(data_dir)]:
        used = time.strftime("%Y-%m-%d", time.localtime(each.used))
        print(f"{each.folder.name}  {each.what}, {each.rows:,} images, {each.size / 2**20:,.1f} MiB, last used {used}: "
              f"{each.source}{f' ({state})' if state else ''}")
    if remove is not None and not rows:
        print("nothing to remove")


WORDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "the first day": {
        "quickstart": ("cli:quickstart", "From ten labels to a model in use, on data that comes with it, in minutes"),
        "fetch": ("fetch:fetch", "Brings public data sets and pretrained nets to this machine, verified"),
        "train": ("train:train", "The best classifier that these labels allow, in so many minutes, as a run"),
        "predict": ("predict:predict", "The classes of new images by a finished run"),
        "audit": ("auditing.command:audit_command",
                  "What is wrong with a data set: labels, duplicates, leaks, odd images"),
        "label": ("label.command:label", "A page on this machine to label images with a keyboard, the next by a query"),
        "labels": ("active.people.leaving:labels", "Takes labels along: a CSV of path,label,source,when"),
    },
    "a closer look": {
        "advise": ("advise:advise", "Which way to train on this data with so many labels, by cross-validation"),
        "runs": ("runs:runs", "What the runs of a study are doing: done, running and until when, failed and why"),
        "report": ("reporting:report", "Writes the page of a run again: what it learned, where it errs"),
        "find-lr": ("find_lr:find_lr",
                    "Which learning rate to take: a test of rising rates, a picture and a number"),
        "export": ("export:export", "Writes a run's net for timm, ONNX or TorchScript, and checks it"),
        "query": ("active.command:query_command", "Chooses images to label next from your own arrays"),
    },
    "what is here": {
        "list": ("cli:list_", "Methods, techniques, queries, views, nets, data sets and recipes, with their papers"),
        "bench": ("bench:", "Times steps, nets, views or queries on this machine"),
        "cache": ("cli:cache", "What is kept on disk to start faster, and how to remove it"),
        "env": ("cli:env", "Versions, the device, and which precision is picked here and why; --version: its own"),
    },
}
"""The words by title: where each lies, which is imported when it is asked for, and what it does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `ssl-lab`. What needs torch to be imported is imported only when it is asked for."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_status(lambda: _run(argv))


def _run(argv: list[str]) -> None:
    word = argv[0] if argv else "--help"
    if word == "--version":
        print(f"ssl_lab {ssl_lab.__version__}")
    elif word in HELP:
        said = {title: {name: does for name, (_, does) in words.items()} for title, words in WORDS.items()}
        print(overview("ssl-lab", said, width_here()))
    elif word == "bench":
        from ssl_lab.bench.nets import bench_nets
        from ssl_lab.bench.query import bench_query
        from ssl_lab.bench.step import bench_step
        from ssl_lab.bench.views import bench_views

        run_command({"step": bench_step, "nets": bench_nets, "views": bench_views, "query": bench_query},
                    "ssl-lab bench", argv[1:])
    else:
        run_command({word: _function(word)}, "ssl-lab", argv)


def _function(word: str) -> Callable[..., object]:
    """What a word calls. UsageError, with the nearest ones, for one that there is not."""
    places = {name: place for words in WORDS.values() for name, (place, _) in words.items()}
    if word not in places:
        raise unknown("word", word, places, "`ssl-lab --help` explains them.")
    module, _, name = places[word].partition(":")
    function: Callable[..., object] = getattr(importlib.import_module(f"ssl_lab.{module}"), name)
    return function
