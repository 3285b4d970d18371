"""`ssl-lab quickstart` at a tiny size: its files, its page and what it says, against the runs' own files."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import signal
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import ssl_lab as sl
from ssl_lab import quickstart
from ssl_lab.cli import main
from ssl_lab.config import parse
from ssl_lab.data.sources import DATASETS

ROOT = Path(__file__).parent.parent
STEPS = 6
METHODS = ("supervised", "fixmatch")


@dataclass(frozen=True)
class Quickstart:
    out: Path
    stdout: str
    page: str
    summary: dict
    rows: list


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out, stdout = tmp_path_factory.mktemp("runs") / "quickstart", io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
        main(["quickstart", "--out", str(out), "--steps", str(STEPS)])
    return Quickstart(out, stdout.getvalue(), (out / "report.html").read_text(),
                      json.loads((out / "summary.json").read_text()), _rows(out))


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _run_summary(out, method, seed):
    return json.loads((out / f"{method}-{seed}" / "summary.json").read_text())


def test_the_summary_is_that_of_the_runs(done):
    assert [result["method"] for result in done.summary["results"]] == list(METHODS)
    for result in done.summary["results"]:
        runs = [_run_summary(done.out, result["method"], seed) for seed in (0, 1, 2)]
        accuracies = [run["test_accuracy"] for run in runs]
        assert {run["method"] for run in runs} == {result["method"]}
        assert {run["steps"] for run in runs} == {done.summary["steps"]} == {STEPS}
        assert {run["labels"] for run in runs} == {result["labels"]} == {10}
        assert result["test_accuracies"] == accuracies
        assert result["test_accuracy_mean"] == pytest.approx(statistics.mean(accuracies))
        assert result["test_accuracy_spread"] == pytest.approx(statistics.stdev(accuracies))
        assert result["seconds"] == pytest.approx(statistics.mean(run["seconds"] for run in runs), abs=0.01)
    assert done.summary["seeds"] == [0, 1, 2]
    assert done.summary["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_both_methods_get_the_same_three_splits(done):
    splits = {method: [_run_summary(done.out, method, seed)["split"] for seed in (0, 1, 2)] for method in METHODS}
    assert splits["supervised"] == splits["fixmatch"]
    assert len(set(splits["fixmatch"])) == 3


def test_metrics_are_the_rows_of_all_runs(done):
    expected = [{"method": method, "split": seed} | row for method in METHODS for seed in (0, 1, 2)
                for row in _rows(done.out / f"{method}-{seed}")]
    assert done.rows == expected
    assert len(expected) == 2 * 3 * STEPS


def test_the_page_is_self_contained(done):
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", done.page)
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links), links
    assert "<script" not in done.page
    assert done.page.count("<svg") == 3
    for label in ("test accuracy (%)", "mask rate (%)", "pseudo-label accuracy (%)", *METHODS):
        assert f">{label}<" in done.page


def test_the_table_is_printed_and_stands_on_the_page(done):
    for result in done.summary["results"]:
        score = f"{100 * result['test_accuracy_mean']:.1f} ± {100 * result['test_accuracy_spread']:.1f}"
        cells = [result["method"], "10", score, f"{result['seconds']:.1f}"]
        assert re.search(r"\s+".join(map(re.escape, cells)), done.stdout)
        html = '<tr><th scope="row">{}</th><td class="right">{}</td><td class="right">{}</td><td class="right">{}</td>'
        assert html.format(*cells) in done.page


def test_the_views_are_those_of_the_labeled_images(done):
    grid = done.page.partition("What the net sees")[2].partition("The most confident")[0]
    assert re.findall('class="row">([^<]*)<', grid) == ["original", "weak", "strong", "strong, again"]
    images = re.findall("base64,([^\"]*)", grid)
    assert len(images) == 40
    assert len(set(images)) > 35  # a view may leave an image as it is, but seldom


def test_the_wrong_pseudo_labels_are_wrong_and_in_order(done):
    pool = sl.load("digits", image_size=16).split(labels=10, seed=0)
    net = sl.net("tiny_16", style=pool.style, weights=done.out / "fixmatch-0" / "model.safetensors").eval()
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


def test_what_to_try_next_exists(done, monkeypatch):
    report, *_, fetch, mnist, folder = done.stdout.splitlines()[-6:]
    assert str(done.out / "report.html") in report
    _, script, name = shlex.split(fetch)
    assert (ROOT / script).is_file()
    assert name in DATASETS
    for line in (mnist, folder):
        _, script, *arguments = shlex.split(line)
        spec = importlib.util.spec_from_file_location("recipe", ROOT / script)
        recipe = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "recipe", recipe)
        spec.loader.exec_module(recipe)
        assert parse(recipe.Settings, arguments).minutes is not None


def test_a_second_run_gives_the_same_and_says_where_it_is(done, capsys):
    quickstart.run(done.out, STEPS)
    lines = capsys.readouterr().err.splitlines()
    assert [line[:15].strip() for line in lines] == [f"{method} {i}/3" for method in METHODS for i in (1, 2, 3)]
    timeless = [[{**row, "seconds": 0} for row in rows] for rows in (_rows(done.out), done.rows)]
    assert timeless[0] == timeless[1]


def test_a_terminal_gets_a_bar_with_a_name(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with quickstart._Progress("fixmatch 2/3", console) as progress:
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


def test_no_steps_are_one_line(tmp_path, capsys):
    status, line = _fails(["--out", tmp_path, "--steps", 0], capsys)
    assert status == 2
    assert "steps=0" in line
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_status_130(tmp_path, capsys, monkeypatch):
    def stopping(rate):
        signals = iter([signal.SIGINT])

        def at(t):
            for number in signals:  # once
                signal.raise_signal(number)
            return rate

        return sl.schedule.Schedule("stopping", at)

    monkeypatch.setattr(quickstart, "cosine_7_16", stopping)
    status, line = _fails(["--out", tmp_path, "--steps", STEPS], capsys)
    assert status == 130
    assert "afresh" in line
    assert not (tmp_path / "summary.json").exists()
