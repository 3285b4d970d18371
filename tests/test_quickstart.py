"""`ssl-lab quickstart` at a tiny size: its files, its page and what it says, against the runs' own files."""

import contextlib
import functools
import io
import json
import re
import shlex
import signal
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import ssl_lab as sl
from ssl_lab import quickstart
from ssl_lab.cli import main
from ssl_lab.quickstart import page, stages
from ssl_lab.quickstart.stages import BEST, STAGES

STEPS = 6
NAMES = ("supervised", "fixmatch", "chosen", "propagated", "aligned")


@dataclass(frozen=True)
class Quickstart:
    out: Path
    stdout: str
    page: str
    summary: dict
    rows: list


def _quickstart(out, *arguments):
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
        main(["quickstart", "--out", str(out), "--steps", str(STEPS), *arguments])
    return Quickstart(out, stdout.getvalue(), (out / "report.html").read_text(),
                      json.loads((out / "summary.json").read_text()), _rows(out))


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """What is prepared for a seed, which takes a second, serves all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "prepare", functools.cache(stages.prepare))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return _quickstart(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def data():
    return quickstart.prepare(0)


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _run_summary(out, stage, seed=0):
    return json.loads((out / f"{stage}-{seed}" / "summary.json").read_text())


def _split(out, stage):
    return json.loads((out / f"{stage}-0" / "split.json").read_text())


# The stages

def test_the_query_is_told_no_class_and_finds_one_image_of_each(data):
    assert data.drawn.truth[data.asked].tolist() != sorted(data.drawn.truth[data.asked].tolist())
    assert len(data.asked) == len(set(data.asked.tolist())) == 10
    assert set(data.asked.tolist()) <= set(data.drawn.train.tolist())
    assert set(data.drawn.truth[data.asked].tolist()) == set(range(10))


def test_labels_spread_along_the_graph_of_pixels_by_a_slow_reference(data):
    """(I - alpha S) Z = Y in float64, with a full matrix: who gets which label, and how many are right."""
    train, truth = data.chosen.train, data.chosen.truth
    x = sl.load("digits").images.take(train).flatten(1).numpy().astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -1)
    kept = np.zeros_like(cosines)
    for row, near in enumerate(np.argsort(-cosines, axis=1)[:, :10]):
        kept[row, near] = cosines[row, near] ** 3
    weights = kept + kept.T
    degrees = weights.sum(axis=1)
    graph = weights / np.sqrt(degrees[:, None] * degrees)
    seeds = np.zeros((len(train), 10))
    at = np.searchsorted(train, data.asked)
    seeds[at, truth[data.asked]] = 1
    reached = np.linalg.solve(np.eye(len(train)) - 0.99 * graph, seeds)
    sure = np.searchsorted(train, data.sure)
    agree = data.spread.labels[data.sure] == reached[sure].argmax(axis=1)
    assert agree.mean() > 0.99  # neighbors at equal distances may be others
    assert data.right == (data.spread.labels[data.sure] == truth[data.sure]).mean()
    assert data.right > 0.9


def test_what_people_gave_stays_and_no_class_takes_more_than_its_share(data):
    assert set(data.sure.tolist()).isdisjoint(data.asked.tolist())
    np.testing.assert_array_equal(data.spread.labels[data.asked], data.spread.truth[data.asked])
    share = int(stages.SURE * len(data.spread.train) / 10)
    assert np.bincount(data.spread.labels[data.sure]).max() <= share
    assert len(data.chosen.labeled) == len(data.drawn.labeled) == 10  # of a ledger of their own


def test_stages_differ_in_labels_alone(done):
    assert _split(done.out, "supervised") == _split(done.out, "fixmatch")
    assert _split(done.out, "propagated") == _split(done.out, "aligned")
    splits = [_split(done.out, name) for name in NAMES]
    assert all(split["test"] == splits[0]["test"] for split in splits)
    labels = [_run_summary(done.out, name)["labels"] for name in NAMES]
    assert labels[:3] == [10, 10, 10]
    assert labels[3:] == [10 + done.summary["propagated"][0]["labels"]] * 2
    assert {_run_summary(done.out, name)["steps"] for name in NAMES} == {STEPS}


# What it leaves

def test_the_summary_is_that_of_the_runs(done):
    assert [result["stage"] for result in done.summary["results"]] == list(NAMES) == [stage.name for stage in STAGES]
    for result in done.summary["results"]:
        run = _run_summary(done.out, result["stage"])
        assert run["method"] == result["method"]
        assert result["labels"] == 10
        assert result["test_accuracies"] == [run["test_accuracy"]] == [result["test_accuracy_mean"]]
        assert result["test_accuracy_spread"] is None
        assert result["seconds"] == pytest.approx(run["seconds"], abs=0.01)
    assert done.summary["seeds"] == [0]
    assert done.summary["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_metrics_are_the_rows_of_all_runs(done):
    assert done.rows == [{"stage": name, "seed": 0} | row for name in NAMES for row in _rows(done.out / f"{name}-0")]
    assert len(done.rows) == len(NAMES) * STEPS


def test_the_page_is_self_contained(done):
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", done.page)
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links), links
    assert "<script" not in done.page
    assert done.page.count("<svg") == 3
    for label in ("test accuracy (%)", "mask rate (%)", "pseudo-label accuracy (%)", *NAMES):
        assert f">{label}<" in done.page


def test_the_table_is_printed_and_stands_on_the_page(done):
    for result in done.summary["results"]:
        cells = [result["stage"], "10", f"{100 * result['test_accuracy_mean']:.1f}", f"{result['seconds']:.1f}"]
        assert re.search(r"\s+".join(map(re.escape, cells)), done.stdout)
        html = '<tr><th scope="row">{}</th><td class="right">{}</td><td class="right">{}</td><td class="right">{}</td>'
        assert html.format(*cells) in done.page
    assert "one seed" in done.stdout
    assert "This is one seed" in done.page


def test_the_page_shows_what_was_drawn_and_asked_and_views_of_it(done, data):
    labeled = done.page.partition("Which ten images")[2].partition("Labels that spread")[0]
    assert re.findall('class="row">([^<]*)<', labeled) == ["drawn", "chosen"]
    captions = re.findall(r"<figcaption>(\d)</figcaption>", labeled)
    assert captions == [*map(str, range(10)), *map(str, data.drawn.truth[data.asked].tolist())]
    assert done.summary["asked"] == [data.asked.tolist()]
    assert f"{len(data.sure):,} labels that nobody gave. {data.right:.1%} of them" in done.page
    grid = done.page.partition("What the net sees")[2].partition("The most confident")[0]
    assert re.findall('class="row">([^<]*)<', grid) == ["original", "weak", "strong", "strong, again"]
    images = re.findall("base64,([^\"]*)", grid)
    assert len(images) == 40
    assert len(set(images)) > 35  # a view may leave an image as it is, but seldom


def test_the_mistakes_are_wrong_and_in_order(done):
    pool = sl.load("digits", image_size=16).split(labels=10, seed=0)
    net = sl.net("tiny_16", style=pool.style, weights=done.out / f"{BEST.name}-0" / "model.safetensors").eval()
    with torch.no_grad():
        probs = net(pool.images.take(pool.train).float() / 255).logits.double().softmax(1).numpy()
    truth, said = pool.truth[pool.train], probs.argmax(1)
    order = np.argsort(-probs.max(1), kind="stable")
    expected = [(truth[i], said[i], 100 * probs[i, said[i]]) for i in order if truth[i] != said[i]]
    shown = re.findall(r"<figcaption>true (\d), said (\d), ([\d.]+)%</figcaption>", done.page)
    assert len(shown) == 20
    shares = [float(share) for _, _, share in shown]
    assert shares == pytest.approx([share for *_, share in expected[:20]], abs=0.06)
    near = {(str(true), str(guess)) for true, guess, share in expected if share > shares[-1] - 0.2}
    assert {(true, guess) for true, guess, _ in shown} <= near  # equals may change places
    assert f"wrong on {len(expected):,} of {len(truth):,}" in done.page


def test_several_seeds_have_means_and_spreads(tmp_path, monkeypatch):
    for module in (quickstart, page):
        monkeypatch.setattr(module, "STAGES", (STAGES[0], BEST))
    two = _quickstart(tmp_path / "two", "--seeds", "2")
    for result in two.summary["results"]:
        accuracies = [_run_summary(two.out, result["stage"], seed)["test_accuracy"] for seed in (0, 1)]
        assert result["test_accuracies"] == accuracies
        assert result["test_accuracy_mean"] == pytest.approx(statistics.mean(accuracies))
        assert result["test_accuracy_spread"] == pytest.approx(statistics.stdev(accuracies))
        assert f"{100 * statistics.mean(accuracies):.1f} ± {100 * statistics.stdev(accuracies):.1f}" in two.stdout
    assert "mean ± standard deviation over 2 seeds" in two.stdout
    assert "95% interval of the whole difference over 2 seeds" in two.page
    same = len(set(two.summary["asked"][0]) & set(two.summary["asked"][1]))
    assert f"{same} of the 10 images that the query chooses are the same with every seed" in two.page


# The model in use

def test_it_ends_with_what_the_model_says_of_new_images(done, capsys):
    new = [done.out / "new" / f"{number}.png" for number in range(1, 6)]
    found = sl.open(done.out / f"{BEST.name}-0", precision="fp32").predict(new)
    with np.load(done.out / f"{BEST.name}-0" / "predictions.npz") as kept:
        logits = torch.from_numpy(kept["test_logits"][:5]).double()
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).numpy(), atol=1e-5)
    pool = sl.load("digits", image_size=16)
    for one, label, confidence, truth in zip(done.summary["new"], found.labels, found.confidence,
                                             pool.truth[pool.test[:5]].tolist(), strict=True):
        assert (one["label"], one["truth"]) == (label, str(truth))
        line = f"{one['file']}  {label}, {confidence:.1%} sure" + f" (wrong: it is {truth})" * (label != str(truth))
        assert f"    {line}\n" in done.stdout
        assert f"<figcaption>{label}, {confidence:.1%} sure</figcaption>" in done.page


def test_the_commands_that_it_prints_work(done, capsys):
    lines = [line.strip().partition("#")[0] for line in done.stdout.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("ssl-lab")]
    assert len(commands) > 3
    assert "recipes" not in done.stdout  # which the installed package has not
    main(commands[0][1:])  # predict
    assert capsys.readouterr().out.count("new/") == 5
    for words in commands[1:]:
        with pytest.raises(SystemExit) as stop:
            main([words[1], "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words if word.startswith("--"))


def test_a_second_run_gives_the_same_and_says_where_it_is(done, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "prepare", stages.prepare)
    quickstart.run(done.out, STEPS)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("digits: ")]
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all(stage.said in line for stage, line in zip(STAGES, lines, strict=True))
    timeless = [[{**row, "seconds": 0} for row in rows] for rows in (_rows(done.out), done.rows)]
    assert timeless[0] == timeless[1]


def test_a_terminal_gets_a_bar_with_a_name(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with stages.Progress("fixmatch 2/3", console) as progress:
        progress.start("fixmatch", tmp_path, 0, 10)
        progress.step(5)
    assert "fixmatch 2/3" in console.file.getvalue()


def _fails(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quickstart", *map(str, arguments)])
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return stop.value.code, line


def test_an_out_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, line = _fails(["--out", tmp_path / "file" / "quickstart"], capsys)
    assert status == 2
    assert line.startswith(f"error: cannot write {tmp_path / 'file'}")


@pytest.mark.parametrize(("flag", "said"), [("--steps", "steps=0"), ("--seeds", "--seeds 0: expected 1 or more")])
def test_none_is_one_line(tmp_path, capsys, flag, said):
    status, line = _fails(["--out", tmp_path, flag, 0], capsys)
    assert status == 2
    assert said in line
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_status_130(tmp_path, capsys, monkeypatch):
    def stopping(rate):
        signals = iter([signal.SIGINT])

        def at(t):
            for number in signals:  # once
                signal.raise_signal(number)
            return rate

        return sl.schedule.Schedule("stopping", at)

    monkeypatch.setattr(stages, "cosine_7_16", stopping)
    with pytest.raises(SystemExit) as stop:
        main(["quickstart", "--out", str(tmp_path), "--steps", str(STEPS)])
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command starts the quickstart afresh"
    assert not (tmp_path / "summary.json").exists()
