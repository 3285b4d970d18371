"""recipes/distill.py as a person runs it, at a tiny size, and what it reports: fidelity."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import digits, rows
from test_recipes import recipe

from ssl_lab import build, presets
from ssl_lab.batch import At
from ssl_lab.command_line import parse
from ssl_lab.engine import Runtime, Trainer
from ssl_lab.engine.evaluate import predict, scores
from ssl_lab.errors import UsageError
from ssl_lab.features.embed import embed
from ssl_lab.features.fidelity import compared_to_teacher, fidelity
from ssl_lab.features.stored import stored_logits
from ssl_lab.methods.distillation import DISTILLATION, KD, StoredLogits, Teacher, load_teacher
from ssl_lab.nets import net
from ssl_lab.views import Eval

TINY = ("--net", "tiny_4", "--labels", "40", "--labeled", "8", "--unlabeled", "8", "--device", "cpu",
        "--precision", "fp32", "--steps", "2")
CPU = Runtime(torch.device("cpu"), "fp32", "")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a supervised run of 2 steps."""
    folder = tmp_path_factory.mktemp("teacher")
    module = recipe("supervised")
    module.main(parse(module.Settings, ["--net", "tiny_6", "--labels", "40", "--labeled", "8", "--device", "cpu",
                                        "--precision", "fp32", "--steps", "2", "--out", str(folder)]))
    return folder


def run(*arguments):
    module = recipe("distill")
    module.main(parse(module.Settings, [*TINY, *map(str, arguments)]))


@pytest.mark.parametrize("method", DISTILLATION)
def test_every_method_learns_from_a_runs_folder(tmp_path, capsys, teacher, method):
    run("--method", method, "--teacher", teacher, "--out", tmp_path)
    out = capsys.readouterr().out
    assert out.startswith(f"{method} on digits")
    assert json.loads((tmp_path / "summary.json").read_text())["method"] == method
    numbers = re.search(r"fidelity on 599 test images: agreement ([\d.]+)%, KL ([\d.]+), ECE ([\d.]+)% \(teacher "
                        r"([\d.]+)%\), CKA ([\d.]+)\nstudent tiny_4: test accuracy [\d.]+%, ([\d,]+) parameters, "
                        r"[\d,]+ images/s\nteacher tiny_6: test accuracy ([\d.]+)%, ([\d,]+) parameters", out)
    assert numbers
    accuracy = json.loads((teacher / "summary.json").read_text())["test_accuracy"]
    assert float(numbers[7]) == pytest.approx(100 * accuracy, abs=0.01)
    assert int(numbers[6].replace(",", "")) < int(numbers[8].replace(",", ""))


def test_images_without_labels_learn_features(tmp_path, capsys, teacher):
    """Of a teacher that knows classes, too; what compares its logits says that there are none."""
    images = digits().images.take(np.arange(12))
    for number, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number}.png")
    for method, out in (("seed", tmp_path / "run"), ("kd", None)):
        arguments = ["--data", str(tmp_path), "--teacher", str(teacher), "--method", method, "--unlabeled", "8",
                     "--net", "tiny_4", "--steps", "2", "--device", "cpu", "--precision", "fp32", "--data-dir",
                     str(tmp_path / "kept"), "--out", str(out or tmp_path / "other")]
        module = recipe("distill")
        if out:
            module.main(parse(module.Settings, arguments))
        else:
            with pytest.raises(UsageError, match="the teacher's head is not trained"):
                module.main(parse(module.Settings, arguments))
    said = capsys.readouterr().out
    assert "features on 12 training images: CKA" in said
    assert "accuracy" not in said
    assert load_teacher(tmp_path / "run", (), digits().style).classifies is False


