"""Label Studio, through files: tasks with predictions and scores out, annotations in. Nothing is sent anywhere.

Import `tasks.json` into a project with the interface of `label_config.xml`, label, and put the download into the same
folder under any name: JSON, JSON-MIN, CSV and TSV are read. Both ways are idempotent by id: a task is written once, and
however often an annotation is exported, its newest state counts.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from ssl_lab.active.people.answer_files import ID, NoAnswersError, Said, read_answers
from ssl_lab.active.people.keys import IGNORE, Answer, Keys
from ssl_lab.active.people.oracle import Asked, counted, differing
from ssl_lab.active.people.votes import Agreement, agree
from ssl_lab.data import Pool
from ssl_lab.data.cells import read_table
from ssl_lab.data.inventory import read_inventory
from ssl_lab.errors import UsageError
from ssl_lab.files import make_folder, write_atomically, write_text

URL = "/data/local-files/?d="  # of Label Studio's local storage: what follows is a path below its document root


class LabelStudio:
    """An oracle whose answers come from what Label Studio exported into `folder`.

    Each call adds the tasks that are not in tasks.json yet and returns the annotations that are there: a choice, None
    (abstain) for a task that all skipped.

    Args:
        folder: where exports are put, and tasks.json is written.
        pool: whose images are asked for.
        root: the folder that `pool.files` are relative to. It is a storage of Label Studio, below the document
            root; images that have no file there, or one whose name no URL can hold, are written as PNG into
            `folder`/images, which is one too.
        agreement: see `agree`. notes: what a person should be told of the last reading.

    >>> oracle = sl.active.LabelStudio("tasks", sl.load("digits"))
    >>> oracle(sl.active.Asked(np.array([7, 8]))), (oracle.folder / "tasks.json").exists()  # nobody has answered yet
    ({}, True)
    """

    def __init__(self, folder: str | Path, pool: Pool, root: str | Path | None = None,
                 agreement: Agreement = "majority") -> None:
        self.folder, self.pool, self.agreement = Path(os.path.abspath(folder)), pool, agreement
        self.root = None if root is None else Path(os.path.abspath(root))
        self.notes: list[str] = []
        self._keys = Keys(pool)

    def __call__(self, asked: Asked) -> Mapping[int, Answer]:
        self.write(asked)
        wanted = set(asked.ids.tolist())
        return {i: answer for i, answer in self.read().items() if i in wanted}

    def write(self, asked: Asked) -> int:
        """Add tasks to tasks.json; returns how many were new. Those that come later are in a file of their own too, so
        that a project need not get the earlier ones twice."""
        tasks = self._tasks()
        known = {task["data"].get(ID) for task in tasks}
        new = [self._task(asked, n) for n, i in enumerate(asked.ids.tolist()) if i not in known]
        if new:
            for storage in self.storages:
                make_folder(storage)  # Label Studio takes no storage that is not there
            names = asked.class_names or self.pool.class_names
            write_text(self.folder / "label_config.xml", label_config(names))
            if tasks:
                number = 2 + len([*self.folder.glob("tasks-*.json")])
                write_text(self.folder / f"tasks-{number}.json", json.dumps(new, indent=1) + "\n")
            write_text(self.folder / "tasks.json", json.dumps(tasks + new, indent=1) + "\n")
        return len(new)

    def _tasks(self) -> list[dict[str, Any]]:
        path = self.folder / "tasks.json"
        tasks = read_table(path) if path.exists() else []
        if not isinstance(tasks, list) or not all(isinstance(task, dict) and isinstance(task.get("data"), dict)
                                                  for task in tasks):
            raise UsageError(f"{path} is not a list of tasks; remove it, and it is written anew")
        return tasks

    def _task(self, asked: Asked, n: int) -> dict[str, Any]:
        i = int(asked.ids[n])
        task: dict[str, Any] = {"data": {ID: i, "image": URL + quote(self._image(i))}}
        if asked.scores is not None:
            task["data"]["query_score"] = asked.scores[n]
        if asked.stands_for is not None:
            task["data"]["stands_for"] = asked.stands_for[n]
        if asked.predicted is not None and asked.confidence is not None:
            result = {"from_name": "label", "to_name": "image", "type": "choices",
                      "value": {"choices": [asked.predicted[n]]}}
            task["predictions"] = [{"model_version": asked.version or "", "score": asked.confidence[n],
                                    "result": [result]}]
        return task

    def _served(self, i: int) -> bool:
        """Whether Label Studio can show the image's own file."""
        file = self.pool.files[i] if self.pool.files else ""
        return bool(file) and not os.path.isabs(file) and ".." not in file.split("/") and file.isprintable()

    @cached_property
    def storages(self) -> list[Path]:
        """The folders that Label Studio is to serve."""
        served = [self._served(i) for i in range(len(self.pool))]
        return ([self.root] if self.root and any(served) else []) + ([] if all(served) else [self.folder / "images"])

    @cached_property
    def document_root(self) -> Path | None:
        """The folder above all of them, which can be none of them itself; None if it is not known where images lie."""
        return Path(os.path.commonpath([storage.parent for storage in self.storages])) if self.storages else None

    def _image(self, i: int) -> str:
        """The image's path below the document root."""
        top = self.document_root
        if self._served(i):
            return self.pool.files[i] if top is None or self.root is None else os.path.relpath(
                self.root / self.pool.files[i], top)
        pixels = self.pool.images.take(np.array([i]))[0].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        path = self.folder / "images" / f"{i}.png"
        write_atomically(path, lambda file: image.save(file, "png"))
        return os.path.relpath(path, top)

    def read(self) -> dict[int, Answer]:
        """All answers in the folder: see `agree` for several annotations of an image."""
        total, read, passed = Said(), [], []
        moved = read_inventory(self.folder.parent)
        tasks = self._tasks() if moved is not None and moved.carried else []  # written anew then, see `carry`
        self._keys.urls = {task["data"]["image"]: task["data"][ID] for task in tasks}
        for path in self._exports():
            try:
                said = read_answers(path, self._keys)
            except NoAnswersError as error:
                passed.append(str(error))
                continue
            if not (said.label_studio or said.votes):
                passed.append(str(path))
                continue
            read.append(path.name)
            total = Said(total.votes + said.votes, total.tasks + said.tasks, total.unknown + said.unknown,
                         total.empty + said.empty)
        agreed = agree(total.votes, self.agreement)
        self.notes = [f"{counted(total)}: {', '.join(read)}"] if read else []
        if passed:
            self.notes.append(f"no export of Label Studio: {'; '.join(passed)}")
        self.notes += differing(agreed, self.agreement)
        return agreed.answers

    def _exports(self) -> Iterator[Path]:
        """The files below the folder but ours: tasks count as an export once somebody wrote annotations over them."""
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder)
            if any(part.startswith(".") for part in inside.parts) or inside.parts[0] in ("images", "label_config.xml"):
                continue
            ours = inside.match("tasks.json") or inside.match("tasks-*.json")
            if path.is_file() and not (ours and not _annotated(path)):
                yield path

    def instructions(self) -> str:
        """What to type, where, to label the tasks."""
        top = self.document_root
        last = max(self.folder.glob("tasks-*.json"), key=lambda path: int(path.stem[6:]), default=None)
        where = (f"1. Start it so that it can show the images:\n"
                 f"     LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="
                 f"{shlex.quote(str(top))} label-studio start\n") if top else ""
        storages = "".join(f"\n     Settings > Cloud Storage > Add Source Storage > Local files: absolute local path "
                           f"{storage} (add it, do not sync it)" for storage in self.storages)
        tasks = f"{last} (the new ones of {self.folder / 'tasks.json'})" if last else str(self.folder / "tasks.json")
        return (f"To label in Label Studio:\n{where}"
                "2. Once, make a project. Settings > Labeling Interface > Code: paste "
                f"{self.folder / 'label_config.xml'}{storages}\n"
                f"3. Import {tasks}\n"
                f"4. Label, and put the export (JSON, JSON-MIN, CSV or TSV) under any name into {self.folder}")


def label_config(class_names: Sequence[str]) -> str:
    """The labeling interface: the classes and "ignore"."""
    names = dict.fromkeys((*class_names, IGNORE))
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names)
    return (f'<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image" choice="single">\n'
            f"{choices}\n  </Choices>\n</View>\n")


def _annotated(path: Path) -> bool:
    tasks = read_table(path)
    return isinstance(tasks, list) and any(isinstance(task, dict) and task.get("annotations") for task in tasks)
