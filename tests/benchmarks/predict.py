"""What predicting costs beside the net: `sl.open(run).stream(folder)` against the same net on decoded images at hand.

    python tests/benchmarks/predict.py RUN FOLDER

RUN: a finished run. FOLDER: of images, some thousands. It prints images per second of both, in turns, and their ratio.

A probe on EfficientNet-Lite0 at 128 px, 2,000 JPEGs of 160 x 120 pixels, two idle cores of an Intel Xeon: the net alone
358 images/s, predict 252, ratio 0.71 (0.63 to 0.80). Decoding takes its time of the same two cores.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import ssl_lab as sl
from ssl_lab.data.pictures import batches, find_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("folder")
    options = parser.parse_args()
    model = sl.open(options.run)
    style = model.card.style
    shape = style.channels, style.height, style.width
    found = find_pictures(options.folder)
    held = [batch.pixels for batch in batches(found.stream, model.reading, shape, model.batch)]
    images = sum(map(len, held))
    model.see(held[0])
    alone, whole = [], []
    for _ in range(3):
        begun = time.perf_counter()
        for pixels in held:
            model.see(pixels)
        alone.append(images / (time.perf_counter() - begun))
        begun = time.perf_counter()
        rows = sum(len(part) for part in model.stream(options.folder))
        whole.append(rows / (time.perf_counter() - begun))
    ratios = np.array(whole) / np.array(alone)
    print(f"{images:,} images of {style.width} px, {model.card.net}: the net alone {np.mean(alone):,.0f} images/s, "
          f"predict {np.mean(whole):,.0f}; ratio {ratios.mean():.2f} ({ratios.min():.2f} to {ratios.max():.2f})")


if __name__ == "__main__":
    main()
