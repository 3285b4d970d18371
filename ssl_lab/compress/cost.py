"""Size, speed and accuracy of nets as onnxruntime runs them, side by side."""

from __future__ import annotations

import gzip
import importlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_lab.analysis import effective_depth
from ssl_lab.batch import At
from ssl_lab.bench.measure import in_turn, seconds
from ssl_lab.data import IntArray, Pool
from ssl_lab.errors import UsageError
from ssl_lab.export import Exported, written
from ssl_lab.nets import Net, describe
from ssl_lab.nets.parametrized import baked
from ssl_lab.report import Column, Table
from ssl_lab.seeds import generator
from ssl_lab.views import Eval

ROWS = 64  # images that pass at a time


@dataclass(frozen=True)
class Candidate:
    """A net as a file of ONNX, and what is known of it.

    Attributes:
        name: what it is called in tables.
        parameters: of the net.
        nonzero: of them.
        flops: of one image, by dense kernels; a multiply-add counts as 2.
        depth: see `effective_depth`, on 64 training images; None where it is not known.
        content: the file.

    >>> net = sl.compress.Candidate("linear", parameters=650, nonzero=65, flops=1280, depth=0.0, content=b"")
    >>> f"{1 - net.nonzero / net.parameters:.0%} of its weights are zero"
    '90% of its weights are zero'
    """

    name: str
    parameters: int
    nonzero: int
    flops: int
    depth: float | None
    content: bytes

    def session(self, threads: int) -> Any:
        """onnxruntime's, on so many threads of the CPU."""
        onnxruntime: Any = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        return onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])


def candidate_of(name: str, net: Net, pool: Pool) -> Candidate:
    """A trained net, exported.

    Args:
        name: how it is called in tables.
        net: that was trained.
        pool: whose images it sees.

    Raises:
        UsageError: where ONNX cannot have it, or the extra [export] is missing.

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(64, 10), mean=(0.5,), std=(0.25,))
    >>> candidate = sl.compress.candidate_of("linear", net, sl.load("digits"))
    >>> candidate.flops, candidate.nonzero, len(candidate.content) > 0
    (1280, 650, True)
    """
    net, style = baked(net).cpu().eval(), pool.style  # a step technique leaves it as it trains
    try:
        depth = effective_depth(net, torch.from_numpy(as_seen(pool, pool.train[:ROWS])))
    except UsageError:
        depth = None
    content, *_ = written(Exported(net, "logits").eval(), style, "onnx", Path(f"{name}.onnx"))
    parameters, flops = describe(net, style)
    nonzero = sum(int(p.count_nonzero()) for p in net.parameters())
    return Candidate(name, parameters, nonzero, flops, depth, content)


def compared(candidates: Sequence[Candidate], pool: Pool, repeats: int = 7) -> Table:
    """A row of each, ratios to the first one: what it takes, how fast onnxruntime runs it, how often it is right on the
    test images (else those of validation), and how often it says what the first one says.

    Speed: of batches of 64 random images, the candidates in turn; the median, on as many threads as torch has.

    Args:
        candidates: the first one is what others are compared to.
        pool: whose images they are tried on.
        repeats: laps, in each of which every candidate is timed.

    >>> pool = sl.load("digits")
    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(64, 10), mean=(0.5,), std=(0.25,))
    >>> candidate = sl.compress.candidate_of("linear", net, pool)
    >>> table = sl.compress.compared([candidate], pool, repeats=1)
    >>> [column.name for column in table.columns][:5]
    ['', 'parameters', 'nonzero', 'MFLOPs', 'depth']
    """
    split, rows = ("test", pool.test) if len(pool.test) else ("validation", pool.valid)
    sessions = {each.name: each.session(torch.get_num_threads()) for each in candidates}
    style = pool.style
    images = torch.rand(ROWS, style.channels, style.height, style.width, generator=generator("compress")).numpy()
    laps = in_turn({name: partial(seconds, partial(session.run, None, {"images": images}))
                    for name, session in sessions.items()}, repeats)
    speeds = {name: ROWS / statistics.median(took) for name, took in laps.items()}
    said = {name: answers(session, pool, rows) for name, session in sessions.items()}
    first, known = candidates[0].name, pool.truth[rows] >= 0
    truth = pool.truth[rows][known]
    cells = [[each.name, each.parameters, each.nonzero, each.flops / 1e6, each.depth, len(each.content) / 1e3,
              len(gzip.compress(each.content, mtime=0)) / 1e3, speeds[each.name], speeds[each.name] / speeds[first],
              float((said[each.name][known] == truth).mean()) if known.any() else None,
              float((said[each.name] == said[first]).mean()) if len(rows) else None] for each in candidates]
    right = [("parameters", ",d"), ("nonzero", ",d"), ("MFLOPs", ".2f"), ("depth", ".1f"), ("KB", ".1f"),
             ("gzipped", ".1f"), ("images/s", ",.0f"), ("speed", ".2f"), ("accuracy", ".2%"), ("agreement", ".2%")]
    return Table(f"{first} and what was made of it: speeds by onnxruntime on {torch.get_num_threads()} threads; "
                 f"accuracy and agreement on {len(rows):,} {split} images",
                 [Column(""), *(Column(name, "right", form) for name, form in right)], cells)


def answers(session: Any, pool: Pool, rows: IntArray) -> NDArray[np.int64]:
    """int64 [n]: the classes that a session gives these images of the pool, as they are."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(rows), ROWS):
        found.append(session.run(None, {"images": as_seen(pool, rows[start:start + ROWS])})[0].argmax(axis=1))
    return np.concatenate(found)


def as_seen(pool: Pool, rows: IntArray) -> NDArray[np.float32]:
    """These images as a net sees them in evaluation, float32 [n, C, H, W] in [0, 1]."""
    draw = At(0, 1).draw("eval", len(rows), torch.device("cpu"))
    seen: NDArray[np.float32] = Eval(pool.style)(pool.images.take(rows), draw).float().numpy()
    return seen
