"""Nets in 8 bits as onnxruntime runs them: weights by channel, activations by what calibration images show."""

from __future__ import annotations

import copy
import importlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab.compress.cost import ROWS, Candidate, as_seen, candidate_of
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets.quantized import MARK, with_float_inputs

IMAGES = 512
"""Training images that ranges of activations are of, at most."""


def as_int8(candidate: Candidate, net: Net, pool: Pool) -> Candidate:
    """The net by onnxruntime's static quantization: int8 weights with a scale for each output channel, symmetric, and
    uint8 activations between the least and the largest value on up to 512 training images, as QuantizeLinear and
    DequantizeLinear around each operation, which onnxruntime fuses. A net whose weights were trained on a coarser grid
    of the same form (`--with qnn`) keeps them but for rounding of at most 1/254 of the largest.

    Inputs of layers that were rounded in training (`+in8`) are rounded by onnxruntime instead, to 8 bits whatever the
    net says.

    Args:
        candidate: the float file, as `candidate_of` makes it.
        net: of which it was made.
        pool: whose training images tell the ranges.

    Raises:
        UsageError: where onnx or onnxruntime is missing.

    >>> pool = sl.load("digits")
    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(64, 10), mean=(0.5,), std=(0.25,))
    >>> candidate = sl.compress.candidate_of("float", net, pool)
    >>> len(sl.compress.as_int8(candidate, net, pool).content) > 0
    True
    """
    quantization = _quantization()
    name = f"{candidate.name}, int8"
    if MARK in net.name:
        candidate = candidate_of(name, with_float_inputs(copy.deepcopy(net)), pool)
    rows = pool.train[np.linspace(0, len(pool.train) - 1, min(IMAGES, len(pool.train))).astype(np.int64)]

    def batches() -> Iterator[dict[str, NDArray[np.float32]]]:
        for start in range(0, len(rows), ROWS):
            yield {"images": as_seen(pool, rows[start:start + ROWS])}

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = batches()

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.left, None)

    root, before = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it recommends a preparation that folds what the exporter has folded
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            given.write_bytes(candidate.content)
            quantization.quantize_static(str(given), str(made), Images(), per_channel=True,
                                         quant_format=quantization.QuantFormat.QDQ,
                                         activation_type=quantization.QuantType.QUInt8,
                                         weight_type=quantization.QuantType.QInt8)
            content = made.read_bytes()
    finally:
        root.setLevel(before)
    return replace(candidate, name=name, content=content)


def _quantization() -> Any:
    try:
        return importlib.import_module("onnxruntime.quantization")
    except ImportError as error:
        raise UsageError(f'int8 needs onnx and onnxruntime ({error}): pip install "ssl_lab[export]"') from error
