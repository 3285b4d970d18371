"""Views of other libraries under our contract: any pipeline of Kornia, and torchvision's v2 transforms.

    sl.views.kornia(K.RandomResizedCrop((32, 32)), K.RandomHorizontalFlip(), K.RandomGrayscale())
    sl.views.torchvision(v2.TrivialAugmentWide())       # image by image, so it is slow

Both give what a method declares: a callable from a `Style`. What they draw is drawn for the global batch, from the
step's own seed, and each rank takes its rows: so they are as reproducible, and as independent of the number of ranks,
as the views that are written here. Where images must not be mirrored (`Style.flip`, --flip off), no flip is left in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.batch import Draw, Style
from ssl_lab.errors import UsageError
from ssl_lab.notes import once
from ssl_lab.seeds import generator
from ssl_lab.views.base import ViewFactory, check_images, to_unit

FLIP = "RandomHorizontalFlip"  # the name of it in both libraries
LEFT_OUT = f"note: {FLIP} is left out of views, as mirrored images may be of another class here; --flip on keeps it"
_NOT_BY_ROW = {"order", "forward_input_shape"}  # parameters without a row for each image
_ALIKE = {"Resize", "CenterCrop", "PadTo", "LongestMaxSize", "SmallestMaxSize"}  # nothing of theirs is random
_NO_PIPELINES = {"PatchSequential", "VideoSequential"}  # which are sequences of modules all the same
_OF_COLORS = {"ColorJitter", "ColorJiggle", "RandomGrayscale", "RandomHue", "RandomSaturation"}  # of three channels


def kornia(*augmentations: Any) -> ViewFactory:
    """A view of modules of `kornia.augmentation`, one after another; a list or an `nn.Sequential` of them will do too.

    Each image draws for itself, on the host; pixels are computed on the device of the batch, in [0, 1], and nothing is
    read back. `RandomResizedCrop` resamples, whatever its cropping_mode, because slices are cut image by image. The
    order of `ColorJitter`'s four changes is one for the batch, as Kornia has it; their strengths are each image's own.
    What changes colors takes gray images as three equal channels.

    Args:
        augmentations: modules, in their order.

    Raises:
        UsageError: for what decides once for a batch (kornia.augmentation.auto, random_apply, same_on_batch), what
            mixes images or wants labels, and a pipeline that cannot take the images of a style or gives them another
            size.

    >>> import kornia.augmentation as K
    >>> affine = sl.views.kornia(K.RandomAffine(15, (0.1, 0.1)), K.RandomErasing(p=0.5))
    >>> images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    >>> affine(sl.Style())(images, sl.At(0, 1).draw("affine", rows=4)).shape
    torch.Size([4, 3, 32, 32])
    """
    modules = list(_flat(augmentations))
    if not modules:
        raise UsageError("kornia() was given no augmentation; give modules of kornia.augmentation")
    checked = tuple(_checked(module) for module in modules)
    return partial(Kornia, modules=checked)


@dataclass(frozen=True)
class Kornia:
    """See `kornia`. modules: without those that mirror images left-right where the style forbids it."""

    style: Style
    modules: tuple[Any, ...]  # of Kornia, which has types of its own

    def __post_init__(self) -> None:
        if self.mirrors and not self.style.flip:
            once(LEFT_OUT)
            object.__setattr__(self, "modules", tuple(each for each in self.modules if type(each).__name__ != FLIP))
        _try(self)

    def __repr__(self) -> str:
        return f"kornia({', '.join(type(module).__name__ for module in self.modules)})"

    @property
    def mirrors(self) -> bool:
        return any(type(module).__name__ == FLIP for module in self.modules)

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        pixels = to_unit(images)
        if not len(images):
            return pixels
        shape = torch.Size((draw.total, *images.shape[1:]))
        drawn = draw.by_global_generator(lambda: [module.forward_parameters(shape) for module in self.modules])
        for module, parameters in zip(self.modules, drawn, strict=True):
            own = {name: _rows(name, value, draw) for name, value in parameters.items()}
            own["forward_input_shape"] = torch.tensor(images.shape)
            if pixels.shape[1] == 1 and type(module).__name__ in _OF_COLORS:
                pixels = module(pixels.expand(-1, 3, -1, -1), params=own)[:, :1]
            else:
                pixels = module(pixels, params=own)
        return pixels.clamp(0, 1).contiguous()


@lru_cache(maxsize=64)
def _try(view: Kornia) -> None:
    """UsageError for what takes no images of the style or does not keep the contract; once for the same modules."""
    shape = (4, view.style.channels, view.style.height, view.style.width)
    images = torch.randint(0, 256, shape, generator=generator("kornia"), dtype=torch.uint8)
    try:
        found, again, half = (view(images[rows], Draw(("kornia", "tried"), 4, rows, torch.device("cpu")))
                              for rows in (slice(0, 4), slice(0, 4), slice(2, 4)))
    except Exception as error:  # modules raise anything for images that they do not take
        raise UsageError(f"{view!r} cannot take images of {shape[1]} channels and {shape[2]} x {shape[3]} pixels: "
                         f"{' '.join(str(error).split())[:200]}") from error
    if found.shape != images.shape:
        raise UsageError(f"{view!r} makes images of {list(found.shape[1:])} out of {list(shape[1:])}; give its "
                         "crops and resizes the size of the images")
    if not (torch.equal(found, again) and torch.equal(found[2:], half)):
        raise UsageError(f"{view!r} draws random numbers while it computes pixels, or makes one decision for the "
                         "whole batch: two ranks would see other images than one, and a resumed run others again. "
                         "Leave out the augmentation that does")


def _rows(name: str, value: Any, draw: Draw) -> Any:
    """This rank's rows of a parameter."""
    by_row = isinstance(value, Tensor) and name not in _NOT_BY_ROW and value.ndim and len(value) == draw.total
    return draw.rows_of(value) if by_row else value


