"""What to do after a run: commands that work as they are printed, for whoever installed the package."""

from __future__ import annotations

import shlex

from ssl_lab.config import said_of
from ssl_lab.report.html import Report
from ssl_lab.report.stored import StoredRun


def add_suggestions(page: Report, run: StoredRun) -> None:
    """The section of what to do next."""
    page.section("What to do next")
    for said, command in suggestions(run):
        page.text(said)
        page.command(command)


def suggestions(run: StoredRun) -> list[tuple[str, str]]:
    """A sentence and a command each. None of them hangs on how the test images came out."""
    folder, data = shlex.quote(str(run.folder)), run.settings.get("data")
    counts = run.split.get("counts", {})
    labeled, train = counts.get("labeled", 0), counts.get("train", 0)
    found = []
    if run.class_names:
        found.append(("Use it on new images, files or folders; --to folders sorts them by class, --threshold 0.9 gives "
                      "no class where it is less sure:",
                      f"ssl-lab predict {folder} PATH/TO/IMAGES --out predictions.csv"))
    if isinstance(data, str) and labeled < train:
        found.append((f"{train - labeled:,} of the {train:,} training images have no label in this run. Label some in "
                      "a browser, with a keyboard, those first from which most is to be learned; this model's features "
                      "choose and compare them:", f"ssl-lab label {_data(run)} --model {folder}"))
    if isinstance(data, str) and labeled:
        few = f" --labels {labeled}" if labeled < train else ""
        backbone = "" if run.class_names else f" --backbones {folder}"
        found.append(("Compare other ways to use these labels, by cross-validation on them alone:",
                      f"ssl-lab advise {_data(run)}{few}{backbone}"))
    if labeled:
        found.append(("Take the labels along, as lines of path and label:", f"ssl-lab labels {folder} --to labels.csv"))
    found.append(("Take the model elsewhere; onnx needs pip install \"ssl_lab[export]\", torchscript nothing:",
                  f"ssl-lab export {folder} --to torchscript"))
    return found


def _data(run: StoredRun) -> str:
    """The run's data and how they are read, as flags."""
    flags = [word for name, value in said_of(run.settings).items()
             for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join([str(run.settings["data"]), *flags])
