"""The run of `ssl-lab train` that lies in its folder when it is to go on: what it is, and that nobody asks for another.

Every setting that decides what is trained is compared: what is given now must be what was given, or chosen, then.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssl_lab.config import plain
from ssl_lab.data import Pool
from ssl_lab.engine import checkpoint
from ssl_lab.engine.folder import check_same, check_same_split
from ssl_lab.errors import UsageError
from ssl_lab.pace import PLAN
from ssl_lab.report.stored import StoredRun
from ssl_lab.ways import Plan


@dataclass(frozen=True)
class Begun:
    """A run that was begun in the folder `out`; of learners on features only one that has ended."""

    out: Path
    plan: Plan

    @classmethod
    def read(cls, out: Path, settings: Mapping[str, Any], given: Mapping[str, Any]) -> Begun | None:
        """The run in the folder, if it is one to go on with.

        settings: of the data, as they are given now. given: those that choose the way; what is None, False or empty was
        not given. UsageError for another run than these ask for, naming both values, for a run of something else, and
        for one whose method or view is a module's, unless `given` says so too: folders of runs come from strangers.
        """
        ended = (out / "summary.json").exists()
        in_rounds = (out / PLAN).exists()
        if not (ended or in_rounds or checkpoint.exists(out / "checkpoint.pt")):
            return None
        try:
            before = (json.loads((out / PLAN).read_text())["config"] if in_rounds else
                      yaml.safe_load((out / "config.yaml").read_text()))
            size, weights = before["image_size"], before["weights"]
            named, views = str(before["method"]), tuple(map(str, before["view"]))
            recipe, net, pretrained = before["recipe"], before.get("backbone", before["net"]), before["pretrained"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            raise UsageError(f"{out} holds a run that `ssl-lab train` did not begin; choose another --out") from None
        asked = plain({name: value for name, value in given.items() if value})
        for flag, text, said in [("method", named, "method" in asked), *(("view", each, "view" in asked)
                                                                         for each in views)]:
            if ":" in text and not said:  # before the plan looks for it
                raise UsageError(f"{out} is trained by {text}, which would import a module; if you trust it, say so: "
                                 f"--{flag} {shlex.quote(text)}")
        now = plain(settings) | asked
        if settings["image_size"]:  # which a resumed run may change elsewhere: there the images are compared
            now["image-size"], before["image-size"] = settings["image_size"], size
        before["net"] = net
        check_same({name: before[name] for name in now if name in before},
                   {name: now[name] for name in now if name in before}, out)
        plan = Plan(recipe, net, named, size, Path(weights) if weights else None, pretrained, views)
        return cls(out, plan)

    def summary(self, pool: Pool) -> dict[str, Any]:
        """What the run of a learner on features gave. UsageError if it is of other images or labels."""
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        check_same_split(found["split"], pool.manifest(), pool, self.out)
        return found


def check_same_learner(out: Path, settings: Mapping[str, Any], pool: Pool) -> None:
    """UsageError, naming both values, where the run of a learner on features in `out`, if there is one, is of other
    settings than recipes/features.py is given now, or of other images or labels."""
    if (out / "summary.json").exists():
        before = StoredRun.read(out)
        net = before.settings.get("backbone")
        check_same({**before.settings, "net": net}, {**settings, "backbone": net}, out)
        check_same_split(before.summary["split"], pool.manifest(), pool, out)
