"""Caches: listed, and removed where nobody holds them and nothing else lies in them."""

import os

import pytest
from PIL import Image

from ssl_lab.cli import main
from ssl_lab.data import load
from ssl_lab.data.kept import kept, remove
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
