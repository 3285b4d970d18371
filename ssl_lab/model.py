"""`sl.open(run)`: a finished run, ready for new images.

    model = sl.open("runs/fixmatch")
    found = model.predict("photos/")          # files, folders, patterns, tar shards, arrays, PIL images
    found.labels, found.confidence            # names of classes, calibrated probabilities
    model.embed(images)                       # features [n, D]

A run needs none of the data that it was trained on. What became of its training images (turned, resized, cut, gray or
not, black and white) becomes of new ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.calibration import prediction_sets
from ssl_lab.data.decode import decoding
from ssl_lab.data.pictures import Batch, Pictures, batches, find_pictures, groups, read_batch
from ssl_lab.data.values import BYTES_AND_UNIT
from ssl_lab.engine import Runtime
from ssl_lab.engine.abreast import abreast, lanes
from ssl_lab.engine.card import CARD, Card
from ssl_lab.engine.placed import place
from ssl_lab.errors import UsageError
from ssl_lab.features.embed import batch_of
from ssl_lab.features.heads import Neighbors
from ssl_lab.features.run import TINY
from ssl_lab.machine import Precision
from ssl_lab.nets import Net
from ssl_lab.nets import net as named
from ssl_lab.nets.stored import read_weights
from ssl_lab.predictions import FloatArray, Predictions
from ssl_lab.views import Eval

See = Callable[[Tensor], tuple[FloatArray, FloatArray]]
"""Pixels uint8 [n, C, H, W] -> logits [n, classes] and features [n, D], float32."""


class Model:
    """A finished run, ready for new images; made by `open`.

    Args:
        card: what is known of it. classes: the names of its classes, () if it learned none.
        net: for those who want to go on in PyTorch; None of an ensemble. reading: how new images are read.
        see: from their pixels to logits and features.
        batch: images that pass at a time.
        lanes: batches that pass side by side.
    """

    def __init__(self, card: Card, see: See, batch: int, net: Net | None = None, lanes: int = 1) -> None:
        self.card, self.net = card, net
        self.see, self.batch, self.lanes = see, batch, lanes
        style, reading = card.style, card.reading
        square = style.height == style.width and reading.resize != "none"
        self.reading = replace(reading, image_size=style.height if square else None, gray=style.channels == 1,
                                values=reading.values or BYTES_AND_UNIT)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.class_names

    def predict(self, images: Any, threshold: float = 0.0, coverage: float | None = None) -> Predictions:
        """The classes of images; see `stream`, whose parts this joins. UsageError if there are no images."""
        parts = list(self.stream(images, threshold, coverage))
        if not parts:
            raise UsageError("there is no image to predict")
        return Predictions.joined(parts)

    def stream(self, images: Any, threshold: float = 0.0, coverage: float | None = None) -> Iterator[Predictions]:
        """The classes of images, batch by batch, for any number of them.

        Args:
            images: see `find_pictures`, or what it gave: it takes more gigabytes from an address, if you like.
            threshold: a class that is less likely is not given.
            coverage: in (0, 1), the promised share of prediction sets that hold the right class (by split conformal
                prediction: on average, over images like those that the run was calibrated on).

        Raises:
            UsageError: where the run learned no classes, or was calibrated on too few images for this coverage.
        """
        if not self.classes:
            raise UsageError(f"{self.card.data}: this run learned no classes (it is for `embed`); fine-tune it first")
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold={threshold:g}: expected a probability from 0 to 1")
        least = None if coverage is None else self._least(coverage)
        for batch, (logits, _) in self._seen(images):
            probabilities = np.full((len(batch.names), len(self.classes)), np.nan)
            good = [row for row, why in enumerate(batch.reasons) if why is None]
            probabilities[good] = self.card.calibration.probabilities(logits)
            sets = None if least is None else prediction_sets(np.nan_to_num(probabilities), least)
            yield Predictions(batch.names, self.classes, probabilities, batch.reasons, threshold, sets)

    def embed(self, images: Any) -> FloatArray:
        """float32 [n, D]: the features of images (see `find_pictures`); rows of NaN where one cannot be read."""
        parts = []
        for batch, (_, features) in self._seen(images):
            rows = np.full((len(batch.names), features.shape[1]), np.nan, np.float32)
            rows[[row for row, why in enumerate(batch.reasons) if why is None]] = features
            parts.append(rows)
        if not parts:
            raise UsageError("there is no image to embed")
        if self.net is None and self.card.kind == "net" and self.classes:
            raise UsageError("an ONNX file of a classifier gives no features; open its run")
        width = max(part.shape[1] for part in parts)  # a batch without one good image does not know it
        return np.concatenate([part if part.shape[1] else np.full((len(part), width), np.nan, np.float32)
                               for part in parts])

    def _seen(self, images: Any) -> Iterator[tuple[Batch, tuple[FloatArray, FloatArray]]]:
        found = images if isinstance(images, Pictures) else find_pictures(images, self.card.style.channels)
        shape = self.card.style.channels, self.card.style.height, self.card.style.width
        nothing = np.empty((0, len(self.classes))), np.empty((0, 0), np.float32)

        def saw(batch: Batch) -> tuple[Batch, tuple[FloatArray, FloatArray]]:
            return batch, self.see(batch.pixels) if len(batch.pixels) else nothing

        if self.lanes == 1:
            yield from map(saw, batches(found.stream, self.reading, shape, self.batch))
            return
        # Few images are shared out too; and who decodes a batch passes it, so that no processor waits for another.
        size = self.batch if found.known is None else min(self.batch, max(1, -(-found.known // self.lanes)))
        with decoding():
            yield from abreast(self.lanes, lambda group: saw(read_batch(group, self.reading, shape)),
                               groups(found.stream, size))

    def _least(self, coverage: float) -> float:
        """The least probability of a class in a prediction set."""
        if not 0 < coverage < 1:
            raise UsageError(f"coverage={coverage:g}: expected a share between 0 and 1")
        least = self.card.calibration.threshold(coverage)
        if least is None:
            scores = len(self.card.calibration.scores)
            needed = int(np.ceil(coverage / (1 - coverage) - 1e-9))
            raise UsageError(f"sets that hold the right class in {coverage:.0%} of images need {needed} that the "
                             f"run was not trained on, and it has {scores} ({self.card.calibration.source}). Train it "
                             "with more --valid images or --calibrate 5, or ask for less")
        return least


def open(run: str | Path, device: str = "auto", precision: Precision = "auto", mirror: bool = False) -> Model:
    """The model in the folder of a finished run, or in an ONNX file that `ssl-lab export` made of one.

    Args:
        run: the folder, or the .onnx file.
        device: cpu, cuda, or auto.
        precision: of the passes: fp32, bf16, fp16, or auto for the fastest here.
        mirror: the mean logits, and features, of each image and of its mirror image, in twice the time.

    Raises:
        UsageError: if there is none; if a mirror image is to be of another class (see `sl.Style.flip`).

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    >>> run = sl.Trainer(steps=2, out="run", device="cpu", callbacks=[]).fit(method, pool, labeled=4, unlabeled=0)
    >>> model, images = sl.open("run", device="cpu"), pool.images.take(pool.test[:3]).numpy()
    >>> model.predict(images).probabilities.shape, model.embed(images).shape
    ((3, 10), (3, 16))
    """
    model = _opened(Path(run), device, precision)
    if mirror:
        if not model.card.style.flip:
            raise UsageError(f"{run} learned from images that may be of another class in a mirror; leave out --mirror")
        model.see = _mirrored(model.see)
    return model


def _opened(folder: Path, device: str, precision: Precision) -> Model:
    if folder.suffix == ".onnx" and not folder.is_dir():
        return _of_onnx(folder)
    card = Card.read(folder)
    if card.kind == "ensemble":
        members = [_opened(folder / "members" / name, device, precision) for name in card.members]
        return Model(card, _mean([each.see for each in members]), members[0].batch, lanes=members[0].lanes)
    net = named(card.net, card.class_names or 2, card.style, weights=folder / "model.safetensors")
    model = around(net, card, device, precision)
    if card.kind == "neighbors":
        stored = read_weights(folder / "neighbors.safetensors")
        model.see = _voting(model.see, Neighbors(stored["rows"].numpy(), stored["beliefs"].numpy(), card.neighbors))
    return model


def around(net: Net, card: Card, device: str = "auto", precision: Precision = "auto") -> Model:
    """The model of a net that was trained, of which the card says what it is; the net is moved to the device."""
    runtime = Runtime.start(device, precision)
    place(net.eval(), runtime.device)
    return Model(card, _seeing(net, card, runtime), batch_of(card.style, runtime), net, lanes(runtime))


def _of_onnx(file: Path) -> Model:
    """The model in an ONNX file, which says in its metadata what it is. It runs on the CPU, in float32."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        raise UsageError('an ONNX file needs onnxruntime: pip install "ssl_lab[export]"') from None
    if not file.is_file():
        raise UsageError(f"there is no {file}")
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types of its own
        raise UsageError(f"{file} cannot be read as ONNX: {' '.join(str(error).split())}") from error
    text = session.get_modelmeta().custom_metadata_map.get(CARD)
    if text is None:
        raise UsageError(f"{file} does not say how images are read for it; export it again from its run by `ssl-lab "
                         "export RUN --to onnx`")
    card, runtime = Card.of_text(text, file), Runtime.start("cpu", "fp32")
    view = Eval(card.style)

    def see(pixels: Tensor) -> tuple[FloatArray, FloatArray]:
        images = view(pixels, At(0, 1).draw("eval", len(pixels), runtime.device))
        found = session.run(None, {"images": images.contiguous().numpy()})[0]
        none = np.empty((len(pixels), 0), np.float32)
        return (found, none) if card.class_names else (none, found)

    return Model(card, see, batch_of(card.style, runtime))


