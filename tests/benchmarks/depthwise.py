"""A training step's forward and backward with depthwise convolutions' gradients by oneDNN, and by `nets.depthwise`.

    python tests/benchmarks/depthwise.py
    python tests/benchmarks/depthwise.py --net timm/tf_efficientnet_lite2 --size 160 --images 32
"""

from __future__ import annotations

import argparse
import time

import torch

import ssl_lab as sl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    runtime = sl.Runtime.start("cpu", options.precision)
    net = sl.net(options.net, 10, sl.Style(height=options.size, width=options.size)).train()
    net = net.to(memory_format=torch.channels_last)
    x = torch.rand(options.images, 3, options.size, options.size).to(memory_format=torch.channels_last)
    laps: dict[str, list[float]] = {"oneDNN's": [], "ours": []}
    for _ in range(options.repeats):  # in turns, so that both see the same weather
        for name, taken in laps.items():
            net._depthwise = name == "ours"
            start = time.perf_counter()
            with runtime.autocast():
                logits = net(x).logits
            logits.float().square().mean().backward()
            taken.append(time.perf_counter() - start)
    best = {name: min(taken) for name, taken in laps.items()}
    for name, seconds in best.items():
        print(f"{name:9} {1e3 * seconds:8.0f} ms")
    print(f"{best[next(iter(best))] / best['ours']:.2f} times as fast ({options.net}, {options.images} images of "
          f"{options.size} px, {runtime.precision}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
