"""A new user's first day: a folder of images, a few labels, and the commands typed until new images have classes.

    npm pack emoji-datasource-apple@16.0.0
    python tests/benchmarks/first_day.py --package emoji-datasource-apple-16.0.0.tgz --minutes 5

The folder is made of the package's 64 px pictures: ten of each category lie in its folder, some in test/, some are the
new images, which no command sees before the last one, and the others are unlabeled/. Commands are those of the
installed `ssl-lab`, in an empty data folder. It prints a row for each: what was typed, seconds, and what came of it.

See README.md beside this file for what was measured.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

LABELS, TEST, NEW = 10, 15, 15  # of each category
LEFT_OUT = ("Component", "Flags")  # skin tones; what tells flags apart is no category


@dataclass
class Settings:
    package: Path
    """emoji-datasource-apple-*.tgz, by `npm pack`."""
    minutes: float = 5.0
    """For `ssl-lab train`."""
    net: str = "lite0"
    """The pretrained net to fetch; none: do without."""
    seed: int = 0
    """Which images have labels."""


def folder_of(package: Path, root: Path, seed: int) -> dict[str, str]:
    """Makes root/photos and root/new; the categories of the new images, by file name."""
    with tarfile.open(package) as tar:
        tar.extractall(root, filter="data")
    content = json.loads((root / "package" / "emoji.json").read_text())
    by_category: dict[str, list[str]] = defaultdict(list)
    for emoji in content:
        if emoji["category"] not in LEFT_OUT and emoji["has_img_apple"]:
            by_category[emoji["category"].lower().replace(" & ", "-")].append(emoji["image"])
    rng, truth = np.random.default_rng(seed), {}
    for category, images in sorted(by_category.items()):
        order = rng.permutation(sorted(images)).tolist()
        for number, image in enumerate(order):
            part = (category if number < LABELS else f"test/{category}" if number < LABELS + TEST else
                    "../new" if number < LABELS + TEST + NEW else "unlabeled")
            target = root / "photos" / part / image
            target.parent.mkdir(parents=True, exist_ok=True)
            (root / "package" / "img/apple/64" / image).rename(target)
            if part == "../new":
                truth[image] = category
    return truth


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="ssl_lab-first-day-") as scratch:
        root = Path(scratch)
        (root / "photos").mkdir()
        truth = folder_of(settings.package, root, settings.seed)
        fetch = [] if settings.net == "none" else [["fetch", settings.net]]
        commands = [*fetch, ["train", "photos", "--minutes", f"{settings.minutes:g}", "--out", "runs/first"],
                    ["predict", "runs/first", "new", "--out", "found.csv"]]
        environment = {**os.environ, "SSL_LAB_DATA": str(root / "data")}
        program, rows = Path(sys.executable).parent / "ssl-lab", []
        for words in commands:
            begun = time.perf_counter()
            ended = subprocess.run([program, *words], cwd=root, env=environment, capture_output=True, text=True,
                                   check=False)
            seconds = time.perf_counter() - begun
            print(ended.stdout, ended.stderr, sep="", file=sys.stderr)
            if ended.returncode:
                raise SystemExit(f"`ssl-lab {' '.join(words)}` ended with {ended.returncode}")
            rows.append((" ".join(words), seconds))
        with (root / "found.csv").open(newline="") as file:
            found = {Path(row["path"]).name: row["label"] for row in csv.DictReader(file)}
        right = np.mean([found[image] == category for image, category in truth.items()])
        for words, seconds in rows:
            print(f"| `ssl-lab {words}` | {seconds:.0f} s |")
        print(f"{100 * right:.1f}% of {len(truth)} new images of {len(set(truth.values()))} classes are right")


if __name__ == "__main__":
    main(tyro.cli(Settings))
