"""The store: equal to the net's own features, keyed by what changes them, whole or resumed."""

import errno
import json
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from small_runs import BAD_NPY, room_for

from ssl_lab.data import load
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features import FeatureStore, embed, store, top_k
from ssl_lab.features.search import within
from ssl_lab.files import reserve
from ssl_lab.nets import net
from ssl_lab.views import Eval, Weak

RUNTIME = Runtime(torch.device("cpu"), "fp32", "a test")


def tiny(pool, seed=0):
    return net("tiny_4", classes=10, style=pool.style, seed=seed)


@pytest.fixture
def pool(digits):
    """300 digits."""
    rows = np.arange(300)
    return replace(digits, images=type(digits.images)(digits.images.pixels[:300]), truth=digits.truth[:300],
                   train=rows[:200], valid=rows[:0], test=rows[200:])


@pytest.fixture
def built(pool, tmp_path):
    return FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)


def test_embeddings_are_the_features_of_the_net_in_evaluation_mode(pool):
    made = tiny(pool)
    made(torch.rand(8, 1, 8, 8))  # moves the running statistics, so that the modes differ
    rows = np.array([5, 3, 250, 3])
    found = embed(made, pool, rows, RUNTIME, batch=3)
    assert made.training
    made.eval()
    expected = torch.stack([made(pool.images.take(rows[i:i + 1]).float() / 255).features[0] for i in range(4)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    embed(made, pool, rows, RUNTIME)
    assert not made.training
    assert embed(made, pool, rows[:0], RUNTIME).shape == (0, made.features_dim)


def test_how_long_embedding_takes_is_seen_where_all_lanes_are_full(pool, monkeypatch):
    """A batch alone would leave all processors but one idle."""
    module, asked = sys.modules[embed.__module__], []
    monkeypatch.setattr(module, "lanes", lambda runtime: 3)
    monkeypatch.setattr(module, "batch_of", lambda *_: 70)
    monkeypatch.setattr(module, "embed", lambda net, pool, rows, runtime: asked.append(len(rows)))
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 9.0, 10.0, 11.0, 12.0, 12.42]).__next__)
    assert module.seconds_to_embed(tiny(pool), pool, RUNTIME) == pytest.approx(0.42 / 210)
    assert asked == [210] * 3


def test_images_are_embedded_at_the_size_that_was_loaded():
    pool = load("digits", image_size=16)
    made = tiny(pool)
    rows = np.arange(3)
    found = embed(made, pool, rows, RUNTIME)
    large = torch.nn.functional.interpolate(load("digits").images.take(rows), size=(16, 16), mode="bicubic",
                                            antialias=True)
    np.testing.assert_allclose(found, made.eval()(large / 255).features.detach().numpy(), atol=1e-5)


def test_a_view_draws_the_same_numbers_each_time(pool):
    made, rows = tiny(pool), np.arange(20)
    weak = embed(made, pool, rows, RUNTIME, view=Weak)
    np.testing.assert_array_equal(weak, embed(made, pool, rows, RUNTIME, view=Weak))
    assert not np.allclose(weak, embed(made, pool, rows, RUNTIME))


def test_a_store_holds_the_features_and_opens_again(pool, built):
    np.testing.assert_allclose(built.features, embed(tiny(pool), pool, np.arange(300), RUNTIME), atol=1e-6)
    again = FeatureStore(built.folder)
    assert isinstance(again.features, np.memmap)
    assert len(again) == 300
    with pytest.raises(ValueError, match="read-only"):
        again.features[0, 0] = 1


def test_half_of_the_file(pool, built, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 70)
    half = FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME, half=True)
    assert half.folder != built.folder
    assert isinstance(half.features, np.memmap)
    assert half.features.dtype == np.float16
    np.testing.assert_array_equal(half.features, built.features.astype(np.float16))
    wide = half.features.astype(np.float32)
    for ours, theirs in zip(half.search(wide[:9], 4), top_k(wide[:9], wide, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    query, row, cosine = half.range_search(wide[:9], 0.99)
    np.testing.assert_array_equal(np.stack([query, row, cosine]), np.stack(within(wide[:9], wide, 0.99)))
    np.testing.assert_array_equal(FeatureStore(half.folder).features, half.features)
    assert FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME, half=True).folder == half.folder


def test_float16_that_does_not_hold_the_features_is_an_error(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "embed", lambda net, pool, rows, *_: np.full((len(rows), 16), -65_505.0, np.float32))
    with pytest.raises(UsageError, match="tiny_4 has features beyond 65504, which float16 does not hold; build"):
        FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME, half=True)
    assert len(FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)) == 300


def test_a_whole_store_is_not_built_again(pool, built, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "embed", None)
    assert FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME).folder == built.folder


