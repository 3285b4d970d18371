"""Queries of pools that do not fit into memory twice: float16 files read in blocks, rows shared among ranks."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import as_two_ranks, several_ranks

from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries import badge, cluster_margin, coverage, distances, greedy, share
from ssl_lab.active.queries.base import highest, places
from ssl_lab.active.queries.distances import precise_squared_distances
from ssl_lab.active.queries.facility_location import compared
from ssl_lab.active.queries.share import Share
from ssl_lab.active.queries.view import PoolView
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features import k_means

SHARED = ["random", "margin", "entropy", "least_confidence", "bald", "mean_std", "variation_ratio", "view_disagreement",
          "k_center", "badge", "facility_location", "max_herding", "uncertainty_herding",
          "uncertainty_herding(0.3, 1.0)", "committee", "power(margin)", "gibbs(entropy)",
          "prefilter(margin, k_center)"]
RANKED = ["random", "margin", "bald", "k_center", "badge", "facility_location", "uncertainty_herding", "power(margin)",
          "prefilter(margin, k_center)"]  # one of each kind


def _softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def _view(rows=203, labeled=6, seed=0, dtype=np.float32, ranks=share.ALONE):
    """With rows of which there are several, so that there are ties."""
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((rows, 5)) + 2 * draws.standard_normal((4, 5))[draws.integers(4, size=rows)]
    same = np.minimum(draws.integers(rows, size=rows), np.arange(rows))
    x = np.where(draws.random((rows, 1)) < 0.3, x[same], x)
    labels = np.full(rows, -1)
    labels[draws.permutation(rows)[: labeled + 9]] = [*np.arange(labeled) % 3, *[-2] * 9]
    logits = x @ draws.standard_normal((5, 3))
    samples = _softmax(logits[:, None] + x[:, :4, None])
    arrays = {"embeddings": x, "probs": _softmax(logits), "mc_probs": samples, "view_probs": samples}
    return PoolView(labels, **{name: array.astype(dtype) for name, array in arrays.items()}, ranks=ranks)


def _picks(ranks):
    views = [(_view(labeled=6, ranks=ranks), 20), (_view(labeled=0, dtype=np.float16, ranks=ranks), 20),
             (_view(rows=30, labeled=3, ranks=ranks), 1)]  # the last of two blocks: a third rank has none
    return {(name, number): make_query(name)(view, budget, 3).tolist() for name in RANKED
            for number, (view, budget) in enumerate(views)}


def _refused(ranks):
    """What is said of a row that only the last rank sees, and of a query that no two ranks compute."""
    said = []
    view = _view(ranks=ranks)
    broken = view.embeddings.copy()
    broken[-1] = np.nan
    for call in (lambda: PoolView(view.labels, embeddings=broken, ranks=ranks), lambda: make_query("bait")(view, 3)):
        with pytest.raises(UsageError) as error:
            call()
        said.append(str(error.value))
    return said


def _small(patch):
    """Blocks so small that ranks have some each, and few rows that are looked at."""
    patch.setattr(share, "ROWS", 16)
    patch.setattr(greedy, "HOT", 8)
    patch.setattr(badge, "BLOCK", 12)


def _of_rank(rank):
    with pytest.MonkeyPatch.context() as patch:
        _small(patch)
        ranks = Runtime(torch.device("cpu"), "fp32", "", rank, dist.get_world_size())
        return _picks(ranks), _refused(ranks)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_chooses_what_one_does(world, tmp_path, monkeypatch):
    assert {make_query(name).reads for name in SHARED} == {"shares"}
    _small(monkeypatch)
    alone = _picks(share.ALONE)
    for picks, said in several_ranks(_of_rank, tmp_path, world):
        assert picks == alone
        assert said[0] == "embeddings of id 202 hold NaN or infinity; repair or drop them (1 such rows)"
        assert said[1].startswith(f"bait is not computed by several ranks, of which there are {world}; start")


def test_the_command_is_one_of_ranks(tmp_path):
    view = _view(rows=20_000)
    for name in ("embeddings", "probs"):
        np.save(tmp_path / f"{name}.npy", getattr(view, name).astype(np.float16))
    alone = make_query("badge")(PoolView(np.full(20_000, -1), embeddings=np.load(tmp_path / "embeddings.npy"),
                                         probs=np.load(tmp_path / "probs.npy")), 9)
    printed, _ = as_two_ranks("-m", "ssl_lab.cli", "query", "--query", "badge", "--budget", 9, "--embeddings",
                              tmp_path / "embeddings.npy", "--probs", tmp_path / "probs.npy")
    assert [int(row) for row in printed.split()] == alone.tolist()


# Blocks


@pytest.mark.parametrize("total", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_shares_are_all_rows_once_in_the_same_blocks(total, world):
    found = []
    for rank in range(world):
        mine = Share(total, Runtime(torch.device("cpu"), "fp32", "", rank, world), 16)
        parts = [*mine]
        assert sum(part.stop - part.start for part in parts) == len(mine)
        assert [mine.own(part).start for part in parts] == [part.start - mine.start for part in parts]
        found += parts
    assert found == [slice(start, min(start + 16, total)) for start in range(0, total, 16)]


@pytest.mark.parametrize("name", SHARED)
def test_blocks_do_not_matter(name, monkeypatch):
    views = [_view(labeled=labeled, seed=seed) for labeled in (0, 6) for seed in range(2)]
    whole = [make_query(name)(view, 20).tolist() for view in views]
    monkeypatch.setattr(share, "ROWS", 16)
    assert [make_query(name)(view, 20).tolist() for view in views] == whole


def test_the_highest_are_those_of_a_sort():
    draws = np.random.default_rng(0)
    for count in (1, 7, 50, 60):
        scores = draws.integers(5, size=60).astype(np.float32)
        scores[:3] = np.nan
        place = places(4, Share(60))
        order = sorted(range(60), key=lambda i: (np.inf if np.isnan(scores[i]) else -scores[i], place[i]))
        assert highest(scores, count, 4).tolist() == order[:count]
        kept, outside = share.first(np.nan_to_num(scores, nan=-1), place, count)
        assert set(kept.tolist()) == set(order[:count])
        assert count == 60 or outside == (-np.nan_to_num(scores, nan=-1)[order[count]], place[order[count]])


def test_precise_distances_are_the_same_in_any_company():
    draws = np.random.default_rng(0)
    x = (draws.standard_normal((40, 37)) + 20).astype(np.float32).astype(np.float64)
    found = precise_squared_distances(x, x[:9])
    assert np.allclose(found, ((x[:, None] - x[:9]) ** 2).sum(axis=2), rtol=1e-6, atol=0)
    assert not np.diag(found).any()
    for row in range(40):
        assert np.array_equal(precise_squared_distances(x[[row]], x[:9])[0], found[row])
        assert np.array_equal(precise_squared_distances(x[row:], x[3:4])[:, 0], found[row:, 3])


# float16


@pytest.mark.parametrize("name", [*SHARED, "cal", "typiclust", "prob_cover", "cluster_margin", "soft_rank(margin)",
                                  "without_duplicates(margin)", "prefilter(margin, typiclust)"])
def test_a_file_of_float16_gives_the_choice_of_its_float32(name, tmp_path):
    half = _view(dtype=np.float16)
    maps, wide = {}, {}
    for array in ("embeddings", "probs", "mc_probs", "view_probs"):
        np.save(tmp_path / f"{array}.npy", getattr(half, array))
        maps[array] = np.load(tmp_path / f"{array}.npy", mmap_mode="r")
        wide[array] = maps[array].astype(np.float32)
    view = PoolView(half.labels, **maps)
    assert isinstance(view.embeddings, np.memmap)
    assert view.embeddings.dtype == np.float16
    assert make_query(name)(view, 20).tolist() == make_query(name)(PoolView(half.labels, **wide), 20).tolist()


@pytest.mark.parametrize("name", ["margin", "k_center", "badge", "max_herding", "uncertainty_herding"])
def test_memory_is_less_than_a_copy_of_the_file(name, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "ROWS", 512)
    monkeypatch.setattr(greedy, "HOT", 256)
    name += "(most=400)" if "herding" in name else ""
    assert _peak(name, tmp_path, 20_000) < 6e6  # of 10 MB; 20 MB in float32


@pytest.mark.parametrize("name", ["typiclust", "cluster_margin", "prob_cover"])
def test_memory_of_clusters_is_less_than_a_copy_of_the_file(name, tmp_path, monkeypatch):
    for module, attribute, value in [(k_means, "ROWS", 1000), (k_means, "PER_CLUSTER", 16), (k_means, "BLOCK", 2**16),
                                     (distances, "BLOCK", 2**17), (cluster_margin, "WHOLE", 4000),
                                     (coverage, "ROWS", 1000), (coverage, "SAMPLE", 256)]:
        monkeypatch.setattr(module, attribute, value)
    assert _peak(name, tmp_path, 30_000) < 15e6  # of 15 MB; 30 MB in float32


def _peak(name, folder, rows):
    """The memory that a query takes beside a file of 256 float16 a row."""
    draws = np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float16, (rows, 256))
    for start in range(0, len(x), 1000):
        x[start : start + 1000] = draws.standard_normal((1000, 256), dtype=np.float32)
    labels = np.full(len(x), -1)
    labels[:20] = np.arange(20) % 4
    probs = _softmax(x[:, :4].astype(np.float32))
    x = np.load(folder / "x.npy", mmap_mode="r")
    make_query(name)(PoolView(labels[:500], embeddings=x[:500], probs=probs[:500]), 5)  # what is imported at first
    tracemalloc.start()
    query = make_query(name)(PoolView(labels, embeddings=x, probs=probs), 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(query) == 20
    return peak


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_float16_that_is_not_finite_is_refused(wrong):
    x = np.ones((4, 2), dtype=np.float16)
    x[2, 1] = wrong
    with pytest.raises(UsageError, match=r"embeddings of id 2 hold NaN or infinity; .* \(1 such rows\)"):
        PoolView(np.full(4, -1), embeddings=x)
    with pytest.raises(UsageError, match="probs of id 2 hold NaN"):
        PoolView(np.full(4, -1), probs=x / 2)


# Facility location of many rows


def test_of_many_rows_drawn_ones_stand_for_all():
    draws = np.random.default_rng(0)
    x = draws.standard_normal((2000, 6)) + 3 * draws.standard_normal((9, 6))[draws.integers(9, size=2000)]
    labels = np.full(2000, -1)
    labels[:5], labels[5:9] = 0, -2
    view = PoolView(labels, embeddings=x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp(2 * (unit @ unit.T - 1))

    def covered(picks):
        return near[9:][:, [*range(5), *picks]].max(axis=1).mean()

    exact, chance = (covered(make_query(name)(view, 15)) for name in ("max_herding", "random"))
    assert not make_query("max_herding").notes(view, 15)
    some = compared(view, 15, 0, 500)
    assert len(some) == 500
    assert set(some) <= set(view.candidates)
    query = make_query("max_herding(most=500)")
    assert query.notes(view, 15)[0].startswith("max_herding compares 500 of the 1,991 rows without a label, drawn from")
    assert len(set(query(view, 700))) == 700, "a budget above it"
    assert covered(query(view, 15)) > exact - 0.2 * (exact - chance)
