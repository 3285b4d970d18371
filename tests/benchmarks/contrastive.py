"""SimCLR's view and step beside what is usual: torchvision's transforms on Pillow images, fp32 and NCHW.

    python tests/benchmarks/contrastive.py
    python tests/benchmarks/contrastive.py --step tiny_48 --rows 256

Processor time of one thread, the least of 7 repeats in turn, so that other load on the machine counts little. On one
core of an AMD EPYC (Zen 4), which others shared:

    side  view us/image  torchvision us/image  ratio
      32             39                   444   11.3
      96            521                  1672    3.2
     224           3086                  8440    2.7

A step of SimCLR, 256 images of 32 px, on both cores, idle: tiny_5 4.0 times as fast as usual, tiny_16 3.6, tiny_48 2.6.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

import ssl_lab as sl
from ssl_lab.batch import At, Style
from ssl_lab.bench.measure import in_turn, seconds, waiting
from ssl_lab.bench.step import Step, random_pool
from ssl_lab.seeds import generator
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


class UsualStep:
    """SimCLR's step as it is usually written. Callable: each call is one step."""

    def __init__(self, net: sl.Net, pool: sl.Pool, rows: int) -> None:
        dim = net.features_dim
        self.net, self.head = net, nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 128))
        self.pool, self.rows, self.transform = pool, rows, pillow(pool.style.height)
        self.optimizer = torch.optim.SGD([*net.parameters(), *self.head.parameters()], lr=0.1, momentum=0.9)

    def __call__(self) -> float:
        drawn = torch.randint(len(self.pool.train), (self.rows,)).numpy()
        pictures = [Image.fromarray(array) for array in self.pool.images.take(drawn).permute(0, 2, 3, 1).numpy()]
        views = torch.cat([transformed(self.transform, pictures) for _ in range(2)])
        z = F.normalize(self.head(self.net(views).features), dim=1)
        alike = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
        loss = F.cross_entropy(alike, torch.arange(2 * self.rows).roll(self.rows))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def steps(name: str, rows: int, compile: bool) -> None:
    pool = random_pool(32, rows)
    runtime = sl.Runtime.start()
    new = partial(sl.net, name, style=pool.style)
    ours = Step(sl.methods.get("simclr")(new()), pool, 0, rows, runtime, "auto", compile)
    theirs = UsualStep(new(), pool, rows)
    for warm in (ours, theirs):
        warm()
    laps = in_turn({"ours": partial(seconds, ours, waiting(runtime.device)), "theirs": partial(seconds, theirs)}, 5)
    fast, slow = (statistics.median(times) for times in laps.values())
    print(f"SimCLR, {name}{', compiled' * compile}, {rows} images of 32 px, {torch.get_num_threads()} threads: "
          f"{rows / fast:.0f} images/s, as usual {rows / slow:.0f}: {slow / fast:.1f} times as fast; of our step views "
          f"take {ours.clock.seconds['views'] / fast:.0%}")


def views() -> None:
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", metavar="NET")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    steps(options.step, options.rows, options.compile) if options.step else views()
