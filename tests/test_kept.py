"""Caches: listed, and removed where nobody holds them and nothing else lies in them."""

import os
import re

import pytest
from PIL import Image

from ssl_lab.cli import main
from ssl_lab.data import load, remote
from ssl_lab.data.kept import kept, remove
from ssl_lab.data.remote import copied
from ssl_lab.errors import UsageError


def images(root):
    for row in range(4):
        path = root / f"{row % 2}/{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), row).save(path)
    return root


def test_caches_are_listed_and_removed_unless_they_are_held(tmp_path, capsys):
    data = tmp_path / "data"
    pool = load(images(tmp_path / "a"), data)
    (only,) = kept(data)
    assert (only.what, only.source, only.rows) == ("decoded images", str(tmp_path / "a"), 4)
    foreign = data / "cache" / ("a" * 24)
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    (data / "cache/notes").mkdir()
    assert remove("all", data) == ([], [only]), "the pool is in use"
    del pool
    assert remove("old", data) == ([], [])
    os.utime(only.folder, (0, 0))
    for file in only.folder.iterdir():
        os.utime(file, (0, 0))
    with pytest.raises(UsageError, match="no cache 'none'"):
        remove("none", data)
    main(["cache", "--remove", "old", "--data-dir", str(data)])
    assert "(removed)" in capsys.readouterr().out
    assert kept(data) == []
    assert (foreign / "thesis.txt").exists()
    assert (data / "cache/notes").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_copies_of_what_lies_elsewhere_are_listed_and_removed_too(tmp_path, capsys, whole):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.put(str(images(tmp_path / "a")) + "/", "memory://kept", recursive=True)
    data = tmp_path / "data"
    copy = copied("memory://kept", data)
    folder = copy.parent
    if not whole:  # cut off
        (folder / "listing.json").unlink()
        (folder / "files").rename(folder / "parts")
    (only,) = kept(data)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (only.folder, only.rows, only.size) == (folder, 4, size)
    assert remove("all", data) == ([], [only]), "this process reads it"
    del remote._HELD[folder]
    main(["cache", "--remove", folder.name, "--data-dir", str(data)])
    said = "memory://kept" if whole else "an address, not all of it yet"
    assert re.search(rf"copied, 4 files, 0.0 MiB, last used .*: {said} \(removed\)", capsys.readouterr().out)
    assert not folder.exists()
    (data / "remote" / ("b" * 24) / "files").mkdir(parents=True)
    (data / "remote" / ("b" * 24) / "thesis.txt").write_text("mine")
    assert kept(data) == []
