"""What a pick stands for: the assignment, and where it is written."""

import csv
import json

import numpy as np
import pytest
from small_runs import flat_net

from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people.label_studio import LabelStudio
from ssl_lab.active.people.oracle import Asked
from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries import distances
from ssl_lab.active.show import show_loop
from ssl_lab.active.stands import stands_for
from ssl_lab.data import load


@pytest.mark.parametrize("block", [2**24, 20])
def test_each_row_belongs_to_the_pick_that_it_is_most_like(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    picks, others = np.array([7, 3, 20]), np.setdiff1d(np.arange(40), [7, 3, 20, 11])
    found = stands_for(x, picks, others)
    y = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    groups = [[], [], []]
    for row in others.tolist():
        groups[max(range(3), key=lambda place: float(y[picks[place]] @ y[row]))].append(row)
    assert found.counts == tuple(map(len, groups))
    assert sum(found.counts) == 36
    for place, group in enumerate(groups):
        assert list(found.examples[place]) == sorted(group, key=lambda row: -float(y[picks[place]] @ y[row]))[:5]
    assert stands_for(x, picks[:0], others) == ((), ())
    assert stands_for(x, picks, others[:0]) == ((0, 0, 0), ((), (), ()))


@pytest.mark.parametrize("query", ["margin", "typiclust", "random"])
def test_it_is_in_the_record_asked_csv_tasks_and_the_page(query, tmp_path, capsys):
    pool = load("digits").split(labels=10, seed=0)
    loop = ActiveLoop(pool, lambda *_: flat_net(), make_query(query), budget=4, rounds=2, out=tmp_path, device="cpu",
                      precision="fp32")
    ids = loop.ask()
    record = json.loads((tmp_path / "round-000.json").read_text())
    with loop.write_asked().open() as file:
        rows = list(csv.DictReader(file))
    show_loop(loop, "A loop")
    capsys.readouterr()
    page = (tmp_path / "report.html").read_text()
    if query == "random":  # no pass over the pool is made for it alone
        assert record["stands_for"] is None
        assert list(rows[0]) == ["id", "path", "label"]
        assert "like it</div>" not in page
        return
    assert [int(row["stands_for"]) for row in rows] == record["stands_for"]
    assert sum(record["stands_for"]) == len(pool.train) - 10 - 4
    assert not {i for some in record["like"] for i in some} & set(ids.tolist())
    assert "like it</div>" in page
    again = ActiveLoop(pool, lambda *_: flat_net(), make_query(query), budget=4, rounds=2, out=tmp_path, device="cpu",
                       precision="fp32")
    assert again.records == loop.records


def test_label_studio_shows_it(digits, tmp_path):
    studio = LabelStudio(tmp_path, digits)
    studio.write(Asked(np.array([3, 5]), ("", ""), stands_for=(12, 7)))
    assert [task["data"]["stands_for"] for task in json.loads((tmp_path / "tasks.json").read_text())] == [12, 7]
