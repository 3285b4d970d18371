"""Label Studio, through files: tasks with predictions and scores out, annotations in. Nothing is sent anywhere.

Import `tasks.json` into a project with the interface of `label_config.xml`, label, export as JSON into the same
folder, any file name that begins with "export". Both ways are idempotent by id: a task is written once, and of
several annotations of an id the newest counts, however often it is exported, until an answer is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from ssl_lab.active.oracle import IGNORE, Answer, Asked, Keys
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.files import write_atomically, write_text

ID = "ssl_lab_id"  # Label Studio numbers tasks itself; our id travels in the task's data


class LabelStudio:
    """An oracle whose answers come from Label Studio's exports in `folder`.

    Each call adds the tasks that are not in tasks.json yet and returns the annotations that are there: a choice, None
    (abstain) for a skipped task. prefix: what makes a URL of an image's path. The default is that of Label Studio's
    local storage, whose document root is then the folder that `pool.files` are relative to; the images of a pool
    without files are written as PNG below `folder`, which is then the root.
    """

    def __init__(self, folder: str | Path, pool: Pool, prefix: str = "/data/local-files/?d=") -> None:
        self.folder, self.pool, self.prefix = Path(folder), pool, prefix
        self._keys = Keys(pool)

    def __call__(self, asked: Asked) -> Mapping[int, Answer]:
        self.write(asked)
        wanted = set(asked.ids.tolist())
        return {i: answer for i, answer in self.read().items() if i in wanted}

    def write(self, asked: Asked) -> int:
        """Add tasks to tasks.json; returns how many were new."""
        path = self.folder / "tasks.json"
        tasks = _load(path) if path.exists() else []
        known = {task["data"][ID] for task in tasks}
        new = [self._task(asked, n) for n, i in enumerate(asked.ids.tolist()) if i not in known]
        if new:
            names = asked.class_names or self.pool.class_names
            write_text(self.folder / "label_config.xml", label_config(names))
            write_text(path, json.dumps(tasks + new, indent=1) + "\n")
        return len(new)

    def _task(self, asked: Asked, n: int) -> dict[str, Any]:
        i = int(asked.ids[n])
        task: dict[str, Any] = {"data": {ID: i, "image": self.prefix + quote(self._image(i))}}
        if asked.scores is not None:
            task["data"]["query_score"] = asked.scores[n]
        if asked.predicted is not None and asked.confidence is not None:
            result = {"from_name": "label", "to_name": "image", "type": "choices",
                      "value": {"choices": [asked.predicted[n]]}}
            task["predictions"] = [{"model_version": asked.version or "", "score": asked.confidence[n],
                                    "result": [result]}]
        return task

    def _image(self, i: int) -> str:
        """The image's path below the document root."""
        if self.pool.files:
            return self.pool.files[i]
        pixels = self.pool.images.take(np.array([i]))[0].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        write_atomically(self.folder / "images" / f"{i}.png", lambda file: image.save(file, "png"))
        return f"images/{i}.png"

    def read(self) -> dict[int, Answer]:
        """All answers in the exports: of several annotations of an id, the one that was updated last."""
        newest: dict[int, tuple[str, Answer]] = {}
        for path in sorted(self.folder.glob("export*.json")):
            for task in _load(path):
                i = task.get("data", {}).get(ID)
                for when, choice in _annotations(task, path) if i is not None else ():
                    if i not in newest or when >= newest[i][0]:
                        newest[i] = (when, self._keys.answer(choice))
        return {i: answer for i, (_, answer) in newest.items()}


def label_config(class_names: Sequence[str]) -> str:
    """The labeling interface: the classes and "ignore"."""
    names = dict.fromkeys((*class_names, IGNORE))
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names)
    return (f'<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image" choice="single">\n'
            f"{choices}\n  </Choices>\n</View>\n")


def _annotations(task: dict[str, Any], path: Path) -> Iterator[tuple[str, str | None]]:
    """(when, choice) of each annotation, None if it was skipped. One that was saved without a choice is none."""
    for annotation in task.get("annotations", []):
        when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
        parts = [part.get("value", {}) for part in annotation.get("result", [])]
        choices = [choice for part in parts for choice in part.get("choices", [])]
        if annotation.get("was_cancelled"):
            yield when, None
        elif len(choices) > 1:
            raise UsageError(f"{path}: task {task['data'][ID]} has the choices {', '.join(choices)}; expected one")
        elif choices:
            yield when, choices[0]


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise UsageError(f"{path} is not a list of Label Studio tasks; export as JSON (not JSON-MIN)")
    return content
