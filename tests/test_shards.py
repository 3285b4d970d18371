"""Tar shards: the same pool as the same images in a folder, whatever is damaged, and runs that resume in them. And
a memory-mapped cache that is larger than the memory it may use.

By command at a size beyond this machine's memory: SSL_LAB_GIB=32 pytest tests/test_shards.py -k mapped.
"""

import errno
import io
import json
import os
import signal
import sys
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import BAD_NPY, assert_same_run, digit_files, signal_at, start, tiny_net, train

from ssl_lab.batch import At
from ssl_lab.data import ArrayImages, load
from ssl_lab.data.files import Bounded
from ssl_lab.data.shard_scan import scan_shard
from ssl_lab.data.words import LABEL_NAMES
from ssl_lab.engine import Feed
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.methods import FixMatch


def encoded(number, size=(12, 10), kind="PNG"):
    """A smooth picture; a number makes it its own."""
    y, x = np.mgrid[0:1:size[1] * 1j, 0:1:size[0] * 1j]
    pixels = np.stack([255 * y, 255 * x, np.full_like(x, number % 256)], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(path, samples):
    """One shard, by webdataset itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as out:
        for sample in samples:
            out.write(sample)


def animals(root, shards=3, each=6):
    """Samples of two classes in turn; every seventh has no label."""
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        write(root / f"{shard:03}.tar", [{"__key__": f"{n:05}", "png": encoded(n)}
                                         | ({} if n % 7 == 6 else {"cls": str(n % 2).encode()}) for n in numbers])
    return root


def pixels_of(pool, rows=None):
    return pool.images.take(np.arange(len(pool)) if rows is None else np.array(rows)).numpy()


def tar(path, members):
    """A shard of any names, for what webdataset would not write."""
    with tarfile.open(path, "w") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


# --- what a pool of shards is ---

def test_shards_give_the_pool_that_a_folder_of_the_same_images_gives(tmp_path):
    kinds = [("png", (20, 31)), ("jpeg", (90, 40)), ("webp", (33, 33)), ("bmp", (24, 60)), ("gif", (50, 22)),
             ("jpeg", (300, 200))]
    samples = []
    for number, (suffix, size) in enumerate(kinds * 4):
        label, content = "dog" if number % 2 else "cat", encoded(number, size, suffix)
        file = tmp_path / "folder" / label / f"{number:03}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        samples.append({"__key__": f"{label}/{number:03}", suffix: content, "txt": label.encode()})
    samples.sort(key=lambda sample: sample["__key__"])
    for shard in range(4):
        write(tmp_path / f"shards/{shard}.tar", samples[6 * shard:6 * shard + 6])
    folder, shards = (load(tmp_path / name, tmp_path / "data") for name in ("folder", "shards"))
    assert shards.images.shape == folder.images.shape
    assert np.array_equal(pixels_of(shards), pixels_of(folder))
    assert (shards.class_names, shards.truth.tolist()) == (folder.class_names, folder.truth.tolist())
    for part in ("train", "valid", "test", "labeled"):
        assert np.array_equal(getattr(shards, part), getattr(folder, part))
    assert shards.style.mean == pytest.approx(folder.style.mean, abs=1e-6)
    assert shards.style.std == pytest.approx(folder.style.std, abs=1e-6)
    assert shards.notes == folder.notes


def test_any_rows_in_any_order(tmp_path):
    pool = load(animals(tmp_path / "animals"), tmp_path / "data")
    everything = pixels_of(pool)
    assert everything[:, 2].reshape(18, -1).max(axis=1).tolist() == list(range(18)), "in the order of the shards"
    for rows in ([17, 0, 5, 5, 11], [3], np.empty(0, np.int64)):
        taken = pool.images.take(np.array(rows, dtype=np.int64))
        assert taken.shape == (len(rows), 3, 10, 10)
        assert np.array_equal(taken.numpy(), everything[np.array(rows, dtype=np.int64)])
    assert len(pool.images) == len(pool) == 18
    assert pool.truth.tolist() == [-1 if n % 7 == 6 else n % 2 for n in range(18)]
    assert load(tmp_path / "animals", tmp_path / "data", image_size=4).images.shape == (3, 4, 4)


def test_patterns_single_shards_and_parts(tmp_path):
    root = animals(tmp_path / "animals")
    whole = load(root, tmp_path / "data")
    for pattern in ("{000..002}.tar", "{000,001,002}.tar"):
        again = load(str(root / pattern), tmp_path / "data")
        assert (again.name, again.truth.tolist()) == ("animals", whole.truth.tolist())
        assert again.images.fingerprint() == whole.images.fingerprint()
    assert len(load(root / "001.tar", tmp_path / "data")) == 6
    with pytest.raises(UsageError, match=r"no shard .*003.tar \(1 of the 4 of"):
        load(str(root / "{000..003}.tar"), tmp_path / "data")
    with pytest.raises(UsageError, match="no pattern of shards"):
        load(str(root / "{000..003.tar"), tmp_path / "data")

    parts = tmp_path / "parts"
    write(parts / "birds-train-0.tar", [{"__key__": str(n), "png": encoded(n), "cls": str(n % 2)} for n in range(6)])
    write(parts / "birds-val-0.tar", [{"__key__": str(n), "png": encoded(n), "cls": str(n % 2)} for n in range(4)]
          + [{"__key__": "4", "png": encoded(4)}])
    write(parts / "Testing/0.tar", [{"__key__": str(n), "png": encoded(n), "cls": str(n % 2)} for n in range(2)])
    pool = load(parts, tmp_path / "data")
    assert [len(rows) for rows in (pool.train, pool.valid, pool.test)] == [6, 4, 2]
    assert "1 images of valid or test have no label" in " ".join(pool.notes)
    assert np.array_equal(pixels_of(pool, pool.valid), pixels_of(pool, pool.train[:4])), "rows moved with their images"

    (root / "cat").mkdir()
    (root / "cat/1.png").write_bytes(encoded(1))
    (root / "dog").mkdir()
    (root / "dog/1.png").write_bytes(encoded(1))
    assert len(load(root, tmp_path / "data")) == 2, "a folder of images is one, whatever lies beside them"


def test_labels(tmp_path):
    labels = [{"cls": b"10\n"}, {"cls": b"9", "txt": b"a caption"}, {"json": b'{"label": 9, "width": 4}'},
              {"json": b'"10"'}, {"txt": b"9 "}, {}, {"cls": b"-1"}, {"cls": b""}, {"json": b'{"width": 4}'},
              {"json": b'{"caption": "x"}', "txt": b"a caption"}, {"json": b'{"label": null}'}]
    bad = [{"json": b"{"}, {"json": b"[1]"}, {"json": b'{"label": 0.5}'}, {"cls": b"\xff"}]
    write(tmp_path / "a.tar", [{"__key__": f"{n:02}", "png": encoded(n)} | label
                               for n, label in enumerate(labels + bad)])
    pool = load(tmp_path / "a.tar", tmp_path / "data")
    assert pool.class_names == ("9", "10")
    assert pool.truth.tolist() == [1, 0, 0, 1, 0] + [-1] * 6
    skipped = json.loads(next((tmp_path / "data/cache").glob("*/skipped.json")).read_text())
    assert [entry["file"] for entry in skipped] == [f"a.tar/{n}" for n in range(11, 15)]
    assert skipped[2]["reason"] == "the label is 0.5, expected a text or a whole number"
    assert "4 samples or shards could not be read" in " ".join(pool.notes)


def test_labels_in_json_stand_under_the_names_that_columns_have(tmp_path):
    def shard(name, *contents):
        write(tmp_path / f"{name}.tar", [{"__key__": f"{n:02}", "png": encoded(n), "json": json.dumps(content).encode()}
                                         for n, content in enumerate(contents)])
        return tmp_path / f"{name}.tar"

    for name in ("label", *LABEL_NAMES, "Class Name", "category-id"):
        pool = load(shard("usual", {"width": 4, name: "b"}, {name: "a"}, {name: None}, {"width": 4}), tmp_path / "data")
        assert (pool.class_names, pool.truth.tolist()) == (("a", "b"), [1, 0, -1, -1])
        told = f"labels stand in json under {name!r} (of width, {name}); --label-column names another key"
        assert (told in pool.notes) == (name != "label")

    both = shard("both", {"species": "cat", "label": "b"}, {"species": "dog", "label": "a"}, {"species": "cat"})
    pool = load(both, tmp_path / "data")
    assert (pool.class_names, pool.truth.tolist()) == (("a", "b", "cat"), [1, 0, 2])
    assert "labels stand in json under 'label' and 'species'" in " ".join(pool.notes)
    pool = load(both, tmp_path / "data", label_column="species")
    assert (pool.class_names, pool.truth.tolist()) == (("cat", "dog"), [0, 1, 0])
    assert not any("json" in note for note in pool.notes)

    write(tmp_path / "named.tar", [{"__key__": str(n), "png": encoded(n), "cls": str(n % 2),
                                    "json": json.dumps({"kind": f"k{n}"}).encode()} for n in range(2)])
    assert load(tmp_path / "named.tar", tmp_path / "data").class_names == ("0", "1"), "cls comes first"
    assert load(tmp_path / "named.tar", tmp_path / "data", label_column="kind").class_names == ("k0", "k1")
    with pytest.raises(UsageError, match=r"unknown label column 'specie'. Did you mean species"):
        load(both, tmp_path / "data", label_column="specie")
    with pytest.raises(UsageError, match=r"name columns of a CSV file.*also be a key of json"):
        load(both, tmp_path / "data", path_column="label")


def test_members_that_are_no_samples_are_passed_over(tmp_path):
    outside = tmp_path / "outside.png"
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for name, kind in [("folder", tarfile.DIRTYPE), ("pipe.png", tarfile.FIFOTYPE), ("link.png", tarfile.SYMTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            out.addfile(info)
        for name, content in [("../outside.png", encoded(1)), ("../outside.cls", b"0"), ("b.seg.png", encoded(9)),
                              ("b.JPG", encoded(2, kind="JPEG")), ("b.cls", b"1"), ("notes.md", b"x"),
                              (".c.png", b"x")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    pool = load(tmp_path / "a.tar", tmp_path / "data")
    assert pool.truth.tolist() == [0, 1]
    assert not outside.exists()
    assert not any("could not be read" in note for note in pool.notes)


# --- damage ---

def skips(data):
    (file,) = (data / "cache").glob("*/skipped.json")
    return {entry["file"]: entry["reason"] for entry in json.loads(file.read_text())}


def test_damaged_images_and_shards_are_listed_and_the_others_used(tmp_path):
    root = animals(tmp_path / "animals")
    (root / "004.tar").write_bytes(b"")
    (root / "005.tar").write_bytes(b"no tar" * 500)
    content = bytearray((root / "001.tar").read_bytes())
    with tarfile.open(root / "001.tar") as shard:
        third = shard.getmember("00008.png")
    content[third.offset:third.offset + 8] = b"\xff" * 8  # a header in the middle, which tarfile takes for the end
    (root / "001.tar").write_bytes(content)
    tar(root / "006.tar", [("x.png", encoded(1)[:60]), ("x.cls", b"0"), ("y.png", b""), ("z.png", encoded(40))])
    bomb = io.BytesIO()
    Image.new("1", (9000, 8000)).save(bomb, "PNG")
    tar(root / "007.tar", [("bomb.png", bomb.getvalue())])
    pool = load(root, tmp_path / "data")
    assert pixels_of(pool)[:, 2].reshape(len(pool), -1).max(axis=1).tolist() == [*range(8), *range(12, 18), 40]
    found = skips(tmp_path / "data")
    assert set(found) == {"001.tar", "004.tar", "005.tar", "006.tar/x", "006.tar/y", "007.tar/bomb"}
    assert found["001.tar"].startswith("damaged, only the 2 images before that are used: no file and no end mark at")
    assert "empty file" in found["004.tar"]
    assert found["006.tar/y"] == "the file is empty"
    assert found["007.tar/bomb"] == "9000x8000 pixels, over max_pixels=64000000"
    assert "6 samples or shards could not be read" in pool.notes[0]


@pytest.mark.parametrize("size", [2**40, 2**62, 2**80, -1, -512])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_size_that_cannot_be_is_damage(tmp_path, size, kind):
    path = tmp_path / "0.tar"
    tar(path, [(f"{n}.{suffix}", content) for n in range(3)
               for suffix, content in (("cls", b"0"), ("png", encoded(n)))])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as shard:
        start = shard.getmember("2.cls").offset
    header = content[start:start + 512]
    header[124:136] = (128 << 88 | size if size > 0 else size % 2**96).to_bytes(12, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8  # as the checksum is taken
    header[148:156] = b"%06o\0 " % sum(header)
    content[start:start + 512] = header
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found = scan_shard(path, max_pixels=200)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert len(found.labels) == 1, "the sample before may go on in what is damaged"
    assert [stem for stem, _ in found.skipped] == [""]


@settings(max_examples=40)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_at_any_byte_keeps_the_samples_before(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    write(folder / "0.tar", [{"__key__": str(n), "png": encoded(n), "cls": str(n % 2)} for n in range(4)])
    whole = (folder / "0.tar").read_bytes()
    with tarfile.open(folder / "0.tar") as shard:
        members = shard.getmembers()
    ends = [info.offset_data + -(-info.size // 512) * 512 for info in members[1::2]]
    place = int(cut * (ends[-1] + 512))  # beyond that, only padding is lost
    (folder / "0.tar").write_bytes(whole[:place])
    write(folder / "1.tar", [{"__key__": str(n), "png": encoded(n), "cls": str(n % 2)} for n in range(10, 14)])
    pool = load(folder, folder / "data")
    whole_ones = sum(end <= place for end in ends)
    first = [row for row in range(len(pool)) if pixels_of(pool, [row])[0, 2].max() < 10]
    assert whole_ones - 1 <= len(first) <= whole_ones, "all but perhaps the last, which may have gone on"
    assert [int(pool.truth[row]) for row in first] == [n % 2 for n in range(len(first))], "each with its label"
    assert "0.tar" in skips(folder / "data")


@pytest.mark.parametrize("damage", ["truncate", "no meta", "bad meta", "bad header", "empty"])
def test_a_damaged_index_is_made_again(tmp_path, damage):
    root = animals(tmp_path / "animals")
    before = load(root, tmp_path / "data").split(4).manifest()
    (folder,) = [path.parent for path in (tmp_path / "data/cache").glob("*/meta.json")]
    if damage == "truncate":
        os.truncate(folder / "members.npy", 200)
    elif damage == "empty":
        os.truncate(folder / "members.npy", 0)
    elif damage == "bad header":
        (folder / "contents.npy").write_bytes(BAD_NPY)
    elif damage == "no meta":
        (folder / "meta.json").unlink()
    else:
        (folder / "meta.json").write_text("[]")
    assert load(root, tmp_path / "data").split(4).manifest() == before


def test_a_second_start_reads_no_shard_and_a_changed_shard_is_read_again(tmp_path, monkeypatch):
    root = animals(tmp_path / "animals")
    first = load(root, tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr("ssl_lab.data.shard_index.scan_shard", lambda *_, **__: pytest.fail("read again"))
        second = load(root, tmp_path / "data")
    assert second.split(4).manifest() == first.split(4).manifest()
    assert second.style == first.style
    write(root / "001.tar", [{"__key__": str(n), "png": encoded(n + 100), "cls": str(n % 2)} for n in range(6)])
    changed = load(root, tmp_path / "data")
    assert pixels_of(changed, [6])[0, 2].max() == 100
    assert changed.images.fingerprint() != first.images.fingerprint()


def test_a_shard_that_goes_away_says_so(tmp_path):
    pool = load(animals(tmp_path / "animals"), tmp_path / "data")
    os.truncate(tmp_path / "animals/001.tar", 700)
    with pytest.raises(UsageError, match=r"byte \d+ of .*001.tar could be read when the shards were indexed"):
        pixels_of(pool)


def test_a_shard_that_cannot_be_opened_now_is_not_left_out_for_good(tmp_path, monkeypatch):
    root = animals(tmp_path / "animals")

    def refuse(path):
        if path.name == "001.tar":
            raise PermissionError(errno.EACCES, "Permission denied")
        return Bounded(path)

    with monkeypatch.context() as patch:
        patch.setattr("ssl_lab.data.shard_scan.Bounded", refuse)
        with pytest.raises(UsageError, match=r"cannot read .*/001.tar: Permission denied"):
            load(root, tmp_path / "data")
    assert len(load(root, tmp_path / "data")) == 18


def test_shards_that_cannot_be_used(tmp_path):
    write(tmp_path / "none.tar", [{"__key__": "1", "txt": b"cat"}])
    with pytest.raises(UsageError, match=r"none of the 1 shards of .* The first, 'none.tar': it holds no image"):
        load(tmp_path / "none.tar", tmp_path / "data")
    write(tmp_path / "one.tar", [{"__key__": "1", "png": encoded(1), "cls": b"0"}])
    with pytest.raises(UsageError, match="one class only"):
        load(tmp_path / "one.tar", tmp_path / "data")
    write(tmp_path / "test.tar", [{"__key__": "1", "png": encoded(1)}])
    with pytest.raises(UsageError, match="no image that could train"):
        load(tmp_path / "test.tar", tmp_path / "data")


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    root = animals(tmp_path / "animals")
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UsageError, match=r"a pattern such as .* pip install 'ssl_lab\[stream\]'"):
        load(f"{root}/{{000..002}}.tar", tmp_path / "data")
    assert len(load(root, tmp_path / "data")) == 18, "which a folder does not need"


# --- training ---

def digit_shards(root, digits, count=120):
    """The first digits as PNG in three shards, and the pool of them."""
    samples = [{"__key__": f"{row:05}", "png": content, "cls": label}
               for row, (content, label) in enumerate(digit_files(count))]
    for shard in range(3):
        write(root / f"{shard}.tar", samples[shard * count // 3:(shard + 1) * count // 3])
    return digit_pool(root, digits)


def digit_pool(root, digits):
    return replace(load(root, root.parent / "data"), style=digits.style).split(labels=20, seed=0)


def test_a_run_on_shards_is_the_run_in_memory_and_resumes_to_the_sample(tmp_path, digits):
    pool = digit_shards(tmp_path / "digits", digits)
    memory = replace(pool, images=ArrayImages(pixels_of(pool), pool.images.fingerprint()))

    def fit(name, pool, **more):
        return train(tmp_path / name, FixMatch(tiny_net(pool), threshold=0.5), pool, steps=6, **more)

    fit("memory", memory)
    fit("shards", pool)
    assert_same_run(tmp_path / "shards", tmp_path / "memory")
    with pytest.raises(Interrupted):
        fit("cut", pool, callbacks=[signal_at(3, signal.SIGTERM)])
    fit("cut", digit_pool(tmp_path / "digits", digits), resume="auto")
    assert_same_run(tmp_path / "cut", tmp_path / "memory")


def test_ranks_read_parts_of_the_batch_of_one(tmp_path, digits):
    pool = digit_shards(tmp_path / "digits", digits)
    views = FixMatch(tiny_net(pool)).views

    def batch(rank, world):
        return Feed(pool, views, 8, 16, 0, torch.device("cpu"), world)(At(5, 10, 0, rank, world)).unlabeled

    whole, halves = batch(0, 1), [batch(rank, 2) for rank in (0, 1)]
    assert not set(halves[0].indices.tolist()) & set(halves[1].indices.tolist())
    for name, view in whole.views.items():
        assert np.array_equal(np.concatenate([half.views[name] for half in halves]), view)


# --- larger than memory ---

GIB = float(os.environ.get("SSL_LAB_GIB", "0.25"))
JOB = """
import re, resource, sys
from pathlib import Path
import numpy as np
from small_runs import train
from ssl_lab.data import Pool
from ssl_lab.methods import Supervised
from ssl_lab.nets import net

def anonymous():  # bytes of memory that no file backs, which the kernel cannot drop
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def run(out, pixels):
    rows = np.arange(len(pixels))
    pool = Pool.from_arrays(pixels, rows % 10).split(100, valid=200)
    for start in range(0, len(rows), 4096):
        batch = pool.images.take((rows[start:start + 4096] * 7919) % len(rows))
        assert batch[:, 0, 0, 0].any() or start
    train(out, Supervised(net("tiny_8", classes=10, style=pool.style)), pool, steps=4)

out, pixels = Path(sys.argv[1]), np.load(sys.argv[2], mmap_mode="r")
run(out / "small", np.array(pixels[:2000]))
before = anonymous()
run(out / "large", pixels)
maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
(cache,) = [part for part in maps if sys.argv[2] in part.partition("\\n")[0]]
kib = {name: int(value) for name, value in re.findall(r"(?m)^(\\w+):\\s+(\\d+) kB", cache)}
print(anonymous() - before, 1024 * kib["Rss"], kib["Anonymous"] + kib["Shared_Dirty"] + kib["Private_Dirty"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_cache_is_read_whole_without_a_copy_in_memory(tmp_path):
    """What a run holds is bounded; what it has touched of the file stays clean, so that the kernel may drop it."""
    count = int(GIB * 2**30) // (3 * 32 * 32)
    path = tmp_path / "images.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False,
                                                    "shape": (count, 3, 32, 32)})
        start_of_pixels = file.tell()
        file.write(bytes(range(255, -1, -1)) * 12)
        file.truncate(start_of_pixels + count * 3 * 32 * 32)  # a hole, which takes no place on the disk
        os.fdatasync(file.fileno())
    (tmp_path / "job.py").write_text(JOB)
    with start(tmp_path / "job.py", tmp_path, path, OMP_NUM_THREADS="1") as process:
        try:
            out, err = process.communicate(timeout=90 + 60 * GIB)
        finally:
            process.kill()
    assert process.returncode == 0, err
    held, touched, not_clean = map(int, out.split())
    assert touched > 0.3 * GIB * 2**30 or GIB > 4, "it was read through the map"
    assert held < 100 * 2**20 + 64 * count, "no copy of the pixels, only some numbers per image"
    assert not_clean == 0
