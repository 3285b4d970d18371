"""What predicting costs beside the net: `sl.open(run).stream(folder)` against the same net on decoded images at hand.

    python tests/benchmarks/predict.py RUN FOLDER

RUN: a finished run. FOLDER: of images, some thousands. It prints, in turns, images per second of the net on one batch
after another by all threads, of the same batches side by side as `predict` passes them, and of `predict`; and the core
time of each, which other processes disturb less.

A probe on EfficientNet-Lite0 at 128 px, 10,000 JPEGs of 160 x 120 pixels, on two cores of an Intel Xeon (model 207)
that had nothing else to do: the net side by side 377 images/s, predict 314, ratio 0.83 (0.78 to 0.87); the net on all
threads, one batch after another, 230. Reading a JPEG costs 0.94 ms of a core (measured by itself, beside other work;
0.55 of them are Pillow's resizing and 0.30 its decoding), and the net 4.7: with as many threads as cores,
4.7 / (4.7 + 0.94) = 0.83 is what there is.
At 224 px, 2,400 of them: the net side by side 156, predict 135, ratio 0.86 (0.83 to 0.92); the net on all threads 144,
ratio 0.94 (0.83 to 1.11).
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import ssl_lab as sl
from ssl_lab.data.pictures import batches, find_pictures
from ssl_lab.engine.abreast import abreast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, help="so many of them (default: all)")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    model = sl.open(options.run)
    style = model.card.style
    shape = style.channels, style.height, style.width
    files = list(find_pictures(options.folder).stream)[: options.images]
    paths = [picture.content for picture in files]
    held = [batch.pixels for batch in batches(files, model.reading, shape, model.batch)]
    images = len(files)
    model.see(held[0])

    def one_by_one() -> None:
        for pixels in held:
            model.see(pixels)

    def side_by_side() -> None:
        for _ in abreast(model.lanes, model.see, held):
            pass

    def predicted() -> None:
        assert sum(len(part) for part in model.stream(paths)) == images

    ways = {"the net alone": one_by_one, "the net alone, side by side": side_by_side, "predict": predicted}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    cores: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.turns):
        for name, way in ways.items():
            begun, busy = time.perf_counter(), time.process_time()
            way()
            speeds[name].append(images / (time.perf_counter() - begun))
            cores[name].append(1000 * (time.process_time() - busy) / images)
    print(f"{images:,} images of {style.width} px, {model.card.net}, {model.lanes} batches at a time")
    for name, found in speeds.items():
        ratios, busy = (np.array(each["predict"]) / np.array(each[name]) for each in (speeds, cores))
        print(f"{name:28} {np.mean(found):6,.0f} images/s, {np.mean(cores[name]):5.2f} ms of a core each; predict's "
              f"ratio to it {ratios.mean():.2f} ({ratios.min():.2f} to {ratios.max():.2f}), in core time "
              f"{1 / busy.mean():.2f}", flush=True)


if __name__ == "__main__":
    main()
