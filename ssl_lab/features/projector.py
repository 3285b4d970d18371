"""Fine-tuning from within the projector, which pretraining otherwise throws away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_lab.batch import Style
from ssl_lab.engine import checkpoint
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net, net


def with_projector(trunk: Net, run: Path, style: Style, seed: int = 0) -> Net:
    """The net `NAME+WIDTH`: that of the run, then the first layer of its projector, then a fresh head.

    Chen et al. 2020 (SimCLRv2, arXiv 2006.10029), section 2: with few labels, fine-tuning from there is better than
    from the features below.

    BatchNorm between the layer and its ReLU becomes part of the layer, with its running statistics.

    Args:
        trunk: the net of the run, with its weights.
        run: the folder of a run of pretraining, or a file in it.
        style: of the images.
        seed: of the fresh head.

    Raises:
        UsageError: if there is no such layer.

    >>> pool = sl.load("digits")
    >>> trunk = sl.net("tiny_4", style=pool.style)
    >>> trainer = sl.Trainer(steps=2, out="run", device="cpu", callbacks=[])
    >>> run = trainer.fit(sl.SimCLR(trunk, hidden=8, dim=4), pool, labeled=0, unlabeled=8)
    >>> sl.features.with_projector(trunk, run.out, pool.style).name
    'tiny_4+8'
    """
    folder = run if run.is_dir() else run.parent
    path = folder / "checkpoint.pt"
    state = checkpoint.load(path).get("method", {}) if checkpoint.exists(path) else {}
    if "projector.0.weight" not in state or "center" in state:  # DINO's, which is told by its center, has no ReLU
        raise UsageError(f"{folder} holds no checkpoint with a projector of ReLUs, as runs of simclr, byol, moco_v2, "
                         "moco_v3, simsiam, barlow_twins, vicreg, swav and nnclr have; start from the features")
    weight, bias = first_layer(state)
    deeper = net(f"{trunk.name}+{len(weight)}", trunk.class_names or trunk.classes, style, seed=seed)
    wanted = {f"backbone.trunk.{name}": values for name, values in trunk.backbone.state_dict().items()}
    wanted |= {"backbone.layer.weight": weight, "backbone.layer.bias": bias, "mean": trunk.mean, "std": trunk.std}
    deeper.load_state_dict(deeper.state_dict() | wanted)
    deeper.origin = str(run)
    return deeper


def first_layer(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [width, D] and bias [width] of a projector's first layer, with what its BatchNorm does in eval mode."""
    weight = state["projector.0.weight"]
    bias = state.get("projector.0.bias", torch.zeros(len(weight)))
    if "projector.1.running_var" not in state:
        return weight, bias
    scale, shift, mean, variance = (state[f"projector.1.{name}"] for name in
                                    ("weight", "bias", "running_mean", "running_var"))
    scale = scale / (variance + torch.nn.BatchNorm1d(1).eps).sqrt()
    return weight * scale[:, None], (bias - mean) * scale + shift