def test_a_teacher_is_trained_first(tmp_path, capsys):
    run("--teacher", "supervised", "--teacher-net", "tiny_6", "--teacher-steps", 3, "--out", tmp_path)
    assert json.loads((tmp_path / "teacher" / "summary.json").read_text())["steps"] == 3
    assert "teacher tiny_6" in capsys.readouterr().out
    again = load_teacher(tmp_path / "teacher", 10, digits().style, "tiny_6")
    assert again.classifies
    with pytest.raises(UsageError, match=r"teacher was started with other settings .*net: 'tiny_6' -> 'tiny_4'"):
        run("--teacher", "supervised", "--teacher-net", "tiny_4", "--teacher-steps", 3, "--out", tmp_path, "--resume",
            "auto")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--view", "strange=weak"], "strange"), (["--view", "view=wek"], "wek"), (["--method", "kdd"], "kdd"),
    (["--method", "kd(heat=2)"], "heat"), (["--net", "tiny_x"], "tiny_x"), (["--with", "samm"], "samm"),
    (["--optimizer", "radm"], "radm"), (["--arguments", "heat", "2"], "heat")])
def test_no_teacher_is_trained_before_all_texts_are_understood(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UsageError, match=words):
        run("--teacher", "supervised", "--out", tmp_path, *arguments)


def test_a_teacher_is_trained_by_the_settings_of_short_runs(tmp_path, monkeypatch):
    built, method = [], build.method
    monkeypatch.setattr(build, "method", lambda *given: built.append(method(*given)) or built[-1])
    run("--teacher", "mixmatch", "--teacher-net", "tiny_4", "--teacher-steps", 1, "--out", tmp_path)
    assert built[0].weight(1.0) == presets.preset("mixmatch", "digits", "short").arguments["weight"](1.0) == 25


def test_a_head_that_learned_no_classes_does_not_teach(tmp_path):
    arguments = ("--teacher", "simclr", "--teacher-net", "tiny_6", "--teacher-steps", 1, "--out", tmp_path)
    with pytest.raises(UsageError, match="the teacher's head is not trained"):
        run("--method", "kd", *arguments)
    assert not (tmp_path / "teacher").exists()  # nor was one for it
    run("--method", "sp", *arguments)
    with pytest.raises(UsageError, match="the teacher's head is not trained"):
        run("--method", "kd", "--teacher", tmp_path / "teacher", "--teacher-net", "tiny_6", "--out", tmp_path / "other")
    for path in filter(Path.is_file, list(tmp_path.iterdir())):  # as if it was cut off behind the teacher
        path.unlink()
    with pytest.raises(UsageError, match="holds a run that was not finished"):
        run("--method", "sp", *arguments)
    run("--method", "sp", *arguments, "--resume", "auto")  # with the teacher that was trained


def test_stored_logits_teach_as_their_net_does(tmp_path, capsys, teacher):
    pool = digits(40)
    logits = predict(load_teacher(teacher, 10, pool.style).net, pool, np.arange(len(pool)), CPU)
    torch.save({"logits": logits}, tmp_path / "logits.pt")
    run("--teacher", tmp_path / "logits.pt", "--view", "eval", "--out", tmp_path / "stored")
    assert "CKA nan" in capsys.readouterr().out
    run("--teacher", teacher, "--view", "eval", "--data-dir", tmp_path, "--out", tmp_path / "asked")
    assert len([path for path in (tmp_path / "features").iterdir() if path.is_dir()]) == 1
    run("--teacher", teacher, "--view", "eval", "--method", "ces_kd", "--out", tmp_path / "live")  # KD by live nets
    for three in zip(*(rows(tmp_path / name) for name in ("stored", "asked", "live")), strict=True):
        assert [each["loss"] for each in three] == pytest.approx([three[2]["loss"]] * 3, rel=1e-4)


def test_a_teacher_is_asked_once_about_each_image(tmp_path, nets):
    pool, one, other = nets
    teacher, asked = Teacher(one, other, image_size=12), []
    teacher.register_forward_hook(lambda module, given, output: asked.append(len(given[0])))
    stored = stored_logits(teacher, pool, tmp_path, CPU)
    assert sum(asked) == len(pool)
    images = Eval(pool.style)(pool.images.take(np.arange(9)), At(0, 1).draw("", 9, CPU.device))
    expected = teacher(images, torch.arange(9)).logits
    torch.testing.assert_close(stored(images, torch.arange(9)).logits, expected)
    again = stored_logits(Teacher(one, other, image_size=12), pool, tmp_path, CPU)
    assert torch.equal(again.logits, stored.logits)
    for different in (Teacher(one, other), Teacher(one, image_size=12), Teacher(one, one, image_size=12)):
        assert not torch.allclose(stored_logits(different, pool, tmp_path, CPU).logits, stored.logits)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4
    assert not any(module.training for module in teacher.modules())


