"""VAT (Miyato et al. 2018, arXiv 1704.03976): the prediction stays under the worst small change."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.smoothness import divergence, unit
from ssl_lab.nets import Net, frozen_statistics
from ssl_lab.schedule import Scalar
from ssl_lab.views import Weak


class VAT(Method):
    """L = H(y, p(x)) + weight * (1/B) sum_b KL(p(u_b) || p(u_b + r_b)), p(u_b) without gradient

    with r_b = epsilon * g_b / |g_b|, g_b the gradient of KL(p(u_b) || p(u_b + xi * d)) by d at a random unit
    vector d: one power iteration towards the worst direction (more with `iterations`). BatchNorm normalizes
    each pass by its batch; only the labeled pass moves the running statistics, as in the authors' code.

    Args:
        epsilon, xi: L2 norms over a whole image *as the net sees it*, normalized by its mean and std (a 32 x 32 RGB
            image has a norm of about 55, one of 28 x 28 about 28); perturbed images may leave [0, 1]. 6 is
            CIFAR-10's of Oliver et al. 2018 (arXiv 1804.09170), who take 1 for SVHN, and weigh the term by 0.3. The
            paper's xi of 1e-6 is below the resolution of float32 pixels; a larger one gives the same direction. The
            search runs in float32 also under autocast, whose rounding would hide so small a step.
        iterations: of the power iteration.
        weight: of the second term.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.VAT(sl.net("tiny_4", classes=10, style=pool.style), epsilon=6.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> bool(loss.terms["consistency"] > 0)  # a divergence
    True
    """

    name = "vat"
    family = "consistency"
    paper = "Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised Learning"
    arxiv = "1704.03976"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak})

    def __init__(self, net: Net, epsilon: Scalar = 6.0, xi: float = 1e-2, iterations: int = 1,
                 weight: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.epsilon, self.xi, self.iterations = epsilon, xi, iterations
        self.weight = weight

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled = self.net(x["weak"]).logits
        with frozen_statistics(self.net):
            with full_precision(u["weak"].device):
                with torch.no_grad():
                    clean = self.net(u["weak"]).logits
                direction = self.worst_direction(u["weak"], clean, at)
            moved = self.net(u["weak"] + at.value(self.epsilon) * direction * self.net.std).logits
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "consistency": at.value(self.weight) * divergence(clean, moved),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "pseudo_label_accuracy": losses.accuracy(clean.argmax(dim=1), u.truth),
            },
        )

    def worst_direction(self, images: Tensor, clean: Tensor, at: At) -> Tensor:
        """Per image a unit vector, like images [B, ...], in the units of the normalized input; no gradient.

        Args:
            clean: logits [B, C] of the images, without gradient.
        """
        draw = at.draw("vat", len(images), images.device)
        direction = unit(draw.to_device(draw.normal(*images.shape[1:])).to(images.dtype))
        with torch.enable_grad():
            for _ in range(self.iterations):
                near = (images + self.xi * direction * self.net.std).requires_grad_()
                by_pixel, = torch.autograd.grad(divergence(clean, self.net(near).logits), near)
                direction = unit(by_pixel * self.net.std)
        return direction