def _flat(given: Iterable[Any]) -> Iterable[Any]:
    for each in given:
        if isinstance(each, nn.Sequential | nn.ModuleList | list | tuple):
            if type(each).__module__.startswith("kornia.augmentation.auto"):
                raise UsageError(f"Kornia's {type(each).__name__} draws its operations once for the whole batch; take "
                                 "the view strong or strong_kornia, which draw them for each image, or list "
                                 "augmentations with a p of their own")
            if getattr(each, "random_apply", False):
                raise UsageError(f"{type(each).__name__} with random_apply draws which augmentations to apply once for "
                                 "the whole batch; give each its own p")
            if type(each).__name__ in _NO_PIPELINES:
                raise UsageError(f"{type(each).__name__} augments parts of an image by themselves, or images together; "
                                 "list augmentations of whole images")
            yield from _flat(each)
        else:
            yield each


def _checked(module: Any) -> Any:
    """The module, or a copy whose crops resample. UsageError for what cannot keep the contract."""
    from kornia.augmentation import AugmentationBase2D

    name = type(module).__name__
    if not isinstance(module, AugmentationBase2D):
        raise UsageError(f"{name} is no augmentation of images of kornia.augmentation, or one that mixes images; "
                         "expected such as RandomAffine or ColorJitter")
    if name in ("Normalize", "Denormalize"):
        raise UsageError(f"{name} takes pixels out of [0, 1]; leave it out, nets normalize their images themselves")
    if getattr(module, "same_on_batch", False) and name not in _ALIKE:
        raise UsageError(f"{name}(same_on_batch=True) decides once for the whole batch; leave that out")
    if getattr(module, "flags", {}).get("cropping_mode") == "slice":
        module = copy.deepcopy(module)
        module.flags["cropping_mode"] = "resample"
        module._compute_matrix_lazily = False  # only slices do without
    return module


def torchvision(transform: Callable[[Tensor], Tensor]) -> ViewFactory:
    """A view of a torchvision v2 transform (or any function) of one image, uint8 [C, H, W] to uint8 or float in [0, 1].

    Image by image, each with a seed of its own, on the host, to which pixels of a GPU are read back: slow, and not for
    long runs.

    Raises:
        UsageError: where it changes the shape of images.

    >>> from torchvision.transforms import v2
    >>> invert = sl.views.torchvision(v2.RandomInvert(p=1.0))
    >>> invert(sl.Style(1, 2, 2))(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), sl.At(0, 1).draw("invert", rows=1))
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    return partial(Torchvision, transform=transform)


@dataclass(frozen=True)
class Torchvision:
    """See `torchvision`."""

    style: Style
    transform: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not self.style.flip and self._flips():
            once(LEFT_OUT)
            object.__setattr__(self, "transform", copy.deepcopy(self.transform))
            for flip in self._flips():
                flip.p = 0.0

    def __repr__(self) -> str:
        return f"torchvision({', '.join(type(each).__name__ for each in _parts(self.transform))})"

    @property
    def mirrors(self) -> bool | None:
        """None where it is a function, of which nobody knows."""
        if self._flips():
            return self.style.flip
        known = all(type(each).__module__.startswith("torchvision.") for each in _parts(self.transform))
        return False if known else None

    def _flips(self) -> list[Any]:
        return [each for each in _parts(self.transform) if type(each).__name__ == FLIP]

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        if images.device.type == "meta":  # of no values: there is nothing to transform
            return torch.empty(images.shape, dtype=torch.float32, device="meta")
        seeds = draw.integers(0, 2**31 - 1)
        on_host = images.cpu()
        views = [self._one(image, int(seed)) for image, seed in zip(on_host, seeds, strict=True)]
        return torch.stack(views).to(images.device) if views else to_unit(images)

    def _one(self, image: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            view = self.transform(image.clone())
        if view.shape != image.shape:
            raise UsageError(f"the transform makes images of {list(view.shape)} out of {list(image.shape)}; give its "
                             "crops and resizes the size of the images")
        return to_unit(view) if view.dtype == torch.uint8 else view.float().clamp(0, 1)


def _parts(transform: Any) -> Iterable[Any]:
    """The transforms within a transform of torchvision, or itself."""
    inner = getattr(transform, "transforms", None)
    if inner is None:
        yield transform
    else:
        for each in inner:
            yield from _parts(each)
