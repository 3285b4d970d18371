"""Images per second of each view beside the same strong view made with Pillow, image by image.

    python tests/benchmarks/views.py [--rows 448] [--size 32] [--device cpu]

Timings drift with the machine: compare only numbers of one run, and on busy cores set OMP_NUM_THREADS=1,
because threads that wait for each other cost far more than these small tensors. Results are compared too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ssl_lab.batch import At, Draw, Style
from ssl_lab.views import VIEWS


def pillow_strong(images: Tensor, draw: Draw) -> Tensor:
    """FixMatch's strong view with Pillow and NumPy, drawing as `Strong` draws."""
    height, width = images.shape[2:]
    downs, rights = draw.integers(-4, 5, 1).flatten().tolist(), draw.integers(-4, 5, 1).flatten().tolist()
    flips = (draw.uniform(1) < 0.5).flatten().tolist()
    applied, numbers = (draw.uniform(2) < 0.5).tolist(), draw.integers(0, 14, 2).tolist()
    levels, signs = draw.integers(1, 10, 2).tolist(), (draw.integers(0, 2, 2) * 2 - 1).tolist()
    ys, xs = draw.integers(0, height, 1).flatten().tolist(), draw.integers(0, width, 1).flatten().tolist()
    side = min(height, width) // 2
    done = []
    for row, array in enumerate(images.permute(0, 2, 3, 1).numpy()):
        array = array[:, ::-1] if flips[row] else array
        array = np.pad(array, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        top, left = 4 + downs[row], 4 + rights[row]
        image = Image.fromarray(np.ascontiguousarray(array[top : top + height, left : left + width]))
        for turn in range(2):
            if applied[row][turn]:
                image = pillow_operation(image, numbers[row][turn], levels[row][turn], signs[row][turn])
        array = np.array(image)
        top, left = ys[row] - side // 2, xs[row] - side // 2
        array[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 127
        done.append(torch.from_numpy(array).permute(2, 0, 1))
    return torch.stack(done).float() / 255


def pillow_operation(image: Image.Image, number: int, v: int, sign: int) -> Image.Image:
    """Operation `number` of RandAugment's table."""
    def affine(*coefficients: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, coefficients)

    factor = v * 1.8 / 10 + 0.1
    operations: list[Callable[[], Image.Image]] = [
        lambda: image,
        lambda: ImageOps.autocontrast(image),
        lambda: ImageOps.equalize(image),
        lambda: image.rotate(sign * 3 * v),
        lambda: ImageOps.solarize(image, 256 - int(25.6 * v)),
        lambda: ImageOps.posterize(image, 4 - int(0.4 * v)),
        lambda: ImageEnhance.Color(image).enhance(factor),
        lambda: ImageEnhance.Contrast(image).enhance(factor),
        lambda: ImageEnhance.Brightness(image).enhance(factor),
        lambda: ImageEnhance.Sharpness(image).enhance(factor),
        lambda: affine(1, sign * v * 0.3 / 10, 0, 0, 1, 0),
        lambda: affine(1, 0, 0, sign * v * 0.3 / 10, 1, 0),
        lambda: affine(1, 0, sign * (v * image.width // 32), 0, 1, 0),
        lambda: affine(1, 0, 0, 0, 1, sign * (v * image.height // 32)),
    ]
    return operations[number]()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=448)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()

    noise = torch.rand(options.rows, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    images = torch.nn.functional.interpolate(noise, options.size, mode="bilinear").byte()
    on_device = images.to(options.device)
    style = Style(height=options.size, width=options.size)

    def draw(step: int) -> Draw:
        return At(step, 1000).draw("benchmark", options.rows)

    def wait() -> None:
        if on_device.is_cuda:
            torch.cuda.synchronize()

    def seconds(view: Callable[[int], object], repeats: int) -> float:
        times = []
        for step in range(repeats + 2):  # the first two warm up
            start = time.perf_counter()
            view(step)
            wait()
            times.append(time.perf_counter() - start)
        return median(times[2:])

    off = (VIEWS["strong"](style)(images, draw(0)) - pillow_strong(images, draw(0))).abs() * 255
    print(f"strong differs from Pillow in {(off > 0.5).float().mean():.2%} of the values, "
          f"at most by {off.max():.0f} (see auto_contrast)")
    took = {}
    for name, factory in VIEWS.items():
        view = factory(style)
        took[name] = seconds(lambda step, view=view: view(on_device, draw(step)), options.repeats)
    took["pillow strong"] = seconds(lambda step: pillow_strong(images, draw(step)), 5)
    for name, spent in took.items():
        print(f"{name:14} {1000 * spent:8.2f} ms {options.rows / spent:12,.0f} images/s "
              f"{took['pillow strong'] / spent:8.1f} x Pillow's strong")


if __name__ == "__main__":
    main()
