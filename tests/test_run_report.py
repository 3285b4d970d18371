"""The page of one run: its numbers against brute force, its sections, and what is missing without data."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import digits, signal_at, train

import ssl_lab as sl
from ssl_lab import advise as advise_module
from ssl_lab import afterwards
from ssl_lab.cli import main
from ssl_lab.config import ReadingSettings
from ssl_lab.data import Pool
from ssl_lab.engine.evaluate import rates, tallies
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.features import Health, OnlineAccuracy
from ssl_lab.intervals import wilson
from ssl_lab.label import command as label_command
from ssl_lab.report.charts import confusion_chart, reliability_chart, share_chart
from ssl_lab.report.images import thumbnails
from ssl_lab.report.predicted import (
    by_class,
    calibration_error,
    confident_errors,
    confusion_counts,
    least_confident,
    reliability,
    top_confusions,
)
from ssl_lab.report.run import write_report
from ssl_lab.report.stored import StoredRun
from ssl_lab.report.suggestions import suggestions

HOSTILE = ["<b>&\"cat\"</b>", "dog $x$", "漢字", "a" * 80]


def images(count: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), np.arange(count) % classes


def named_pool(names: list[str], tests: int = 20) -> Pool:
    return Pool.from_arrays(*images(24, len(names)), *(images(tests, len(names), 1) if tests else ()),
                            class_names=names, name="<i>data</i>")


def run_of(pool: Pool, out: Path, **settings: object) -> Path:
    net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    train(out, sl.FixMatch(net, threshold=0.3), pool, steps=3, **settings)
    return out


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


# numbers


def predictions(classes: int = 5, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    truth = random.integers(0, classes - 1, count)  # of the last class there is no image
    logits = 2 * random.normal(size=(count, classes)) + 3 * np.eye(classes)[truth] * random.random((count, 1))
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), truth


def test_confusion_counts_are_those_of_a_loop() -> None:
    probs, truth = predictions()
    said = probs.argmax(axis=1)
    counts = confusion_counts(truth, said, 5)
    for row in range(5):
        for column in range(5):
            assert counts[row, column] == sum(t == row and s == column for t, s in zip(truth, said, strict=True))
    pairs = [(t, s) for t, s in zip(truth.tolist(), said.tolist(), strict=True) if t != s]
    top = top_confusions(counts, 4)
    assert [each.images for each in top] == sorted((pairs.count(pair) for pair in set(pairs)), reverse=True)[:4]
    assert all(each.images == pairs.count((each.truth, each.said)) for each in top)
    assert all(each.share == each.images / (truth == each.truth).sum() for each in top)


def test_classes_are_counted_and_have_wilson_intervals_the_worst_first() -> None:
    probs, truth = predictions()
    said = probs.argmax(axis=1)
    found = by_class(confusion_counts(truth, said, 5))
    assert {each.label for each in found} == set(range(5))
    shares = [each.right / each.images for each in found if each.images]
    assert shares == sorted(shares)
    assert found[-1].label == 4  # the one without images
    assert found[-1].images == 0
    for each in found:
        right = int(((truth == each.label) & (said == each.label)).sum())
        assert (each.images, each.right) == ((truth == each.label).sum(), right)
        assert each.called == (said == each.label).sum()
        assert each.recall == wilson(right, each.images)
        assert each.precision == wilson(right, each.called)


def test_reliability_has_the_calibration_error_that_the_engine_measures() -> None:
    probs, truth = predictions()
    bins = reliability(probs, truth)
    assert sum(each.images for each in bins) == len(truth)
    assert calibration_error(bins) == pytest.approx(rates(tallies(probs, truth))["ece"], abs=1e-12)
    top = probs.max(axis=1)
    for each in bins:
        here = (top > each.low) & (top <= each.high)
        assert each.images == here.sum()
        assert each.right == (probs.argmax(axis=1) == truth)[here].sum()
        assert each.confidence == pytest.approx(top[here].mean())


def test_errors_come_with_falling_and_doubts_with_rising_confidence() -> None:
    probs, truth = predictions()
    wrong, top = probs.argmax(axis=1) != truth, probs.max(axis=1)
    errors, doubts = confident_errors(probs, truth, 10), least_confident(probs, 10)
    assert wrong[errors].all()
    assert top[errors].tolist() == sorted(top[wrong], reverse=True)[:10]
    assert top[doubts].tolist() == sorted(top)[:10]
    assert len(confident_errors(np.eye(3), np.arange(3), 10)) == 0


def test_charts_say_their_numbers_and_escape_names() -> None:
    counts = np.array([[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 2, 0], [0, 0, 0, 5]])
    chart = confusion_chart(counts, HOSTILE)
    assert "dog $x$: 1 of 4 (25.0%)" in chart
    assert chart.count("<rect") == np.count_nonzero(counts) + 1
    shares = share_chart([(name, i, 5) for i, name in enumerate(HOSTILE)])
    low, high = wilson(1, 5)
    assert f"1 of 5 right, 20.0% (95%: {low:.1%} to {high:.1%})" in shares
    assert "<b>" not in chart + shares
    assert "confidence 93% to 100%" in reliability_chart(reliability(np.eye(4), np.arange(4)))


@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails_are_small_and_keep_their_proportions(channels: int) -> None:
    large = np.full((2, channels, 200, 100), 7, np.uint8)
    small = thumbnails(large, 50)
    assert small.shape == (2, channels, 50, 25)
    assert (small == 7).all()
    assert thumbnails(small, 50) is small


# pages


def test_page_of_a_run_holds_what_was_measured(tmp_path: Path) -> None:
    pool = digits().split(labels=50, valid=50)
    train(tmp_path, pool=pool, steps=8)
    page = write_report(tmp_path, pool).read_text()
    assert sections(page) == [
        "What was loaded", "Result", "During training", "Errors by class, on test images",
        "Are its probabilities right?", "The most confident errors on test images", "The least confident test images",
        "Settings", "What to do next"]
    stored = np.load(tmp_path / "predictions.npz")
    said = stored["test_logits"].argmax(axis=1)
    assert (stored["test_truth"] == pool.truth[stored["test_rows"]]).all()
    assert f"{(said == stored['test_truth']).mean():.1%} of {len(said):,} test images right" in page
    low, high = wilson(int((said == stored["test_truth"]).sum()), len(said))
    assert f"({100 * low:.1f} to {100 * high:.1f})" in page
    for row, column in ((0, 0), (3, 5), (8, 1)):
        count = ((stored["test_truth"] == row) & (said == column)).sum()
        total = (stored["test_truth"] == row).sum()
        assert (f"{row} called {column}: {count} of {total} " in page) == bool(count)
    assert page.count("data:image/png") == 40
    assert "nothing was logged" not in page
    assert "digits: 10 classes, 50 labeled" in page


def test_page_is_written_again_from_stored_numbers_alone(tmp_path: Path) -> None:
    run = run_of(named_pool(["a", "b", "c", "d"]), tmp_path)
    page = write_report(run).read_text()
    assert "No thumbnails: the images are not at hand." in page
    assert "data:image/png" not in page
    assert "&lt;i&gt;data&lt;/i&gt;: 4 classes" in page  # what was loaded is stored too


def test_names_are_escaped_on_the_page(tmp_path: Path) -> None:
    pool = named_pool(HOSTILE)
    page = write_report(run_of(pool, tmp_path), pool).read_text()
    for bad in ("<b>", "<i>data", "<script"):
        assert bad not in page
    assert "&lt;b&gt;&amp;&quot;cat&quot;&lt;/b&gt;" in page
    assert "漢字" in page


@pytest.mark.parametrize("kind", ["test", "valid only", "none"])
def test_what_was_not_measured_is_said_and_not_drawn(tmp_path: Path, kind: str) -> None:
    pool = named_pool(["a", "b", "c", "d"], 20 if kind == "test" else 0)
    if kind == "valid only":
        pool = pool.split(valid=8)
    page = write_report(run_of(pool, tmp_path), pool).read_text()
    if kind == "none":
        assert "How good this model is was not measured" in page
        assert "--valid 0.2" in page
        assert not any("probabilities" in each or "image" in each for each in sections(page))
        assert "confusion matrix" not in page
    else:
        what = "test" if kind == "test" else "validation"
        assert f"Errors by class, on {what} images" in sections(page)
    if kind == "valid only":
        assert "There are no test images of known class" in page
        assert "test images chose" not in page


def test_page_of_a_run_without_a_classifier(tmp_path: Path) -> None:
    pool = digits()
    net = sl.net("tiny_4", classes=1, style=pool.style)
    train(tmp_path, sl.SimCLR(net), pool, steps=4, unlabeled=16, monitors=[Health(rows=50), OnlineAccuracy(rows=50)])
    page = write_report(tmp_path, pool).read_text()
    assert sections(page) == ["What was loaded", "Result", "During training", "Settings", "What to do next"]
    done = json.loads((tmp_path / "summary.json").read_text())
    assert f"{done['knn_accuracy']:.1%}" in page
    assert "effective rank of features" in page
    assert "It was not measured in this run" not in page
    assert "confusion" not in page


def test_resumed_run_has_one_page_of_the_whole_course(tmp_path: Path) -> None:
    pool, whole, cut = digits(), tmp_path / "whole", tmp_path / "cut"
    train(whole, pool=pool)
    with pytest.raises(Interrupted):
        train(cut, pool=pool, callbacks=[signal_at(5, signal.SIGTERM)])
    with pytest.raises(UsageError, match="not finished"):
        write_report(cut, pool)
    train(cut, pool=pool, resume="auto")
    pages = [re.sub(r"[\d,]+ s\b|" + re.escape(str(out)), "", write_report(out, pool).read_text())
             for out in (whole, cut)]
    assert pages[0] == pages[1]


def test_many_classes_stay_readable_and_small(tmp_path: Path) -> None:
    pool = named_pool([f"class number {i} of many" for i in range(300)], tests=0)
    pool = Pool.from_arrays(*images(300, 300), *images(900, 300, 1), class_names=pool.class_names)
    path = write_report(run_of(pool, tmp_path), pool)
    page = path.read_text()
    assert path.stat().st_size < 1_000_000
    assert "confusion matrix" not in page
    assert "The 20 least recognized of 300 classes" in page
    assert "<summary>All 300 classes in a table</summary>" in page


def test_large_images_make_no_large_page(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pool = Pool.from_arrays(random.integers(0, 256, (40, 224, 224, 3), dtype=np.uint8), np.arange(40) % 2,
                            random.integers(0, 256, (40, 224, 224, 3), dtype=np.uint8), np.arange(40) % 2)
    logits = np.tile([[0.0, 1.0]], (40, 1)).astype(np.float32)
    run_of(Pool.from_arrays(*images(24, 2), *images(40, 2, 1)), tmp_path)
    np.savez(tmp_path / "predictions.npz", test_rows=pool.test, test_logits=logits, test_truth=pool.truth[pool.test])
    (tmp_path / "images.npz").unlink()
    assert write_report(tmp_path, pool).stat().st_size < 3_000_000


# when pages are written


def test_every_run_of_a_trainer_ends_with_its_page_and_never_fails_by_it(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = digits()
    train(tmp_path / "one", pool=pool, steps=2, callbacks=None)
    assert (tmp_path / "one" / "report.html").read_text().count("data:image/png") == 40

    def refuses(out: Path, pool: object) -> None:
        raise RuntimeError("a page with a hole")

    monkeypatch.setattr(afterwards, "AFTERWARDS", [refuses])
    result = train(tmp_path / "other", pool=pool, steps=2, callbacks=None)
    assert result.summary["steps"] == 2
    assert "is finished, but refuses failed (RuntimeError: a page with a hole)" in capsys.readouterr().err


def test_another_run_in_the_folder_leaves_no_old_page(tmp_path: Path) -> None:
    pool = digits()
    train(tmp_path, pool=pool, steps=2, callbacks=None)
    (tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "model.safetensors").unlink()
    train(tmp_path, pool=pool, steps=2)
    assert not (tmp_path / "report.html").exists()


def folder_of(path: Path) -> Path:
    for part, count in (("train", 6), ("test", 4)):
        for label, name in enumerate(("a & b", "c")):
            (path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([label, i, count]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{i}.png")
    return path


def command(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status, and what was said: of an error, on stderr."""
    capsys.readouterr()
    try:
        main(["report", *map(str, words)])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    found = capsys.readouterr()
    return status, found.err if status else found.out


