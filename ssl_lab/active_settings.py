"""Settings of the recipes of active learning. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_lab.config import MaybeQuantity, Quantity, Settings, may_run


@dataclass
class TrainSettings(Settings):
    """What the recipes of active learning share. --steps (or --minutes) are those of each round's training, --weights
    and --pretrained those of the backbone."""

    balance: Literal["class", "natural", "covered"] = "natural"
    """How initial labels are drawn at random: as they come; so after one of each class, or the same number from each,
    which nobody who begins without labels can do."""
    backbone: str | None = None
    """The net that --weights or --pretrained belong to (default: --net). finetune trains it, the other trainers train
    --net from scratch; its embeddings serve queries while there is no label."""
    embeddings: Literal["net", "backbone"] = "net"
    """Whose embeddings queries see once there are labels."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step, for FixMatch."""
    lr: MaybeQuantity = None
    """Peak learning rate (default: 0.1 for FixMatch from scratch, else 0.03), or a schedule."""
    weight_decay: Quantity = 5e-4
    """Decay of the weights, added to their gradient (L2)."""
    ema: Quantity = 0.999
    """Decay of the averaged weights, which are evaluated."""
    bn_momentum: float = 0.02
    """Of BatchNorm's running statistics."""


@dataclass
class Benchmark(TrainSettings):
    """Settings of recipes/active_benchmark.py."""

    out: Path = Path("runs/active_benchmark")
    """Folder of all cells and of the report."""
    queries: str = may_run("margin,badge,k_center,typiclust", ":")
    """Descriptions (see `recipes/active.py --help`), separated by commas."""
    trainers: str = "supervised"
    """supervised, learning_loss, fixmatch; finetune, finetune_fixmatch, which start from --weights or --pretrained;
    separated by commas."""
    seeds: int = 5
    """Seeds 0 and up, of the initial labels, the initial weights, training and the queries."""
    sets: int = 1
    """Initial sets for each seed, all different."""
    initial: int = 20
    """Labels to begin with, the same for all queries; 0: the first batch is chosen by a backbone's embeddings."""
    final: int = 120
    """Labels at the end; where there are fewer images, all of them."""
    batches: str = "20"
    """Labels asked for in each round, several separated by commas."""
    duplicates: int = 1
    """Redundancy: of the training images one in so many is kept, and is there so many times."""
    noise: float = 0.0
    """Share of the oracle's answers that are wrong; the initial labels are right."""
    transfer: str | None = None
    """Another net, trained from scratch on what was selected at the end."""
    workers: str = "1"
    """Cells at a time on this machine, slurm or ray (see `ssl_lab/workers.py`)."""
