"""Teachers: frozen nets, ensembles of them, and logits that were computed before."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ssl_lab.at_hand import PRETRAINED
from ssl_lab.batch import Style
from ssl_lab.class_names import Names, order_of, shown
from ssl_lab.data.reading import AS_BYTES, Reading
from ssl_lab.data.values import BYTES_AND_UNIT, KINDS
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation.hooks import Seen, see
from ssl_lab.nets import Net, net
from ssl_lab.nets.start import learned_classes, net_of_run
from ssl_lab.nets.stored import Weights, read_weights
from ssl_lab.nets.weights import in_order, whole_net
from ssl_lab.notes import once

_log = logging.getLogger(__name__)


class Teacher(nn.Module):
    """A frozen net, or several whose mean probabilities teach: their logits are log((1/K) sum_k softmax(z_k)).

    It is always in eval mode, has no gradient, and is part of no state_dict, so of no checkpoint. As a submodule of
    the method it moves with it, and is compiled with it. The nets are frozen in place.

    Args:
        nets: one or more, of the same classes; they learn no more.
        image_size: side, or height and width, to which images are resized on their device.
        classifies: whether the logits mean something; not so of a backbone with a fresh head.

    >>> style = sl.load("digits").style
    >>> one, two = (sl.net("tiny_4", classes=10, style=style, seed=seed) for seed in (0, 1))
    >>> images, teacher = torch.rand(2, 1, 8, 8), sl.methods.Teacher(one, two)
    >>> mean = (one(images).logits.softmax(dim=1) + two(images).logits.softmax(dim=1)) / 2
    >>> torch.allclose(teacher(images, torch.arange(2)).logits.softmax(dim=1), mean, atol=1e-5)
    True
    """

    fixed: ClassVar[bool] = False  # whether it answers for the images as they are, whatever the view

    def __init__(self, *nets: Net, image_size: int | tuple[int, int] | None = None, classifies: bool = True) -> None:
        super().__init__()
        if len({each.classes for each in nets}) > 1:
            raise UsageError(f"an ensemble of nets for {', '.join(str(each.classes) for each in nets)} classes: "
                             "expected the same number")
        names = next((each.class_names for each in nets if each.class_names), None)
        ordered = [in_order(each, names, f"{each.name}, of an ensemble of teachers,") for each in nets]
        self.nets = nn.ModuleList(ordered).requires_grad_(False).eval()
        self.image_size, self.classifies = image_size, classifies

    @property
    def classes(self) -> int:
        return self.members[0].classes

    @property
    def class_names(self) -> Names | None:
        """What the logits stand for; None where nobody said."""
        return next((each.class_names for each in self.members if each.class_names), None)

    def bring_into_order(self, names: Names) -> None:
        """From now on the logits stand for these classes, in this order. UsageError where it tells others apart."""
        self.nets = nn.ModuleList([in_order(each, names, f"the teacher {each.name}") for each in self.members])

    @property
    def net(self) -> Net:
        """The one net, for methods that look inside."""
        (net,) = self.members
        return net

    @property
    def members(self) -> list[Net]:
        """The nets, in order."""
        return cast(list[Net], list(self.nets))

    @torch.no_grad()  # not inference_mode, whose tensors autograd refuses to keep for the student's backward pass
    def forward(self, images: Tensor, indices: Tensor, layers: Sequence[str] = ()) -> Seen:
        """images: float [B, C, H, W] in [0, 1]. indices: int64 [B], global. layers: of the one net's backbone."""
        images = self.resized(images)
        if len(self.nets) == 1:
            return see(self.net, images, layers)
        logits = torch.stack([see(each, images).logits.log_softmax(dim=1) for each in self.members])
        return Seen(logits.logsumexp(dim=0) - math.log(len(logits)), images.new_empty(len(images), 0))

    def resized(self, images: Tensor) -> Tensor:
        """The images at the size that the nets take."""
        if self.image_size is None:
            return images
        size = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return images if size == tuple(images.shape[2:]) else F.interpolate(images, size, mode="bilinear",
                                                                            antialias=True)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Nothing: it is not part of what is learned."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.update(super().state_dict(prefix=prefix))  # what it has, so that nothing is missing
        super()._load_from_state_dict(state_dict, prefix, *args)


