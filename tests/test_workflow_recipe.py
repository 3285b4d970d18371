"""recipes/workflow.py as a person runs it, at a tiny size."""

import copy
import csv
import json
import re

import pytest
import torch
from small_runs import assert_equal, digits
from test_recipes import recipe

from ssl_lab.command_line import parse
from ssl_lab.data import load
from ssl_lab.engine import Trainer
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation import load_teacher
from ssl_lab.report import stage_table

STAGES = ["backbone", "teacher", "student"]


def run(out, *arguments):
    module = recipe("workflow")
    module.main(parse(module.Settings, ["--net", "tiny_6", "--student", "tiny_4", "--labels", "20", "--steps", "2",
                                        "--device", "cpu", "--precision", "fp32", "--query", "k_means", "--out",
                                        str(out), *map(str, arguments)]))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def weights(out):
    return {stage: (out / stage / "model.safetensors").read_bytes() for stage in STAGES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


def test_every_stage_leaves_its_folder(whole):
    done = {stage: summary(whole / stage) for stage in STAGES}
    assert [each["method"] for each in done.values()] == ["simclr", "fixmatch", "kd"]
    assert done["teacher"]["labels"] == done["student"]["labels"] == 20
    ids = json.loads((whole / "labels" / "round-000.json").read_text())["ids"]
    assert sorted(ids) == sorted(json.loads((whole / "student" / "split.json").read_text())["labeled"])


@pytest.mark.parametrize(("arguments", "words"), [
    (["--method", "fixmach"], "unknown method 'fixmach'"), (["--distill", "kd(heat=2)"], "heat"),
    (["--view", "strange=weak"], "strange"), (["--view", "strong=wek"], "wek"), (["--query", "typicust"], "typicust"),
    (["--student", "tiny_x"], "tiny_x"), (["--optimizer", "radm"], "radm"), (["--with", "samm"], "samm"),
    (["--oracle", "nobody"], "nobody")])
def test_no_stage_trains_before_all_texts_are_understood(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UsageError, match=words):
        run(tmp_path / "run", *arguments)


def test_stages_build_on_each_other_and_go_on_where_they_stopped(whole, tmp_path, monkeypatch):
    pool, seen = load("digits").split(labeled=[]), {}

    def stop(trainer, method, *arguments, **batches):
        seen[trainer.folder.name] = copy.deepcopy(method)
        if trainer.folder.name == stage:
            raise KeyboardInterrupt
        return fit(trainer, method, *arguments, **batches)

    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", stop)
    for stage, before, part in (("teacher", "backbone", lambda method: method.net),
                                ("student", "teacher", lambda method: method.teacher.net)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        left = load_teacher(tmp_path / before, 10, pool.style).net.state_dict()
        assert_equal(part(seen[stage]).state_dict(), left, stage)
    monkeypatch.setattr(Trainer, "fit", fit)
    run(tmp_path)
    assert weights(tmp_path) == weights(whole)  # those of the run that was never stopped


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:FutureWarning")
def test_the_export_is_the_student(whole):
    images = torch.rand(3, 1, 8, 8)
    student = load_teacher(whole / "student", 10, digits().style).net
    assert student.name == "tiny_4"
    assert torch.allclose(torch.jit.load(whole / "tiny_4.pt")(images), student(images).logits, atol=1e-5)


def test_one_report_has_all_of_it(whole):
    page = (whole / "report.html").read_text()
    for words in ("From 20 labels to tiny_4.pt", "1,198 training images, 20 of them labeled", "agreement", "simclr",
                  "test accuracy"):
        assert words in page
    assert page.count("data:image/png") == 20
    row = re.search(r"student</th>.*?([\d.]+)%</td></tr>", page)
    assert float(row[1]) == pytest.approx(100 * summary(whole / "student")["test_accuracy"], abs=0.01)


def test_finished_stages_are_not_trained_again(whole, monkeypatch, capsys):
    before, steps = weights(whole), []
    monkeypatch.setattr("ssl_lab.engine.trainer.Run.step", lambda *arguments: steps.append(1))
    run(whole)
    assert not steps
    assert weights(whole) == before
    assert "student tiny_4" in capsys.readouterr().out


def test_other_settings_are_refused(whole):
    with pytest.raises(UsageError, match="started with other settings"):
        run(whole, "--seed", 1)


def test_given_weights_replace_pretraining(whole, tmp_path):
    run(tmp_path, "--weights", whole / "backbone" / "model.safetensors")
    assert not (tmp_path / "backbone").exists()
    assert "simclr" not in (tmp_path / "report.html").read_text()
    same = [(folder / "labels" / "round-000.json").read_text() for folder in (whole, tmp_path)]
    assert json.loads(same[0])["ids"] == json.loads(same[1])["ids"]


def test_it_waits_for_people(whole, tmp_path, capsys):
    answers = tmp_path / "answers.csv"
    arguments = ("--oracle", answers, "--weights", whole / "backbone" / "model.safetensors")
    run(tmp_path, *arguments)
    assert "20 images wait for labels" in capsys.readouterr().out
    assert not (tmp_path / "teacher").exists()
    truth = digits().truth
    asked = [int(row["id"]) for row in csv.DictReader((tmp_path / "labels" / "asked.csv").read_text().splitlines())]
    answers.write_text("id,label\n" + "".join(f"{i},{truth[i]}\n" for i in asked))
    run(tmp_path, *arguments)
    assert summary(tmp_path / "student")["labels"] == 20


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder of a finished run"):
        stage_table({"teacher": tmp_path})
