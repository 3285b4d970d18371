"""MAE (He et al. 2021, arXiv 2111.06377): paint the three quarters of an image that a transformer did not see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator, seeded
from ssl_lab.views import crop

EXAMPLE = "timm/vit_tiny_patch16_224"


class MAE(Pretraining):
    """L = mean over images and their masked patches m of ||decoder(encoder(visible patches))_m - x_m||^2 / values

    with x_m the pixels of a patch, less their mean and divided by their standard deviation. The encoder is the net's
    backbone, a VisionTransformer of timm, and sees the tokens of the visible patches only, in each image others. The
    decoder, a narrow transformer, sees what the encoder made of these and, for each masked patch, one learned token;
    all have fixed sine-cosine positions. Order means nothing to it, so that tokens stay in the order of the mask.

    The view is cropped and flipped. The backbone keeps the position embedding that it has, which learns in most of
    timm's models; the authors' are fixed.

    Args:
        masked: share of the patches.
        width, depth, heads: of the decoder.
        seed: of the decoder.

    >>> pool = sl.load("digits")
    >>> small = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
    >>> net = sl.net("timm/vit_tiny_patch16_224", classes=10, style=pool.style, **small)
    >>> method = sl.MAE(net, width=16, depth=1, heads=2)
    >>> batch = sl.Feed(pool, method.views, labeled=0, unlabeled=4, seed=0)(sl.At(0, 100))
    >>> list(method(batch, sl.At(0, 100)).terms)
    ['painting']
    """

    name = "mae"
    paper = "Masked Autoencoders Are Scalable Vision Learners"
    arxiv = "2111.06377"
    views = Views(unlabeled={"crop": crop})
    positions: Tensor

    def __init__(self, net: Net, masked: float = 0.75, width: int = 512, depth: int = 8, heads: int = 16,
                 ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        embedding = _checked(net).patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        count: int = embedding.num_patches
        self.visible = count - round(masked * count)
        if not 0 < self.visible < count:
            raise UsageError(f"masked={masked} leaves {self.visible} of {count} patches visible; expected some of "
                             "each. Give another share, larger images or smaller patches, e.g. patch_size=4")
        if width % 4 or width % heads:
            raise UsageError(f"a decoder of width {width}, {heads} heads: expected a multiple of 4 and of the heads")
        from timm.layers import build_sincos2d_pos_embed
        from timm.models.vision_transformer import Block

        values = len(net.mean) * self.patch[0] * self.patch[1]
        self.register_buffer("positions", build_sincos2d_pos_embed(embedding.grid_size, width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(width, generator=generator(seed, "mask token")))
        with seeded(seed, "decoder"):
            self.embedding = nn.Linear(net.features_dim, width)
            self.decoder = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)),
                                         nn.LayerNorm(width), nn.Linear(width, values))
            for layer in (self.embedding, *self.decoder.modules()):
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch, at: At) -> Loss:
        images = (batch.unlabeled["crop"] - self.net.mean) / self.net.std
        draw = at.draw("mask", len(images), images.device)
        order = draw.to_device(draw.uniform(len(self.positions)).argsort(dim=1))
        visible, masked = order[:, : self.visible], order[:, self.visible :]
        painted = self.decode(self.encode(images, visible), order)
        with full_precision(images.device):
            target = normalized(pick(patches(images, self.patch), masked))
            painting = losses.squared_error(painted.to(target.dtype), target)
        return Loss({"painting": painting})

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """[B, prefix + V, D]: the backbone's tokens of the visible patches, int64 [B, V], after its class token if any.

        Args:
            images: float [B, C, H, W], normalized as the net does it.
        """
        backbone: Any = self.net.backbone
        tokens = backbone._pos_embed(backbone.patch_embed(images))
        prefix, tokens = tokens.tensor_split([backbone.num_prefix_tokens], dim=1)
        tokens = backbone.blocks(backbone.norm_pre(torch.cat([prefix, pick(tokens, visible)], dim=1)))
        encoded: Tensor = backbone.fc_norm(backbone.norm(tokens))  # one of the two does nothing
        return encoded

    def decode(self, encoded: Tensor, order: Tensor) -> Tensor:
        """[B, M, values]: pixels of the masked patches.

        Args:
            order: int64 [B, V + M], the visible and the masked ones.
        """
        tokens = self.embedding(encoded)
        hidden = self.mask_token.to(tokens.dtype).expand(len(order), order.shape[1] - self.visible, -1)
        tokens = torch.cat([tokens, hidden], dim=1)
        prefix = tokens.shape[1] - order.shape[1]
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:] + self.positions[order]], dim=1)
        painted: Tensor = self.decoder[-1](self.decoder[:-1](tokens)[:, prefix + self.visible :])
        return painted


def patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """float [B, L, C * height * width]: the pixels of each patch, line by line. images: float [B, C, H, W]."""
    height, width = size
    return images.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def pick(tokens: Tensor, places: Tensor) -> Tensor:
    """[B, V, D]: of each row of tokens, [B, L, D], those at its places, int64 [B, V]."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


def normalized(pixels: Tensor) -> Tensor:
    """Each patch of pixels, float [..., values], with mean 0 and (unbiased) variance 1."""
    return (pixels - pixels.mean(dim=-1, keepdim=True)) / (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def _checked(net: Net) -> Any:
    """The net's backbone. UsageError unless it is a transformer that embeds each patch by itself and can all learn."""
    from timm.layers import PatchEmbed
    from timm.models import VisionTransformer  # the import of timm takes seconds

    backbone: Any = net.backbone
    if not isinstance(backbone, VisionTransformer) or not isinstance(backbone.patch_embed, PatchEmbed):
        raise UsageError(f"MAE needs a VisionTransformer of timm, which {net.name} is not; try {EXAMPLE}")
    if backbone.attn_pool is not None:
        raise UsageError(f"{net.name} pools by attention, which MAE would not train; try {EXAMPLE}")
    return backbone
