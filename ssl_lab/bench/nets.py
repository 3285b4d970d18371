"""What nets cost on this machine: how many images they classify, and train on, in a second."""

from __future__ import annotations

import json as jsonlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssl_lab.batch import Style
from ssl_lab.bench.measure import Spread, in_turn, seconds, waiting
from ssl_lab.engine import Runtime
from ssl_lab.engine.placed import place
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net, describe, net
from ssl_lab.report import Column, Table, print_tables
from ssl_lab.seeds import generator

NETS = "tiny_16,tiny_32,tiny_64,wrn_16_2,wrn_28_2,resnet18"
CLASSES = 10


def bench_nets(nets: str = NETS, size: int = 32, rows: int = 64, repeats: int = 5, device: str = "auto",
               json: bool = False) -> list[dict[str, Any]]:
    """Times a pass of each net without gradient, and one forward and back, and prints images per second and what a net
    has: parameters, and GFLOPs of one image (a multiply-add counts as 2). Returns the rows of the JSON.

    tflops are those of the pass without gradient. Nets that spend their time on small maps of many channels, or outside
    of products, have few of them; on a CPU prefer nets with many images per second for their GFLOPs.

    Args:
        nets: names separated by commas (see `ssl-lab list nets`).
        size: side of the images.
        rows: images per pass.
        repeats: of each, in turn.
        device: cpu, cuda or auto.
        json: print JSON.
    """
    if rows < 1 or size < 1:
        raise UsageError(f"rows={rows}, size={size}: expected 1 or more of each")
    runtime, style = Runtime.start(device), Style(height=size, width=size)
    images = torch.rand(rows, 3, size, size, generator=generator("bench/nets")).to(runtime.device)
    found: list[dict[str, Any]] = []
    actions = {}
    for name in nets.split(","):
        built = net(name, CLASSES, style)
        parameters, flops = describe(built, style)
        found.append({"net": name, "size": size, "rows": rows, "device": str(runtime.device),
                      "precision": runtime.precision, "parameters": parameters, "gflops": flops / 1e9})
        place(built, runtime.device)
        for kind, action in (("asked", _asked), ("trained", _trained)):
            actions[f"{kind} {name}"] = partial(seconds, partial(action, built, images, runtime),
                                                waiting(runtime.device))
    laps = in_turn(actions, repeats)
    for row in found:
        asked, trained = (Spread.of(laps[f"{kind} {row['net']}"]).median for kind in ("asked", "trained"))
        row |= {"images_per_second": rows / asked, "trained_per_second": rows / trained,
                "tflops": row["gflops"] * rows / asked / 1e3}
    _show(found, json)
    return found


def _asked(model: Net, images: Tensor, runtime: Runtime) -> None:
    model.eval()
    with torch.inference_mode(), runtime.autocast():
        model(images)


def _trained(model: Net, images: Tensor, runtime: Runtime) -> None:
    model.train()
    with runtime.autocast():
        loss = model(images).logits.float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


def _show(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return
    first = rows[0]
    columns = [("parameters", "parameters", ",.0f"), ("GFLOPs", "gflops", ".3f"),
               ("images/s", "images_per_second", ",.0f"), ("trained", "trained_per_second", ",.0f"),
               ("TFLOP/s", "tflops", ".3f")]
    print_tables(Table(
        f"Passes of {first['rows']} images of {first['size']} px, {first['precision']} on {torch.get_num_threads()} "
        f"threads of {first['device']}", [Column("net"), *(Column(name, "right", form) for name, _, form in columns)],
        [[row["net"], *(row[key] for _, key, _ in columns)] for row in rows]))