class StoredLogits(Teacher):
    """Logits that were computed before, of the images as they are: only for methods whose view is Eval.

    Args:
        logits: float [N, C], a row for each image of the pool.
        class_names: of the C classes, where they are known.

    >>> said = torch.full((5, 10), torch.nan)  # of five images
    >>> said[3] = torch.zeros(10)
    >>> stored = sl.methods.StoredLogits(said, None)
    >>> int(stored.logits.isfinite().all(dim=1).sum())
    1
    """

    fixed = True
    logits: Tensor

    def __init__(self, logits: Tensor, class_names: Names | None = None) -> None:
        super().__init__()
        self._names = class_names
        if logits.ndim != 2 or not logits.is_floating_point():
            raise UsageError(f"stored logits are {logits.dtype} of shape {list(logits.shape)}; expected floats [N, C]")
        self.register_buffer("logits", logits)

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @property
    def class_names(self) -> Names | None:
        return self._names

    def bring_into_order(self, names: Names) -> None:
        if self._names not in (None, names):
            self.logits = self.logits[:, order_of(self._names, names, "the teacher whose logits are stored")]
            self._names = names

    def forward(self, images: Tensor, indices: Tensor, layers: Sequence[str] = ()) -> Seen:
        return Seen(self.logits[indices], images.new_empty(len(images), 0))


def load_teacher(source: str | Path, classes: int | Sequence[str], style: Style, name: str = "",
                 image_size: int | None = None, images: int | None = None, reading: Reading = AS_BYTES) -> Teacher:
    """The teacher that `source` names, for images of this style; several with commas between them are an ensemble.

    Args:
        source: the folder of a run (which names the net and its image size, and whose model.safetensors has the
            weights); a file of weights, of the net `name`; a file with the one tensor `logits` (and class_names, in the
            metadata of safetensors as JSON, or beside it in a dict), for a pool of so many `images`; or timm/<model>
            with its published weights, or lite0 and the like, whose features can teach but not its fresh head. Of a run
            that learned no classes, such as pretraining, only features can teach.
        classes: their names, or how many; where there are none, features alone teach. What the teacher says is brought
            into their order; the log says so, or that the teacher's names are unknown.
        style: of the images.
        name: of the net, where `source` is a file of weights.
        image_size: side that the teacher takes, where it is not that of the style.
        images: how many the pool has, where `source` holds logits.
        reading: how the images of this style were read; where a run knows that its own were read otherwise, a line says
            so.

    Raises:
        UsageError: for a teacher of other classes.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    >>> run = sl.Trainer(steps=2, out="run", device="cpu", callbacks=[]).fit(method, pool, labeled=4, unlabeled=0)
    >>> teacher = sl.methods.load_teacher("run", classes=pool.class_names, style=pool.style)
    >>> teacher.classes, teacher.image_size
    (10, None)
    """
    if "," in str(source) and not Path(source).exists():
        several = [load_teacher(part, classes, style, name, image_size, images, reading)
                   for part in str(source).split(",")]
        if any(each.fixed for each in several) or len({each.image_size for each in several}) > 1:
            raise UsageError(f"the teachers {source} are no ensemble: expected nets that take images of the same size")
        return Teacher(*(each.net for each in several), image_size=several[0].image_size,
                       classifies=all(each.classifies for each in several))
    if known := PRETRAINED.get(str(source)):
        side = image_size or known.size
        return Teacher(net(known.name, classes or 1, _resized(style, side)), image_size=side, classifies=False)
    if str(source).startswith("timm/"):
        return Teacher(net(str(source), classes or 1, _resized(style, image_size), pretrained=True),
                       image_size=image_size, classifies=False)
    source = Path(source)
    if source.is_dir():
        config = _config(source)
        name, image_size = name or net_of_run(source) or "", image_size or config.get("image_size")
        source = source / "model.safetensors"
    state = read_weights(source)
    size = image_size or _as_trained(source.parent, style, reading)
    names = None if isinstance(classes, int) else tuple(classes) or None
    count = classes if isinstance(classes, int) else len(classes)
    if list(state) == ["logits"]:
        return _stored(state, source, names, images)
    if not name:
        raise UsageError(f"which net are the weights {source} of? Name it (--teacher-net NAME)")
    whole = whole_net(state)
    classifies = count > 0 and whole is not None and whole.class_names != () and learned_classes(source.parent)
    if whole is not None and classifies:
        if names is not None and whole.class_names is not None:
            order_of(whole.class_names, names, f"the teacher {source}")
        if len(whole["head.weight"]) != count:
            raise UsageError(f"the teacher {source} tells {len(whole['head.weight'])} classes apart, the data have "
                             f"{count}")
    return Teacher(net(name, classes or 1, _resized(style, size), weights=source), image_size=size,
                   classifies=classifies)