def test_report_command_reads_the_images_where_they_are_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = folder_of(tmp_path / "data"), tmp_path / "run"
    pool = sl.load(data, image_size=8)
    run_of(pool, run, config={"data": str(data), "image_size": 8})
    page = run / "report.html"
    status, said = command(run, capsys=capsys)
    assert (status, said) == (0, f"The report is {page}\n")
    thumbnails = page.read_text().count("data:image/png")
    assert thumbnails > 8

    gone = data / "test" / "c" / "0.png"
    gone.unlink()
    command(run, capsys=capsys)
    text = page.read_text()
    assert 0 < text.count("data:image/png") < thumbnails
    assert "1 more are not there any more" in text

    data.rename(tmp_path / "moved")
    status, said = command(run, capsys=capsys)
    assert status == 0
    assert "note: it is without thumbnails: the images cannot be read" in said
    assert "--data says where they lie now" in page.read_text()
    assert "data:image/png" not in page.read_text()

    status, said = command(run, "--data", tmp_path / "moved", capsys=capsys)
    assert (status, page.read_text().count("data:image/png")) == (0, text.count("data:image/png"))


def test_report_command_of_images_at_another_size_and_of_what_is_no_run(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = folder_of(tmp_path / "data"), tmp_path / "run"
    run_of(sl.load(data, image_size=8), run, config={"data": str(data), "image_size": 12})
    command(run, capsys=capsys)
    assert "images are of 12x12 px now, and were of 8x8 px in the run" in (run / "report.html").read_text()
    status, said = command(tmp_path, capsys=capsys)
    assert status == 2
    assert "is no folder of a finished run" in said
    (run / "predictions.npz").write_bytes(b"torn")
    status, said = command(run, capsys=capsys)
    assert status == 2
    assert "cannot be read" in said
    assert len(said.splitlines()) == 1


def test_runs_from_code_have_pages_without_a_name_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, steps=2)
    status, said = command(tmp_path, capsys=capsys)
    assert status == 0
    assert "does not say which images" in said
    assert command(tmp_path, "--data", "digits", capsys=capsys) == (0, f"The report is {tmp_path / 'report.html'}\n")
    assert "data:image/png" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("classifies", [True, False])