def _seeing(net: Net, card: Card, runtime: Runtime) -> See:
    view = Eval(card.style)
    learned_alone = net.unit  # by a learner on features, in float32

    @torch.inference_mode()
    def see(pixels: Tensor) -> tuple[FloatArray, FloatArray]:
        images = view(pixels.to(runtime.device), At(0, 1).draw("eval", len(pixels), runtime.device))
        with runtime.autocast():
            out = net(images.to(memory_format=torch.channels_last))
        features = out.features.float()
        logits = net.head(features) if learned_alone else out.logits.float()
        return logits.cpu().numpy(), features.cpu().numpy()

    return see


def _voting(see: See, head: Neighbors) -> See:
    """The features of `see`, and what their neighbors believe."""
    def vote(pixels: Tensor) -> tuple[FloatArray, FloatArray]:
        features = see(pixels)[1]
        return np.log(np.maximum(head(features), TINY)), features

    return vote


def _mirrored(see: See) -> See:
    """The means of what is seen of images and of their mirror images."""
    def both(pixels: Tensor) -> tuple[FloatArray, FloatArray]:
        (logits, features), (mirrored, others) = see(pixels), see(pixels.flip(3))
        return (logits + mirrored) / 2, (features + others) / 2

    return both


def _mean(several: Sequence[See]) -> See:
    """The log of the mean probabilities, and all features side by side."""
    def see(pixels: Tensor) -> tuple[FloatArray, FloatArray]:
        found = [each(pixels) for each in several]
        mean = np.mean([softmax(logits, axis=1) for logits, _ in found], axis=0)
        return np.log(np.maximum(mean, TINY)), np.concatenate([features for _, features in found], axis=1)

    return see
