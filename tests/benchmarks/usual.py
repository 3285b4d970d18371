"""FixMatch's and SimCLR's steps as they are usually written for a GPU: what `gpu.py` compares with.

Images are augmented one by one by Pillow in the workers of a DataLoader, or as one batch by torchvision's v2 transforms
on the device, where a batch draws once. Autocast and channels_last are as in ours, and the optimizer is fused; the
average moves parameter by parameter, and the loss is read back in each step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from contrastive import pillow
from PIL import Image
from reference import RandAugment
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.transforms import v2

from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.nets import Net

Transform = Callable[[Any], Any]


class Augmented(Dataset[tuple[Tensor, ...]]):
    """Some rows of a pool, each under several transforms of a Pillow image, and its label."""

    def __init__(self, pool: Pool, rows: IntArray, views: list[Transform]) -> None:
        self.pool, self.rows, self.views = pool, rows, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        row = self.rows[number : number + 1]
        image = Image.fromarray(self.pool.images.take(row)[0].permute(1, 2, 0).numpy())
        return *(view(image) for view in self.views), torch.tensor(int(self.pool.truth[row[0]]))


def by_workers(pool: Pool, rows: IntArray, views: list[Transform], batch: int, workers: int) -> Iterator[list[Tensor]]:
    """Endless batches of the views, and the labels, pinned where there is a GPU."""
    data = Augmented(pool, rows, views)
    sampler = RandomSampler(data, replacement=True, num_samples=10**9)
    loader = DataLoader(data, batch, sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available(),
                        persistent_workers=workers > 0)
    return iter(loader)


def on_device(pool: Pool, rows: IntArray, views: list[Transform], batch: int,
              device: torch.device) -> Iterator[list[Tensor]]:
    """The same, of v2 transforms of whole batches."""
    while True:
        chosen = rows[np.random.randint(len(rows), size=batch)]
        images = pool.images.take(chosen).to(device)
        yield [*(view(images) for view in views), torch.from_numpy(pool.truth[chosen])]


def weak_and_strong(size: int, whole_batches: bool) -> tuple[Transform, Transform]:
    """FixMatch's views."""
    if whole_batches:
        crop = [v2.RandomHorizontalFlip(), v2.RandomCrop(size, size // 8, padding_mode="reflect")]
        end = [v2.ToDtype(torch.float32, scale=True)]
        return v2.Compose([*crop, *end]), v2.Compose([*crop, v2.RandAugment(2), *end, v2.RandomErasing(1.0)])
    both = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(size, size // 8, padding_mode="reflect")]
    return (transforms.Compose([*both, transforms.ToTensor()]),
            transforms.Compose([*both, RandAugment(np.random.default_rng()), transforms.ToTensor()]))


class FixMatchStep:
    """Callable: each call is one step."""

    def __init__(self, net: Net, pool: Pool, labeled: int, unlabeled: int, runtime: Runtime,
                 workers: int | None) -> None:
        """workers: of the loaders; None: views of whole batches on the device."""
        weak, strong = weak_and_strong(pool.style.height, workers is None)
        self.streams = [
            on_device(pool, rows, views, batch, runtime.device) if workers is None else
            by_workers(pool, rows, views, batch, workers)
            for rows, views, batch in ((pool.labeled, [weak], labeled), (pool.unlabeled, [weak, strong], unlabeled))]
        self.learner = Learner(net, [*net.parameters()], runtime)
        self.average = copy.deepcopy(net).requires_grad_(False)

    def __call__(self) -> float:
        move = self.learner.move
        (x, y), (weak, strong, _) = (map(move, next(stream)) for stream in self.streams)
        sizes = [len(x), len(weak), len(strong)]

        def loss() -> Tensor:
            labeled, weak_logits, logits = self.learner.net(torch.cat([x, weak, strong])).logits.float().split(sizes)
            confidence, pseudo = weak_logits.detach().softmax(dim=1).max(dim=1)
            unsupervised = F.cross_entropy(logits, pseudo, reduction="none") * (confidence >= 0.95)
            return F.cross_entropy(labeled, y) + unsupervised.mean()

        found = self.learner.step(loss)
        with torch.no_grad():
            for mine, other in zip(self.average.parameters(), self.learner.net.parameters(), strict=True):
                mine.lerp_(other, 0.001)
        return found


class SimCLRStep:
    """Callable: each call is one step, with the loss and the transforms as in lightly's example."""

    def __init__(self, net: Net, pool: Pool, rows: int, runtime: Runtime, workers: int) -> None:
        view = pillow(pool.style.height)
        self.stream, dim = by_workers(pool, pool.train, [view, view], rows, workers), net.features_dim
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 128)).to(runtime.device)
        self.learner = Learner(net, [*net.parameters(), *self.head.parameters()], runtime)

    def __call__(self) -> float:
        first, second, _ = map(self.learner.move, next(self.stream))

        def loss() -> Tensor:
            z = F.normalize(self.head(self.learner.net(torch.cat([first, second])).features).float(), dim=1)
            alike = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
            return F.cross_entropy(alike, torch.arange(len(z), device=z.device).roll(len(first)))

        return self.learner.step(loss)


class Learner:
    """A net on its device, and its optimizer."""

    def __init__(self, net: Net, parameters: list[nn.Parameter], runtime: Runtime) -> None:
        self.net = net.to(runtime.device, memory_format=torch.channels_last).train()
        self.runtime = runtime
        self.optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4,
                                         fused=runtime.device.type == "cuda")

    def move(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.runtime.device, non_blocking=True)
        return moved.to(memory_format=torch.channels_last) if moved.ndim == 4 else moved

    def step(self, loss: Callable[[], Tensor]) -> float:
        with self.runtime.autocast():
            total = loss()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return total.item()
