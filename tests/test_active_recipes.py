"""recipes/active.py and recipes/active_benchmark.py as a person runs them, at a tiny size."""

import csv
import json
import multiprocessing
import re

import numpy as np
import pytest
import torch
from forked import CONTEXT, begin_cells
from PIL import Image
from safetensors.torch import save_file
from test_recipes import recipe

from ssl_lab.active import trainers
from ssl_lab.active.arrays import predicted_loss
from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.study import benchmark
from ssl_lab.active.study.benchmark import Cell, cells_of, duplicated, run_cells
from ssl_lab.active.trainers import TRAINERS, fitter
from ssl_lab.active_settings import Benchmark, TrainSettings
from ssl_lab.batch import At
from ssl_lab.command_line import parse
from ssl_lab.data import Ledger, load
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.nets import net
from ssl_lab.views import Eval

TINY = ("--net", "tiny_4", "--labeled", "8", "--unlabeled", "8", "--device", "cpu", "--precision", "fp32",
        "--steps", "2")


def run(name, *arguments):
    module = recipe(name)
    module.main(parse(module.Settings, [*TINY, *map(str, arguments)]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory, digits):
    """A file of a net's weights."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(net("tiny_4", 10, digits.style, seed=7).state_dict(), path)
    return path


def records(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("round-*.json"))]


def test_the_loop_from_a_command_line(tmp_path, capsys):
    arguments = ("--query", "margin", "--initial", 12, "--budget", 4, "--rounds", 2, "--out", tmp_path)
    run("active", *arguments)
    said = capsys.readouterr().out
    assert "margin, supervised: 4 labels a round" in said
    assert f"The report is {tmp_path / 'report.html'}" in said
    assert [(row["labels"], len(row["ids"])) for row in records(tmp_path)] == [(12, 4), (16, 4), (20, 0)]
    assert all(0 <= row["accuracy"] <= 1 for row in records(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 8 + 4 * 6  # the images of two rounds, and five that each of the last stands for
    assert "Accuracy on the unlabeled images: not known yet" in page  # 8 answers are too few
    assert "What 50 more labels would bring cannot be told yet" in said
    assert 'aria-label="test accuracy (%) against labels: test"' in page
    before = records(tmp_path)
    with pytest.raises(UsageError, match="holds the labels of a loop; go on with --resume auto"):
        run("active", *arguments)
    run("active", *arguments, "--resume", "auto")
    assert records(tmp_path) == before


def test_people_answer_through_a_file(tmp_path, capsys):
    out, answers = tmp_path / "loop", tmp_path / "answers.csv"
    split = tmp_path / "rows.txt"
    split.write_text("\n".join(map(str, load("digits").split(labels=10).labeled)))
    arguments = ("--query", "random", "--budget", 3, "--rounds", 1, "--out", out, "--oracle", answers,
                 "--split-file", split, "--resume", "auto")
    run("active", *arguments)
    assert f"Round 0 waits for 3 answers from {answers}; {out / 'asked.csv'} lists the images" in " ".join(
        capsys.readouterr().out.split("\n"))
    rows = list(csv.DictReader((out / "asked.csv").read_text().splitlines()))
    answers.write_text("id,label\n" + "".join(f"{row['id']},{label}\n" for row, label in
                                              zip(rows, ("7", "ignore", "abstain"), strict=True)))
    run("active", *arguments)
    assert "waits" not in capsys.readouterr().out
    assert [row["labels"] for row in records(out)] == [10, 11]


def test_a_pool_that_runs_dry_ends_with_a_report(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images[:20], labels=np.arange(20) % 2, test_images=images[20:],
             test_labels=np.arange(20) % 2)
    arguments = ("--data", tmp_path / "a.npz", "--initial", 8, "--budget", 7, "--rounds", 9, "--query", "margin")
    run("active", *arguments, "--out", tmp_path / "out")
    assert [(row["labels"], len(row["ids"])) for row in records(tmp_path / "out")] == [(8, 7), (15, 5), (20, 0)]
    said = " ".join(capsys.readouterr().out.split())
    assert "All images that could be asked for have been: the loop ends after 2 of 9 rounds" in said
    assert (tmp_path / "out" / "report.html").exists()
    run("active_benchmark", *arguments[:4], "--queries", "margin", "--seeds", 1, "--final", 43, "--batches", 7,
        "--out", tmp_path / "bench")
    assert [result["labels"] for result in json.loads((tmp_path / "bench" / "results.json").read_text())] == [
        [8, 15, 20]] * 2


def test_people_answer_in_label_studio(tmp_path, capsys):
    """Two of them; one corrects herself after her answer was read."""
    out = tmp_path / "loop"
    arguments = ("--query", "random", "--budget", 4, "--rounds", 1, "--out", out, "--oracle", "label_studio",
                 "--resume", "auto", "--split-file", tmp_path / "rows.txt")
    (tmp_path / "rows.txt").write_text("\n".join(map(str, load("digits").split(labels=10).labeled)))
    run("active", *arguments)
    said = capsys.readouterr().out
    assert f"Import {out / 'label_studio' / 'tasks.json'}" in said
    assert f"DOCUMENT_ROOT={out / 'label_studio'} label-studio start" in said
    assert f"absolute local path {out / 'label_studio' / 'images'} " in said
    tasks = json.loads((out / "label_studio" / "tasks.json").read_text())
    ids = [task["data"]["ssl_lab_id"] for task in tasks]

    def export(day, *votes):
        (out / "label_studio" / f"project-1-at-2026-01-0{day}.json").write_text(json.dumps([
            task | {"id": 70 + n, "annotations": [
                {"id": 10 * n + who, "completed_by": who, "updated_at": f"2026-01-0{day}T00:00:0{who}Z",
                 "result": [{"from_name": "label", "value": {"choices": [label]}}]}
                for who, label in enumerate(votes[n]) if label]} for n, task in enumerate(tasks)]))

    export(1, ("3", "3"), ("4", "5"), ("6",), ())
    run("active", *arguments)
    said = " ".join(capsys.readouterr().out.split())
    assert "4 tasks read, 0 without a known image, 1 without a choice: project-1-at-2026-01-01.json" in said
    assert (f"people disagree on 1 images: 0 settled by --agreement majority; 1 stay without an answer until people "
            f"agree (id {ids[1]})") in said
    assert "waits for 2 answers" in said
    export(2, ("3", "3"), ("4", "4"), ("8",), ("0",))
    run("active", *arguments)
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 answers were corrected since they were read, and the labels with them: id {ids[2]} (6 -> 8)" in said
    assert "waits" not in said
    labels = Ledger(out / "labels.jsonl").labels(len(load("digits")))
    assert labels[ids].tolist() == [3, 4, 8, 0]
    assert [row["labels"] for row in records(out)] == [10, 14]


def test_label_studio_goes_on_when_images_came(tmp_path, capsys):
    """Its tasks have the ids that rows had when they were imported; their images say which rows they are now."""
    photos, out = tmp_path / "photos", tmp_path / "loop"
    arguments = ("--data", photos, "--data-dir", tmp_path / "cache", "--query", "random", "--budget", 3, "--rounds", 1,
                 "--out", out, "--oracle", "label_studio", "--resume", "auto")

    def picture(name, color):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), color, np.uint8)).save(photos / name)

    for i in range(40):
        picture(f"cat/{i}.png" if i < 8 else f"dog/{i}.png" if i < 16 else f"loose{i}.png", 5 * i)
    run("active", *arguments)
    tasks = json.loads((out / "label_studio" / "tasks.json").read_text())
    for i in range(3):
        picture(f"a{i}.png", 250 - i)
    (out / "label_studio" / "download.json").write_text("[]")
    run("active", *arguments)  # the loop's own files get the new row numbers
    flat = [task["data"] | {"annotation_id": n, "label": label}
            for n, (task, label) in enumerate(zip(tasks, ("cat", "dog", "cat"), strict=True))]
    (out / "label_studio" / "download.json").write_text(json.dumps(flat))
    assert "waits for 3 answers" in capsys.readouterr().out
    run("active", *arguments)
    assert "waits" not in capsys.readouterr().out
    pool = load(photos, data_dir=tmp_path / "cache")
    labels = Ledger(out / "labels.jsonl").labels(len(pool))
    said = {pool.files[i]: pool.class_names[labels[i]] for i in np.flatnonzero(labels >= 0)}
    names = [task["data"]["image"].rpartition("photos/")[2] for task in tasks]
    assert [said[name] for name in names] == ["cat", "dog", "cat"]
    assert sum("/" not in name for name in said) == 3


def test_a_loop_goes_on_with_the_training_it_began_with(tmp_path):
    arguments = ("--query", "margin", "--initial", 12, "--budget", 4, "--rounds", 1, "--out", tmp_path)
    run("active", *arguments)
    with pytest.raises(UsageError, match="trainer: 'supervised' -> 'fixmatch'"):
        run("active", *arguments, "--resume", "auto", "--trainer", "fixmatch")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--net", "tiny_x"], "tiny_x"), (["--view", "strange=weak"], "strange"), (["--view", "view=wek"], "wek"),
    (["--with", "samm"], "samm"), (["--optimizer", "radm"], "radm"), (["--query", "marjin"], "marjin")])
def test_nobody_is_asked_before_all_texts_are_understood(tmp_path, arguments, words):
    """Else the folder would hold labels of a loop that cannot train, and refuse the same command mended."""
    with pytest.raises(UsageError, match=words):
        run("active", "--initial", 10, "--budget", 5, "--rounds", 1, "--out", tmp_path / "loop", *arguments)
    assert not (tmp_path / "loop" / "loop.json").exists()


def test_a_cold_start_by_a_backbone(tmp_path, weights):
    run("active", "--initial-query", "typiclust", "--initial", 12, "--query", "margin", "--weights", weights,
        "--trainer", "finetune_fixmatch", "--rounds", 2, "--budget", 4, "--out", tmp_path / "b")
    assert [(row["labels"], len(row["ids"]), row["query"]) for row in records(tmp_path / "b")] == [
        (0, 12, "typiclust"), (12, 4, "margin"), (16, 0, None)]
    with pytest.raises(UsageError, match="typiclust needs embeddings, and there is no trained net: give a backbone"):
        run("active", "--initial-query", "typiclust", "--out", tmp_path / "c")


@pytest.mark.parametrize(("arguments", "words"), [
    (("--labels", 20), "--labels 20: active learning begins with --initial N labels"),
    (("--trainer", "fixmach"), "unknown trainer 'fixmach'. Did you mean "),
    (("--trainer", "finetune"), "trainer finetune starts from a backbone: give --weights FILE"),
    (("--query", "margins"), "unknown query 'margins'. Did you mean margin"),
    (("--oracle", "people"), "unknown oracle 'people'"),
])
def test_bad_input_says_what_to_do(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        run("active", "--out", tmp_path, *arguments)


@pytest.mark.parametrize(("name", "setting", "value"), [
    ("active", "oracle", "command: touch {}"), ("active", "oracle", " command:touch {}"), ("active", "query", "evil:X"),
    ("active", "query", "prefilter(margin, evil:X)"), ("active", "initial_query", "evil:X"),
    ("active_benchmark", "queries", "margin,evil:X"), ("workflow", "oracle", "command: touch {}"),
    ("workflow", "query", "evil:X"),
    *((name, setting, value) for name, setting in (
        ("consistency", "method"), ("compare", "methods"), ("finetune", "method"), ("pretrain", "method"),
        ("distill", "method"), ("distill", "teacher"), ("workflow", "pretrain"), ("workflow", "method"),
        ("workflow", "distill"), ("openset", "encoder")) for value in ("evil:X", "kd(view=evil:X)"))])
def test_a_file_of_settings_runs_no_program_and_imports_no_module(tmp_path, name, setting, value):
    evil = tmp_path / "evil"
    (tmp_path / "c.yaml").write_text(json.dumps({setting: value.format(evil)}))
    module = recipe(name)
    with pytest.raises(UsageError, match=f"^{setting}: .* in --config .* would run a program or import a module"):
        parse(module.Settings, ["--steps", "2", "--config", str(tmp_path / "c.yaml")])
    flag = f"--{setting.replace('_', '-')}"
    given = parse(module.Settings, ["--steps", "2", flag, value])  # the command line may
    assert getattr(given, setting) == value
    over = parse(module.Settings, ["--steps", "2", "--config", str(tmp_path / "c.yaml"), flag, "margin"])
    assert getattr(over, setting) == "margin"


def settings_of(out, **settings):
    given = {"net": "tiny_4", "labeled": 8, "unlabeled": 8, "device": "cpu", "precision": "fp32", "steps": 2,
             "queries": "margin", "seeds": 1, "initial": 12, "final": 20, "batches": "4", "out": out}
    return Benchmark(**{**given, **settings})


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_trains_afresh(tmp_path, weights, trainer):
    pool = load("digits").split(labels=10)
    shared = TrainSettings(net="tiny_4", steps=2, labeled=8, unlabeled=8, device="cpu", precision="fp32", lr=0.0,
                           weights=weights)
    first, second = (fitter(shared, trainer, tmp_path / name, quiet=True, keep=False)(pool, 0) for name in ("b", "c"))
    assert first.summary["method"] == {"finetune": "supervised"}.get(trainer, trainer.removeprefix("finetune_"))
    start = net("tiny_4", 10, pool.style, seed=7 if trainer.startswith("finetune") else 0)
    for each in (first, second):
        for one, other in zip(each.method.net.parameters(), start.parameters(), strict=True):
            np.testing.assert_array_equal(one.detach(), other.detach())
    assert not (tmp_path / "b" / "training-000").exists()


def test_a_query_of_the_loss_that_is_predicted(tmp_path):
    run("active", "--query", "learning_loss", "--trainer", "learning_loss", "--initial", 12, "--budget", 4,
        "--rounds", 1, "--out", tmp_path)
    assert len(records(tmp_path)[0]["ids"]) == 4
    with pytest.raises(UsageError, match="train with a method that predicts its loss"):
        run("active", "--query", "learning_loss", "--initial", 12, "--out", tmp_path / "b")


def test_predicted_losses_are_the_methods(tmp_path, digits):
    shared = TrainSettings(net="tiny_4", steps=2, labeled=8, device="cpu", precision="fp32")
    result = fitter(shared, "learning_loss", tmp_path, quiet=True)(digits, 0)
    rows = digits.train[[5, 2, 9]]
    found = predicted_loss(result, digits, rows, Runtime.start("cpu", "fp32"), batch=2)
    predictor = result.method.predictor().eval()
    pixels = Eval(digits.style)(digits.images.take(rows), At(0, 1).draw("eval", 3))
    with torch.no_grad():
        expected = result.method.head_ema.net(predictor(pixels).features)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_fit_that_was_cut_off_before_labels_changed_starts_afresh(tmp_path):
    shared = TrainSettings(net="tiny_4", steps=2, labeled=8, device="cpu", precision="fp32")
    fit = fitter(shared, "supervised", tmp_path, quiet=True)
    fit(load("digits").split(labels=10), 0)
    assert fit(load("digits").split(labels=20), 0).summary["labels"] == 20


# The benchmark

def test_a_folder_that_is_half_removed_is_not_found_again(tmp_path, monkeypatch):
    (tmp_path / "training-000").mkdir()
    (tmp_path / "training-000" / "checkpoint.pt").touch()

    def killed(path, ignore_errors=False):
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(trainers.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        trainers._remove(tmp_path / "training-000")
    assert not (tmp_path / "training-000").exists()
    monkeypatch.undo()
    (tmp_path / "training-000").mkdir()
    trainers._remove(tmp_path / "training-000")
    assert not [*tmp_path.iterdir()]


def test_two_seeds_are_not_ranked_and_cells_are_kept(tmp_path, capsys, monkeypatch):
    arguments = ("--queries", "margin", "--seeds", 2, "--initial", 12, "--final", 20, "--batches", "4",
                 "--out", tmp_path)
    run("active_benchmark", *arguments)
    said = " ".join(capsys.readouterr().out.split())
    assert "supervised, 4 a round: no ranking. 2 seeds say nothing of the next" in said
    page = (tmp_path / "report.html").read_text()
    assert "Who beats whom" not in page
    assert "no ranking" in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 4
    by_cell = {(result["settings"]["cell"]["query"], result["settings"]["cell"]["seed"]): result for result in results}
    for seed in (0, 1):
        random, margin = by_cell["random", seed], by_cell["margin", seed]
        assert random["initial"] == margin["initial"]
        assert random["accuracy"][0] == margin["accuracy"][0]  # equal initial sets, weights and training
        assert random["selected"] != margin["selected"]
        assert random["labels"] == [12, 16, 20]
        assert [len(ids) for ids in margin["selected"]] == [4, 4]
    assert by_cell["random", 0]["initial"] != by_cell["random", 1]["initial"]
    assert not list(tmp_path.rglob("checkpoint.pt"))

    ran = []
    cell = benchmark.run_cell
    monkeypatch.setattr(benchmark, "run_cell", lambda settings, which: ran.append(which) or cell(settings, which))
    run("active_benchmark", *arguments, "--seeds", 3)
    assert sorted(which.query for which in ran) == ["margin", "random"]
    assert {which.seed for which in ran} == {2}
    said = " ".join(capsys.readouterr().out.split())
    assert "3 paired seeds: " in said
    assert "no ranking" not in said
    assert "Who beats whom" in (tmp_path / "report.html").read_text()
    with pytest.raises(UsageError, match=r"steps: 2 -> 3\)"):
        run("active_benchmark", *arguments, "--steps", 3)


def test_a_cell_that_was_cut_goes_on(tmp_path, monkeypatch):
    cell = Cell("supervised", 4, "margin", 0, 0)
    whole = settings_of(tmp_path / "whole")
    benchmark.run_cell(whole, cell)
    cut = settings_of(tmp_path / "cut")
    tell, calls = ActiveLoop.tell, []

    def dies(self, ids, labels):
        calls.append(len(ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        tell(self, ids, labels)

    monkeypatch.setattr(ActiveLoop, "tell", dies)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_cell(cut, cell)
    monkeypatch.setattr(ActiveLoop, "tell", tell)
    benchmark.run_cell(cut, cell)
    one, other = (json.loads((settings.out / cell.folder / "result.json").read_text()) for settings in (whole, cut))
    for key in ("labels", "accuracy", "initial", "selected"):
        assert one[key] == other[key], key


def test_what_a_cell_is_told(tmp_path):
    """Duplicates, wrong answers, a long tail, another net."""
    settings = settings_of(tmp_path, duplicates=3, noise=1.0, imbalance=5.0, transfer="tiny_8", final=16)
    cell = Cell("supervised", 4, "random", 0, 0)
    benchmark.run_cell(settings, cell)
    out = tmp_path / cell.folder
    result = json.loads((out / "result.json").read_text())
    assert 0 <= result["transfer"] <= 1
    pool = duplicated(load("digits"), 3, 0)
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()[1:]]
    initial, answers = ((np.array(line["indices"]), np.array(line["labels"])) for line in lines)
    assert (pool.truth[initial[0]] == initial[1]).all()
    assert (pool.truth[answers[0]] != answers[1]).all()


def test_duplicates_are_copies():
    pool = load("digits")
    twice = duplicated(pool, 2, seed=0)
    assert len(twice.train) == 2 * (len(pool.train) // 2)
    images = twice.images.take(twice.train).flatten(1).numpy()
    half = len(twice.train) // 2
    np.testing.assert_array_equal(images[:half], images[half:])
    np.testing.assert_array_equal(twice.truth[twice.train[:half]], twice.truth[twice.train[half:]])
    kept = {row.tobytes() for row in images[:half]}
    original = {row.tobytes(): label for row, label in
                zip(pool.images.take(pool.train).flatten(1).numpy(), pool.truth[pool.train], strict=True)}
    assert all(original[row.tobytes()] == label for row, label in zip(images, twice.truth[twice.train], strict=True))
    assert len(kept) > 0.99 * half
    np.testing.assert_array_equal(twice.images.take(twice.test), pool.images.take(pool.test))
    np.testing.assert_array_equal(twice.truth[twice.test], pool.truth[pool.test])
    assert duplicated(pool, 1) is pool
    assert twice.images.fingerprint() == duplicated(pool, 2, seed=0).images.fingerprint()
    assert twice.images.fingerprint() != duplicated(pool, 2, seed=1).images.fingerprint()


def test_cells_run_in_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: CONTEXT)
    monkeypatch.setattr(benchmark, "_begin", begin_cells)
    settings = settings_of(tmp_path, final=16, workers="2")
    cells = cells_of(settings)
    results = run_cells(settings, cells)
    assert [cell.query for cell in cells] == ["random", "margin"]
    assert all(len(results[cell]["accuracy"]) == 2 for cell in cells)
    alone = settings_of(tmp_path / "alone", final=16)
    benchmark.run_cell(alone, cells[1])
    assert run_cells(alone, cells[1:])[cells[1]]["selected"] == results[cells[1]]["selected"]


def test_workers_that_are_none_are_refused_before_anything_is_loaded(tmp_path):
    settings = settings_of(tmp_path, workers="0", data="nowhere")
    with pytest.raises(UsageError, match="--workers 0: expected at least one"):
        run_cells(settings, cells_of(settings))


@pytest.mark.parametrize(("changes", "words"), [
    ({"labels": 20}, "takes --initial in place of --labels"),
    ({"minutes": 1.0}, "--steps in place of --minutes"),
    ({"final": 21}, "from --initial 12 to --final 21 there is no whole number of rounds of 4 labels"),
    ({"trainers": "supervise"}, "unknown trainer 'supervise'. Did you mean supervised"),
    ({"queries": "margins"}, "unknown query 'margins'"),
    ({"seeds": 0}, "must be at least 1"),
    ({"batches": "4,many"}, "--batches '4,many': expected whole numbers, separated by commas"),
    ({"trainers": "supervised, finetune"}, "trainer finetune starts from a backbone: give --weights"),
])
def test_settings_that_make_no_benchmark(tmp_path, changes, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        cells_of(settings_of(tmp_path, **changes))


def test_cells_are_all_combinations(tmp_path):
    cells = cells_of(settings_of(tmp_path, queries="margin,random,badge", trainers="supervised,fixmatch", seeds=2,
                                 sets=2, batches="4,8"))
    assert len(cells) == len(set(cells)) == 3 * 2 * 2 * 2 * 2
    assert [cell.query for cell in cells[:3]] == ["random", "margin", "badge"]
    assert len({cell.folder for cell in cells}) == len(cells)
