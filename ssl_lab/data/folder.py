"""A person's own images in a folder: which of its folders are classes, which are parts, which say neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ssl_lab.data.classes import unlabeled_texts
from ssl_lab.data.decode import SUFFIXES
from ssl_lab.data.listing import Listed, Listing, content_of_listing, once, passed_over_text
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.reading import Reading
from ssl_lab.data.walk import Folder, Found
from ssl_lab.data.words import part_of, same, says_nothing
from ssl_lab.errors import UsageError


def load_folder(root: Path, found: Found, caches: Path, reading: Reading) -> Pool:
    """A pool of the images below `root`.

    Each sub-folder is a class, with the images at any depth below it. Images in no sub-folder, or in
    `unlabeled/`, are unlabeled. Folders called `train`, `valid` and `test`, in any usual spelling, hold class folders
    of these parts; where there is no `train`, the other folders are the classes of train. Such a folder without
    folders in it, beside class folders, is a class if it is `train`; else it holds images without a label. Folders
    `dev`, `eval` and `holdout` are parts if they hold the classes of the others. The single sub-folder of a folder
    stands for it. Class folders that hold nothing but parts (`cat/train`, `cat/test`) are dealt out to them. With
    reading.class_level 2, the sub-folders of those are the classes.

    Hidden files, other files and some links are passed over and counted: see `walk`. What else holds for a listing:
    see `content_of_listing`.
    """
    listing = list_folder(root, found, reading.class_level)
    return pool_of(content_of_listing(root.resolve().name, root, listing, caches, reading))


def list_folder(root: Path, found: Found, class_level: int = 1) -> Listing:
    """The image files of a folder, sorted by path. UsageError if there is none."""
    if not found.top:
        over = f". Passed over: {passed_over_text(found.passed_over)}" if found.passed_over else ""
        raise UsageError(f"{root} holds no image. Expected a sub-folder per class, with files of "
                         f"{' '.join(sorted(SUFFIXES))}{over}")
    reader = _Reader(root, class_level)
    entries = sorted(reader.read(found.top))
    counts = Counter(entry.label for entry in entries if entry.label is not None)
    if class_level > 1 and not counts:
        raise UsageError(f"class_level={class_level}: no folder of {root} lies that deep; expected the depth of class "
                         "folders")
    gone, more = unlabeled_texts(counts, chosen=True)
    entries = [entry._replace(label=None) if entry.label in gone else entry for entry in entries]
    if not counts and (tables := [what for what in found.passed_over if what in (".csv", ".tsv")]):
        more.append(f"no folder names a class; if the {tables[0]} file there holds labels, give that in place of the "
                    "folder")
    kept, again = once(entries, (found.identities[entry.file] for entry in entries), [entry.file for entry in entries])
    passed_over = +found.passed_over
    if again:
        passed_over["links to images that are listed"] += again
    return Listing(kept, reader.notes + more, passed_over)


class _Reader:
    """What the folders of a tree are. notes: what was decided."""

    def __init__(self, root: Path, class_level: int) -> None:
        self.root, self.class_level, self.notes = root, class_level, list[str]()

    def read(self, top: Folder) -> Iterator[Listed]:
        while (only := _only(top)) and not part_of(only.name):
            self.notes.append(f"{only.path}/ holds all images: it is read as the folder given")
            top = only
        parts = self._parts(top)
        yield from (Listed(file, None, "train") for file in top.images)
        beside = {name: folder for name, folder in sorted(top.folders.items()) if name not in parts}
        train = next((name for name, part in parts.items()
                      if part == "train" and _bare(top.folders[name]).full()), None)
        if train is None:
            yield from self._classes(Folder(top.path, folders=beside), "train")
        elif left := [f"{name} ({len(list(folder.all_images()))} images)" for name, folder in beside.items()
                      if folder]:
            self.notes.append(f"folders beside {train}/ are left out: {', '.join(left)}")
        for name, part in parts.items():
            if part == "unlabeled":
                yield from (Listed(file, None, "train") for file in top.folders[name].all_images())
            else:
                yield from self._classes(top.folders[name], part)

    def _parts(self, top: Folder) -> dict[str, str]:
        """Which sub-folders are which part."""
        inner = {name: {same(inside) for inside in _bare(folder).full()} for name, folder in top.full().items()}
        parts = {name: part for name in sorted(top.folders) if (part := part_of(name))}
        if others := [name for name in inner if name not in parts]:
            flat = [name for name, part in parts.items() if inner.get(name) == set() and part != "unlabeled"]
            self._settle_flat(parts, flat, {name for among in inner.values() for name in among})
        trained = [name for name, part in parts.items() if part == "train" and inner.get(name)]
        known = {name for among in trained for name in inner[among]} or {
            same(name) for name in others if not part_of(name, doubtful=True)}
        for name in others:
            if (part := part_of(name, doubtful=True)) and inner[name] and inner[name] <= known:
                parts[name] = part
        beside = not trained and any(name not in parts for name in inner)
        said = [f"{name}/ as {part}" for name, part in parts.items()
                if name.lower() not in _PLAIN or (beside and inner.get(name) and part != "unlabeled")]
        if said:
            self.notes.append(f"read {', '.join(said)}; a class must have another name")
        return parts

    def _settle_flat(self, parts: dict[str, str], flat: Sequence[str], classes: Collection[str]) -> None:
        """Decides on folders that are called like parts, and hold images beside class folders, not in such."""
        for name in flat:
            meaning = f"{parts[name]} images without a label; a class must have another name"
            if same(name) in classes or (parts[name] == "train" and len(flat) == 1):
                del parts[name]
                meaning = "a class"
            self.notes.append(f"{name}/ holds images, no class folders, and stands beside class folders: it is read as "
                              f"{meaning}")

    def _classes(self, folder: Folder, part: str) -> Iterator[Listed]:
        """The images of class folders, and the loose ones."""
        folder = _bare(folder)
        yield from (Listed(file, None, part) for file in folder.images)
        classes = sorted(folder.folders.items())
        for _ in range(self.class_level - 1):
            yield from (Listed(file, None, part) for _, inner in classes for file in inner.images)
            classes = [pair for _, inner in classes for pair in sorted(inner.folders.items())]
        named = {name: inner for name, inner in classes if part_of(name) != "unlabeled"}
        if empty := [name for name, inner in named.items() if not inner]:
            self.notes.append(f"{len(empty)} class folders of {self.root / folder.path} hold no file of "
                              f"{' '.join(sorted(SUFFIXES))}: {_some(empty)}")
        full = {name: inner for name, inner in named.items() if inner}
        if part == "train" and self.class_level == 1 and _hold_parts(full):
            yield from self._parts_of_classes(full)
            classes = [(name, inner) for name, inner in classes if name not in full]
        if folder.path and (odd := [name for name in full if part_of(name)]):
            self.notes.append(f"{folder.path}/ holds {_some(odd)}, read as a class though it is called like a part; "
                              "parts lie beside one another")
        self._note_alike(full)
        for name, inner in classes:
            label = name if name in named else None
            yield from (Listed(file, label, part) for file in inner.all_images())

    def _parts_of_classes(self, classes: Mapping[str, Folder]) -> Iterator[Listed]:
        """Of class folders that hold nothing but parts."""
        names = sorted({name for inner in classes.values() for name in inner.full()})
        self.notes.append(f"class folders hold parts: {', '.join(names)} in each of them are read as "
                          f"{', '.join(str(part_of(name)) for name in names)}")
        for label, folder in classes.items():
            for name, inner in folder.full().items():
                part = part_of(name)
                for file in inner.all_images():
                    yield Listed(file, None, "train") if part == "unlabeled" else Listed(file, label, str(part))

    def _note_alike(self, classes: Mapping[str, Folder]) -> None:
        """A line if the sub-folders of class folders look like the classes."""
        level, folders = self.class_level + 1, list(classes.values())
        while folders and all(_only(folder) for folder in folders):
            level, folders = level + 1, [only for folder in folders if (only := _only(folder))]
        inner = {frozenset(map(same, folder.full())) for folder in folders}
        if len(classes) > 1 and len(inner) == 1 and len(names := next(iter(inner))) > 1 \
                and not any(folder.images for folder in folders):
            self.notes.append(f"the classes are {_some(list(classes))}, and each holds the sub-folders "
                              f"{_some(sorted(names))}: if these are the classes, give --class-level "
                              f"{level}")


_PLAIN = ("train", "training", "valid", "val", "validation", "test", "testing", "unlabeled")
"""Parts that need no word."""


def _only(folder: Folder) -> Folder | None:
    """The one sub-folder that holds all images of a folder, unless it may be a class, which holds its own and has a
    name; else None."""
    full = list(folder.full().values())
    is_only = not folder.images and len(full) == 1 and (full[0].full() or says_nothing(full[0].name))
    return full[0] if is_only else None


def _bare(folder: Folder) -> Folder:
    """A folder without what is wrapped around it and says nothing: of train/, train/images/."""
    while (only := _only(folder)) and says_nothing(only.name):
        folder = only
    return folder


def _hold_parts(classes: Mapping[str, Folder]) -> bool:
    """Whether class folders hold parts, at least two in all, and nothing else."""
    inner = [(folder, list(folder.full())) for folder in classes.values()]
    found = {part_of(name) for _, names in inner for name in names}
    return None not in found and len(found) > 1 and all(names and not folder.images for folder, names in inner)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