def test_suggested_commands_run_as_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    classifies: bool) -> None:
    data, run = folder_of(tmp_path / "my data"), tmp_path / "run"
    pool = sl.load(data, image_size=8, flip=False).split(labels=4)
    config = {"data": str(data), "net": "tiny_4", "image_size": 8, "flip": "off", "class_level": 1}
    if classifies:
        run_of(pool, run, config=config)
    else:
        train(run, sl.SimCLR(sl.net("tiny_4", classes=1, style=pool.style)), pool, steps=1, config=config)
    commands = [each for _, each in suggestions(StoredRun.read(run))]
    names = [each.split()[1] for each in commands]
    assert names == ["predict"] * classifies + ["label", "advise", "labels", "export"]
    assert f"ssl-lab label '{data}' --image-size 8 --flip off --model {run}" in commands

    called: dict[str, dict[str, object]] = {}
    for module, name in ((label_command, "label"), (advise_module, "advise")):  # these take long, or wait for people
        @functools.wraps(getattr(module, name))
        def stub(*values: object, name: str = name, **arguments: object) -> None:
            called[name] = arguments | dict(zip(["data"], values, strict=False))

        monkeypatch.setattr(module, name, stub)
    monkeypatch.chdir(tmp_path)
    for each in commands:
        main(shlex.split(each.replace("PATH/TO/IMAGES", shlex.quote(str(data / "test"))))[1:])
    read = ReadingSettings(image_size=8, flip="off")
    assert called["label"] | {"data": str(data), "read": read, "model": str(run)} == called["label"]
    assert called["advise"] | {"data": str(data), "read": read, "labels": 4} == called["advise"]
    assert called["advise"].get("backbones") == (None if classifies else (str(run),))
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 5
    assert not classifies or len((tmp_path / "predictions.csv").read_text().splitlines()) == 9


def test_no_pixel_passes_the_net_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = digits()
    train(tmp_path, pool=pool, steps=2)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *arguments: pytest.fail("a net was asked"))
    write_report(tmp_path, pool)


def test_damaged_or_half_a_folder_is_one_clear_line(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    copy = tmp_path.with_name("copy")
    for name in ("summary.json", "model.json", "metrics.jsonl", "config.yaml"):
        shutil.copytree(tmp_path, copy)
        (copy / name).write_text("{ torn\n{")
        with pytest.raises(UsageError, match=re.escape(str(copy))):
            write_report(copy)
        shutil.rmtree(copy)