def test_a_build_that_was_cut_goes_on_where_it_stopped(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 70)
    calls = []

    def cut(net, pool, rows, *others):
        calls.append(rows[0])
        if rows[0] == 140 and calls.count(140) == 1:
            raise KeyboardInterrupt
        return embed(net, pool, rows, *others)

    monkeypatch.setattr(store, "embed", cut)
    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())  # and a file for the lock
    with pytest.raises(UsageError, match=r"holds 140 of 300 images; FeatureStore\.build"):
        FeatureStore(folder)
    whole = FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)
    assert calls == [0, 70, 140, 140, 210, 280]
    np.testing.assert_allclose(whole.features, embed(tiny(pool), pool, np.arange(300), RUNTIME), atol=1e-6)


@pytest.mark.parametrize("damage", ["meta", "array", "header"])
def test_a_damaged_store_is_built_anew(pool, built, tmp_path, damage):
    if damage == "meta":
        (built.folder / "meta.json").write_text("{")
    else:
        (built.folder / "features.npy").write_bytes(b"nothing" if damage == "array" else BAD_NPY)
    with pytest.raises(UsageError, match="is no feature store"):
        FeatureStore(built.folder)
    again = FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)
    np.testing.assert_array_equal(again.features, embed(tiny(pool), pool, np.arange(300), RUNTIME))


def test_the_key_changes_with_what_changes_the_features(pool):
    made = tiny(pool)
    key = store.key_of(made, pool, Eval, RUNTIME)
    assert key == store.key_of(tiny(pool), pool, Eval, RUNTIME)
    nine = net("tiny_4", classes=9, style=pool.style, seed=0)
    assert key == store.key_of(nine, pool, Eval, RUNTIME)  # the head plays no part
    bright = replace(pool, images=type(pool.images)(pool.images.pixels // 2))
    others = [store.key_of(tiny(pool, seed=1), pool, Eval, RUNTIME), store.key_of(made, bright, Eval, RUNTIME),
              store.key_of(made, pool, Weak, RUNTIME),
              store.key_of(made, pool, Eval, replace(RUNTIME, precision="bf16"))]
    with torch.no_grad():
        made(torch.rand(4, 1, 8, 8))  # running statistics count as weights
    others.append(store.key_of(made, pool, Eval, RUNTIME))
    assert len({key, *others}) == 6


def test_ranks_share_the_work(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 64)
    meeting, seen = threading.Barrier(2), {0: [], 1: []}

    @dataclass
    class Rank(Runtime):
        def wait(self):
            meeting.wait(timeout=30)

        def any(self, *flags):
            self.wait()  # both find the same
            return list(flags)

        def from_first(self, make):
            if self.main:
                make()
            self.wait()

    def watched(net, pool, rows, runtime, view):
        seen[runtime.rank] += rows.tolist()
        return embed(net, pool, rows, runtime, view)

    monkeypatch.setattr(store, "embed", watched)
    runtimes = [Rank(torch.device("cpu"), "fp32", "", rank, 2) for rank in range(2)]
    threads = [threading.Thread(target=FeatureStore.build, args=(tiny(pool), pool, tmp_path, runtime))
               for runtime in runtimes]
    for thread in threads:
        thread.start()
        time.sleep(0.2)  # the second one comes late
    for thread in threads:
        thread.join()
    assert sorted(seen[0] + seen[1]) == list(range(300))
    assert min(len(rows) for rows in seen.values()) > 100
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())  # and a file for the lock
    expected = embed(tiny(pool), pool, np.arange(300), RUNTIME)
    np.testing.assert_allclose(FeatureStore(folder).features, expected, atol=1e-6)


def test_search_small_and_large(built, monkeypatch):
    queries = built.features[:20] + 0.01
    exact = built.search(queries, 5)
    for ours, theirs in zip(exact, top_k(queries, built.features, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not (built.folder / "index.faiss").exists()
    monkeypatch.setattr(store, "LARGE", 100)
    _, rows = built.search(queries, 5)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact[1], rows, strict=True)]) > 0.95
    again = FeatureStore(built.folder)
    monkeypatch.setattr(store.Approximate, "build", None)  # the saved index is used
    np.testing.assert_array_equal(again.search(queries, 5)[1], rows)
    tuned = json.loads((built.folder / "index.json").read_text())
    assert (tuned["factor"], tuned["aim"]) == (again.index().factor, 0.99)


def test_an_index_for_more_recall_replaces_the_saved_one(built):
    assert built.index(0.5).aim == 0.5
    assert built.index(0.9).aim == 0.9
    assert FeatureStore(built.folder).index(0.6).aim == 0.9


