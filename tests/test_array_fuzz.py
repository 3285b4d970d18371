"""Damaged .npy and .npz files at every door that takes them: they are read, or refused in a sentence.

200 files a door; by command as many as wanted: SSL_LAB_FUZZ=2000 pytest tests/test_array_fuzz.py.
"""

import contextlib
import io
import json
import random
import zipfile

import numpy as np
import pytest
from test_image_fuzz import COUNT, mutated

from ssl_lab.active.command import query_command
from ssl_lab.data import load
from ssl_lab.data.inventory import inventory, read_inventory, write_inventory
from ssl_lab.data.pictures import find_pictures
from ssl_lab.data.split import read_rows
from ssl_lab.errors import UsageError
from ssl_lab.report.stored import StoredRun

# NumPy's own, at absurd shapes and at files that it leaves open where they are no zip.
pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
              pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
DRAWS = np.random.default_rng(0)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(members, kind):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return buffer.getvalue()


def damaged_npy(array, rng):
    return mutated(npy(array), [npy(np.arange(7.0))], rng)


def damaged_npz(arrays, rng):
    """The file, or a member before it is packed: of that, the checksum of the zip is right."""
    members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    if rng.random() < 0.5:
        name = rng.choice(sorted(members))
        members[name] = mutated(members[name], list(members.values()), rng)
        return zipped(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    whole = zipped(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return mutated(whole, [whole[::-1]], rng)


IMAGES = {"images": DRAWS.integers(0, 256, (20, 8, 8), dtype=np.uint8), "labels": np.arange(20) % 2}
POOL = load("digits")
PREDICTIONS = {"test_rows": np.arange(6), "test_truth": np.arange(6) % 2,
               "test_logits": DRAWS.standard_normal((6, 2)).astype(np.float32)}


def pool_of_npz(folder, rng):
    (folder / "a.npz").write_bytes(damaged_npz(IMAGES, rng))
    load(folder / "a.npz", folder / "data")


def pictures_of_npz(folder, rng):
    (folder / "a.npz").write_bytes(damaged_npz(IMAGES, rng))
    list(find_pictures(folder / "a.npz").stream)


def pictures_of_npy(folder, rng):
    (folder / "a.npy").write_bytes(damaged_npy(IMAGES["images"], rng))
    list(find_pictures(folder / "a.npy").stream)


def rows_of_a_split(folder, rng):
    (folder / "a.npy").write_bytes(damaged_npy(np.arange(5), rng))
    read_rows(folder / "a.npy", "labeled")


def arrays_of_a_query(folder, rng):
    (folder / "probs.npy").write_bytes(damaged_npy(np.full((9, 3), 1 / 3, np.float32), rng))
    query_command("margin", 2, probs=folder / "probs.npy", out=folder / "chosen.txt")


def rows_of_a_query(folder, rng):
    np.save(folder / "probs.npy", np.full((9, 3), 1 / 3, np.float32))
    (folder / "a.npy").write_bytes(damaged_npy(np.arange(5), rng))
    query_command("margin", 2, probs=folder / "probs.npy", labeled=folder / "a.npy", out=folder / "chosen.txt")


def images_of_a_run(folder, rng):
    write_inventory(folder, inventory(POOL))
    (folder / "images.npz").write_bytes(mutated((folder / "images.npz").read_bytes(), [b"PK" * 9], rng))
    read_inventory(folder)


def predictions_of_a_run(folder, rng):
    (folder / "summary.json").write_text(json.dumps({}))
    (folder / "predictions.npz").write_bytes(damaged_npz(PREDICTIONS, rng))
    StoredRun.read(folder)


@pytest.mark.parametrize("door", [pool_of_npz, pictures_of_npz, pictures_of_npy, rows_of_a_split, arrays_of_a_query,
                                  rows_of_a_query, images_of_a_run, predictions_of_a_run])
def test_a_damaged_array_is_read_or_refused_in_a_sentence(tmp_path, capsys, door):
    rng, refused = random.Random(0), 0
    for _ in range(COUNT):
        with contextlib.suppress(UsageError):
            door(tmp_path, rng)
            refused -= 1
        refused += 1
    assert refused > COUNT / 10