def read_logits(file: str | Path, names: Names | None, images: int | None) -> StoredLogits:
    """The logits that a file holds, see `load_teacher`, in the order of the classes `names` where these are known.
    UsageError for another file, and for logits of other classes or of another number of images than `images`."""
    state = read_weights(file)
    if list(state) != ["logits"]:
        raise UsageError(f"{file} holds {len(state)} tensors; expected the one tensor `logits`, a row for each image")
    return _stored(state, Path(file), names, images)


def _stored(state: Weights, source: Path, names: Names | None, images: int | None) -> StoredLogits:
    if images is not None and len(state["logits"]) != images:
        raise UsageError(f"{source} has logits of {len(state['logits'])} images; the pool has {images}")
    stored = StoredLogits(state["logits"].float(), state.class_names)
    if names is not None:
        if state.class_names is None:
            _log.warning("%s does not name the classes of its logits; they are taken for %s, in this order", source,
                         shown(names))
        stored.bring_into_order(names)
    return stored


def _resized(style: Style, image_size: int | tuple[int, int] | None) -> Style:
    if image_size is None:
        return style
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    return replace(style, height=height, width=width)


def _as_trained(run: Path, style: Style, reading: Reading) -> tuple[int, int] | None:
    """Height and width of the images that a run was trained on, if they are not those of `style`. Where they were read
    otherwise than `reading` says, which no teacher can make good, a line tells it, and the flags that do.

    Of a folder that says nothing of its images (model.json), None.
    """
    try:
        card = json.loads((run / "model.json").read_text(encoding="utf-8"))
        theirs, height, width = Reading.read(card["reading"]), int(card["style"]["height"]), int(card["style"]["width"])
        flips = bool(card["style"]["flip"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    words = {True: "on", False: "off"}
    there, here = ([f"{low:g}-{high:g}" for low, high in map((each.values or BYTES_AND_UNIT).of, KINDS)]
                   for each in (theirs, reading))
    pairs = [("resize", theirs.resize, reading.resize), ("background", theirs.background, reading.background),
             *(("value-range", *pair) for pair in zip(there, here, strict=True)),
             ("flip", words[flips], words[style.flip])]
    apart = [f"--{flag} {one} (here {other})" for flag, one, other in pairs if one != other]
    if apart:
        once(f"note: the teacher {run} learned from images that were read otherwise: {', '.join(apart)}; the same "
             "flags here read them so")
    return None if (height, width) == (style.height, style.width) else (height, width)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        return dict(yaml.safe_load((folder / "config.yaml").read_text()))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} is not the folder of a run: its config.yaml cannot be read ({error})") from None
