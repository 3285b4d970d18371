"""FixMatch's step as it is usually written: what `ssl-lab bench step --reference` compares with.

Pillow augments image by image; labeled, weak and strong rows pass the net together in fp32 and NCHW, all of them in
the graph; the average is moved parameter by parameter; four numbers are read back to the host in each step.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from ssl_lab.bench.views import pillow_operation, square
from ssl_lab.data import Pool
from ssl_lab.nets import Net
from ssl_lab.seeds import generator


class RandAugment:
    """Two operations, each in half of the images, then a gray square of half the side."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.draw = draw

    def __call__(self, image: Image.Image) -> Image.Image:
        for number in self.draw.integers(0, 14, 2):
            if self.draw.random() < 0.5:
                level, sign = int(self.draw.integers(1, 10)), int(self.draw.choice((-1, 1)))
                image = pillow_operation(image, int(number), level, sign)
        return square(image, *map(int, self.draw.integers(0, image.size)))


class Reference:
    """Callable: each call is one step. net: it learns from scratch; it is moved to the device."""

    def __init__(self, net: Net, pool: Pool, labeled: int, unlabeled: int, device: torch.device) -> None:
        self.net, self.device = net.to(device).train(), device
        self.average = copy.deepcopy(net).requires_grad_(False)
        size = pool.style.height
        crop = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(size, size // 8, padding_mode="reflect")]
        self.weak = transforms.Compose([*crop, transforms.ToTensor()])
        self.strong = transforms.Compose([*crop, RandAugment(np.random.default_rng(0)), transforms.ToTensor()])
        self.pool, self.sizes, self.generator = pool, (labeled, unlabeled), generator("reference")
        decayed = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 5e-4}, {"params": others}],
                                         lr=0.03, momentum=0.9, nesterov=True)

    def __call__(self) -> dict[str, float]:
        x, y = self.images(self.pool.labeled, self.sizes[0])
        u, _ = self.images(self.pool.unlabeled, self.sizes[1])
        views = [torch.stack([view(image) for image in images])
                 for view, images in ((self.weak, x), (self.weak, u), (self.strong, u))]
        targets = torch.from_numpy(y).to(self.device)
        logits = self.net(torch.cat(views).to(self.device)).logits
        labeled, weak, strong = logits.split([len(view) for view in views])
        confidence, pseudo = weak.detach().softmax(dim=1).max(dim=1)
        mask = (confidence >= 0.95).float()
        supervised = F.cross_entropy(labeled, targets)
        unsupervised = (F.cross_entropy(strong, pseudo, reduction="none") * mask).mean()
        loss = supervised + unsupervised
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mine, other in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mine.copy_(0.999 * mine + 0.001 * other)
            for mine, other in zip(self.average.buffers(), self.net.buffers(), strict=True):
                mine.copy_(other)
        return {"loss": loss.item(), "labeled": supervised.item(), "unlabeled": unsupervised.item(),
                "mask": mask.mean().item()}

    def images(self, among: np.ndarray, count: int) -> tuple[list[Image.Image], np.ndarray]:
        """Images and labels of `count` random rows."""
        rows = among[torch.randint(len(among), (count,), generator=self.generator).numpy()]
        arrays = self.pool.images.take(rows).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array) for array in arrays], self.pool.truth[rows]
