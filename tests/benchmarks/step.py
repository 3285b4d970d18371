"""Where the time of a FixMatch step goes: data and views, forward, backward, optimizer and EMA.

    python tests/benchmarks/step.py --net wrn_28_2 --labeled 64 --unlabeled 448

Prints the median of each part over some steps, and the share of data and views in the whole.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro

import ssl_lab as sl
from ssl_lab.batch import At


@dataclass
class Args:
    net: str = "wrn_28_2"
    labeled: int = 64
    unlabeled: int = 448
    size: int = 32
    steps: int = 5


def main(args: Args) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (4096, 3, args.size, args.size), dtype=np.uint8)
    pool = sl.Pool.from_arrays(images, draw.integers(0, 10, 4096)).split(labels=250)
    method = sl.FixMatch(sl.net(args.net, classes=10, style=pool.style)).train()
    method.to(memory_format=torch.channels_last)
    runtime = sl.Runtime.start("cpu")
    feed = sl.Feed(pool, method.views, args.labeled, args.unlabeled, seed=0, device=runtime.device)
    spec = sl.SGD()
    optimizer = spec.build(method)
    laps = []
    for step in range(args.steps + 1):
        at = At(step, args.steps + 1)
        times = [time.perf_counter()]
        batch = feed(at)
        times.append(time.perf_counter())
        with runtime.autocast():
            loss = method(batch, at)
        times.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        times.append(time.perf_counter())
        spec.set(optimizer, at)
        optimizer.step()
        method.after_step(at)
        times.append(time.perf_counter())
        laps.append(np.diff(times))
    parts = [statistics.median(part) for part in zip(*laps[1:], strict=True)]  # the first step sets up kernels
    print(f"{args.net}, {args.labeled}+{args.unlabeled}+{args.unlabeled} images of {args.size} px, "
          f"{runtime.precision}, {torch.get_num_threads()} threads")
    for name, seconds in zip(("data and views", "forward", "backward", "optimizer and EMA"), parts, strict=True):
        print(f"{name:18} {1e3 * seconds:8.1f} ms  {seconds / sum(parts):6.1%}")


if __name__ == "__main__":
    main(tyro.cli(Args))