def test_settings_reach_the_run(tmp_path, teacher):
    run("--teacher", teacher, "--images", "labeled", "--arguments", "weight", 0, "labeled", 2, "--out", tmp_path)
    assert json.loads((tmp_path / "split.json").read_text())["counts"]["train"] == 40
    assert all(row["loss/distilled"] == 0 for row in rows(tmp_path))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["teacher"] == str(teacher)


@pytest.mark.parametrize(("arguments", "words"), [
    (("--teacher", "no/such"), "weights no/such: expected"),
    (("--teacher", "no/such.pt"), "no such file"),
    (("--method", "fixmatch"), "fixmatch has no argument 'teacher'"),
    (("--arguments", "tau", 1), "kd has no argument 'tau'; it has teacher, temperature, weight"),
])
def test_bad_input_says_what_to_do(tmp_path, teacher, arguments, words):
    given = ("--teacher", teacher, *arguments) if "--teacher" not in arguments else arguments
    with pytest.raises(UsageError, match=words):
        run(*given, "--out", tmp_path)


# --- Fidelity ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nets():
    pool = digits()
    return pool, *(net(name, style=pool.style, seed=seed).eval() for name, seed in (("tiny_4", 0), ("tiny_6", 1)))


def test_fidelity_row_by_row(nets):
    pool, student, teacher = nets
    indices = pool.test[:300]
    found = fidelity(student, teacher, pool, indices, CPU)
    s, t = (predict(each, pool, indices, CPU).double().softmax(1).tolist() for each in (student, teacher))
    agreed = [p.index(max(p)) == q.index(max(q)) for p, q in zip(s, t, strict=True)]
    kl = [sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) for p, q in zip(s, t, strict=True)]
    assert found["agreement"] == pytest.approx(sum(agreed) / 300)
    assert found["kl"] == pytest.approx(sum(kl) / 300, rel=1e-5)
    for name, each in (("student_ece", student), ("teacher_ece", teacher)):
        assert found[name] == pytest.approx(scores(each, pool, indices, CPU)["ece"], rel=1e-9)
    a, b = (embed(each, pool, indices, CPU).astype(np.float64) for each in (student, teacher))
    a, b = a - a.mean(0), b - b.mean(0)
    k, m = a @ a.T, b @ b.T
    assert found["cka"] == pytest.approx((k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum()), rel=1e-5)


def test_fidelity_to_oneself_is_perfect(nets):
    pool, student, _ = nets
    student.train()
    found = fidelity(student, Teacher(net("tiny_4", style=pool.style, seed=0)), pool, pool.test[:300], CPU)
    assert student.training
    student.eval()
    assert found["agreement"] == 1
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["cka"] == pytest.approx(1)


def test_both_may_go_on_learning_after_they_were_compared():
    pool = digits()
    student, teacher = (net("tiny_4", style=pool.style, seed=seed) for seed in (0, 1))
    fidelity(student, teacher, pool, pool.test[:20], CPU)
    assert all(p.requires_grad for each in (student, teacher) for p in each.parameters())


def test_fidelity_to_stored_logits(nets):
    pool, student, teacher = nets
    stored = StoredLogits(predict(teacher, pool, np.arange(len(pool)), CPU))
    found, expected = (fidelity(student, each, pool, pool.test[:50], CPU) for each in (stored, teacher))
    assert math.isnan(found.pop("cka"))
    assert found == pytest.approx({key: value for key, value in expected.items() if key != "cka"}, rel=1e-5)


def test_a_comparison_without_images_says_so(nets):
    pool, student, teacher = nets
    empty = replace(pool, test=pool.test[:0], valid=pool.test[:0])
    assert compared_to_teacher(student, teacher, empty, CPU).startswith("no test or validation images")


def test_stored_logits_refuse_other_views(nets):
    pool = nets[0]
    method = KD(net("tiny_4", style=pool.style), StoredLogits(torch.zeros(len(pool), 10)), view=Eval)
    assert method.with_views("eval") is method
    with pytest.raises(UsageError, match="stored logits are those of images as they are"):
        method.with_views("strong")
