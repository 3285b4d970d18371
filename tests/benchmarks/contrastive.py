"""SimCLR's view beside torchvision's transforms on Pillow images, per image and core.

    python tests/benchmarks/contrastive.py

Processor time of one thread, the least of 7 repeats in turn, so that other load on the machine counts little. On one
core of an AMD EPYC (Zen 4), which others shared:

    side  view us/image  torchvision us/image  ratio
      32             39                   444   11.3
      96            521                  1672    3.2
     224           3086                  8440    2.7
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torchvision import transforms

from ssl_lab.batch import At, Style, generator
from ssl_lab.bench.measure import in_turn
from ssl_lab.views import SimCLRView, View


def pillow(side: int) -> transforms.Compose:
    """The same augmentation, as it is usually written."""
    area, strength = (0.2, 0.5) if side <= 32 else (0.08, 1.0)
    jitter = transforms.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    steps = [transforms.RandomResizedCrop(side, (area, 1.0)), transforms.RandomHorizontalFlip(),
             transforms.RandomApply([jitter], 0.8), transforms.RandomGrayscale(0.2)]
    if side > 32:
        steps.append(transforms.RandomApply([transforms.GaussianBlur(2 * (side // 20) + 1, (0.1, 2.0))], 0.5))
    return transforms.Compose([*steps, transforms.ToTensor()])


def processor_time(action: Callable[..., object], *arguments: object) -> float:
    begun = time.process_time()
    action(*arguments)
    return time.process_time() - begun


def viewed(view: View, images: torch.Tensor) -> torch.Tensor:
    return view(images, At(0, 1).draw("bench", len(images)))


def transformed(transform: transforms.Compose, pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([transform(picture) for picture in pictures])


def main() -> None:
    torch.set_num_threads(1)
    print("side  view us/image  torchvision us/image  ratio")
    for side, rows in ((32, 448), (96, 64), (224, 16)):
        noise = torch.rand(rows, 3, 8, 8, generator=generator("bench")) * 255
        images = torch.nn.functional.interpolate(noise, side, mode="bilinear").byte()
        view, transform = SimCLRView(Style(height=side, width=side)), pillow(side)
        pictures = [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).numpy()]
        laps = in_turn({"ours": partial(processor_time, viewed, view, images),
                        "theirs": partial(processor_time, transformed, transform, pictures)}, 7)
        ours, theirs = (1e6 * min(times) / rows for times in laps.values())
        print(f"{side:4}  {ours:13.0f}  {theirs:20.0f}  {theirs / ours:5.1f}")


if __name__ == "__main__":
    main()