def test_near_duplicates_are_all_close_pairs_once(pool, tmp_path):
    pixels = pool.images.pixels.copy()
    pixels[17], pixels[250] = pixels[40], pixels[3]
    twins = replace(pool, images=type(pool.images)(pixels))
    made = FeatureStore.build(tiny(twins), twins, tmp_path, RUNTIME)
    pairs, alike = made.near_duplicates(0.99999)
    assert {(17, 40), (3, 250)} <= set(map(tuple, pairs.tolist()))
    pairs, alike = made.near_duplicates(0.999, k=299)
    query, row, cosine = made.range_search(made.features, 0.999)
    upper = query < row
    assert sorted(map(tuple, pairs.tolist())) == list(zip(query[upper].tolist(), row[upper].tolist(), strict=True))
    np.testing.assert_allclose(np.sort(alike), np.sort(cosine[upper]), atol=1e-6)
    assert (np.diff(alike) <= 0).all()
    assert made.near_duplicates(1.5)[0].shape == (0, 2)


def test_kmeans_finds_what_is_apart(built, monkeypatch):
    built.features = np.repeat(np.eye(4, 16, dtype=np.float32), 25, axis=0)
    built.features += 0.01 * np.random.default_rng(0).standard_normal(built.features.shape).astype(np.float32)
    clusters, centers = built.kmeans(4)
    assert sorted({tuple(set(part)) for part in clusters.reshape(4, 25).tolist()}) == [(0,), (1,), (2,), (3,)]
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(built.kmeans(4)[0], clusters)
    monkeypatch.setattr(store, "_ROWS", 7)  # of which features are read at a time, as from a file of float16
    built.features = built.features.astype(np.float16)
    np.testing.assert_array_equal(built.kmeans(4)[0], clusters)
    with pytest.raises(UsageError, match="0 clusters of 100 images"):
        built.kmeans(0)


def test_errors(built, pool, tmp_path):
    with pytest.raises(UsageError, match="is no feature store"):
        FeatureStore(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"queries have shape \[2, 3\], expected \[n, 16\]"):
        built.search(np.zeros((2, 3)), 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        FeatureStore.build(tiny(pool), pool, tmp_path / "file", RUNTIME)


def test_a_partial_view_is_part_of_the_key(pool):
    from ssl_lab.views import Strong

    keys = {store.key_of(tiny(pool), pool, partial(Strong, ops=ops), RUNTIME) for ops in (1, 2)}
    assert len(keys) == 2


def at_once(pool, out):
    """What two threads that build at once are given."""
    stores, nets = {}, [tiny(pool), tiny(pool)]  # made in turn: that seeds torch for all threads
    threads = [threading.Thread(target=lambda i=i: stores.update({i: FeatureStore.build(nets[i], pool, out, RUNTIME)}))
               for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [stores[i] for i in range(2)]


def test_of_two_that_build_one_store_one_waits(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "_BLOCK", 64)
    asked = []

    def slow(net, pool, rows, runtime, view):
        asked.extend(rows.tolist())
        time.sleep(0.05)
        return embed(net, pool, rows, runtime, view)

    monkeypatch.setattr(store, "embed", slow)
    stores = at_once(pool, tmp_path)
    assert asked == list(range(300))
    expected = embed(tiny(pool), pool, np.arange(300), RUNTIME)
    for each in stores:
        np.testing.assert_allclose(each.features, expected, atol=1e-6)
    assert capsys.readouterr().err.count("another process makes") == 1


def test_a_full_disk_is_an_error_before_anything_is_embedded(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "embed", lambda *_: pytest.fail("it embedded"))
    with room_for(10_000), pytest.raises(UsageError, match=r"^cannot write .*: File too large\. Free some space there"):
        FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)
    assert not list(tmp_path.rglob("features.npy"))


def test_a_disk_that_fills_up_later_is_an_error_and_the_build_goes_on(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 64)
    blocks = []

    def full(net, pool, rows, *others):
        blocks.append(rows[0])
        if len(blocks) == 3:
            (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
            (folder / "features.npy").rename(folder / "away")
            (folder / "features.npy").symlink_to("/dev/full")
        return embed(net, pool, rows, *others)

    monkeypatch.setattr(store, "embed", full)
    with pytest.raises(UsageError, match=r"^cannot write .*features.npy: No space left on device"):
        FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "away").replace(folder / "features.npy")
    whole = FeatureStore.build(tiny(pool), pool, tmp_path, RUNTIME)
    assert blocks == [0, 64, 128, 128, 192, 256]
    np.testing.assert_allclose(whole.features, embed(tiny(pool), pool, np.arange(300), RUNTIME), atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_a_reserved_file_is_of_zeros_that_have_their_place(tmp_path, monkeypatch, known):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not known:
        monkeypatch.setattr("os.posix_fallocate", unknown)
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"head")
        reserve(file, 3_000_001)
        file.write(b"next")
    content = (tmp_path / "file").read_bytes()
    assert content == b"headnext" + bytes(3_000_001 - 8)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 3_000_001
    with (tmp_path / "full").open("wb") as file, room_for(2_000_000), pytest.raises(OSError, match="File too large"):
        reserve(file, 3_000_000)
