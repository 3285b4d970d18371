"""OpenCoS: the contract, detection and loss in float64, FixMatch as a special case; open-set pools; the recipe."""

import copy
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from slow import noise_rows, softmax

import ssl_lab as sl
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.command_line import parse
from ssl_lab.data import ArrayImages
from ssl_lab.data.openset import Borrowed, open_set
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch
from ssl_lab.methods.consistency.opencos import OpenCoS, OpenSet, filled, split_open_set
from ssl_lab.nets import net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, IMAGES = 3, 20
IN = torch.tensor([True, False, True, True, False, True, False, True, True, True] * 2)
SOFT = torch.rand(IMAGES, CLASSES, generator=torch.Generator().manual_seed(7), dtype=torch.float64).softmax(dim=1)
NONE = torch.full((IMAGES,), -1)
SURE = NONE.index_fill(0, torch.tensor([2, 5]), 1)
AT = At(0, 10)


BATCH = Batch(noise_rows(6, 0, ["weak"]), noise_rows(10, 1, ["weak", "strong"]))


def _method(in_class=IN, soft=SOFT, confident=NONE, **arguments):
    small = net("tiny_4", classes=CLASSES, style=STYLE, seed=0)
    return OpenCoS(small, in_class, soft, confident, **arguments).double().train()


def _fixmatch(**arguments):
    return FixMatch(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), **arguments).double().train()


def _entropy(target, row):
    return -sum(t * math.log(p) for t, p in zip(target, softmax(row), strict=True))


def _one_hot(label):
    return [float(c == label) for c in range(CLASSES)]


def test_contract():
    rows = torch.arange(16)
    check_method(lambda net: OpenCoS(net, rows % 3 > 0, torch.full((16, 4), 0.25), rows % 5 - 1))


# The loss


def _norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_loss_against_its_equations():
    method = _method(confident=SURE, threshold=0.5, weight=0.7, outside=0.3)
    for norm in method.auxiliary_norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    x, u = BATCH.labeled, BATCH.unlabeled
    ins = [row for row in range(10) if IN[row]]
    outs = [row for row in range(10) if not IN[row]]
    ins, outs = [(ins * 10)[n] for n in range(10)], [(outs * 10)[n] for n in range(10)]
    other = copy.deepcopy(method.net)
    with torch.no_grad():
        everything = torch.cat([x["weak"], u["weak"][ins], u["strong"][ins]])
        logits = copy.deepcopy(method.net)(everything).logits.tolist()
        for mine, norm in zip(_norms(other), method.auxiliary_norms, strict=True):
            mine.load_state_dict(norm.state_dict())
        foreign = other(u["weak"][outs]).logits.tolist()
    labeled, weak, strong = logits[:6], logits[6:16], logits[16:]
    supervised = [_entropy(_one_hot(int(y)), row) for y, row in zip(x.targets, labeled, strict=True)]
    supervised += [_entropy(_one_hot(int(SURE[row])), z) for row, z in zip(ins, weak, strict=True) if SURE[row] >= 0]
    assert len(supervised) > 6
    unlabeled, kept = 0.0, 0
    for q, z in zip(map(softmax, weak), strong, strict=True):
        if max(q) >= 0.5:
            unlabeled += _entropy(_one_hot(q.index(max(q))), z) / 10
            kept += 1
    assert 0 < kept < 10
    outside = sum(_entropy(SOFT[row].tolist(), z) for row, z in zip(outs, foreign, strict=True)) / 10
    terms = method(BATCH, AT).terms
    assert terms["labeled"].item() == pytest.approx(sum(supervised) / len(supervised), rel=1e-9)
    assert terms["unlabeled"].item() == pytest.approx(0.7 * unlabeled, rel=1e-9)
    assert terms["outside"].item() == pytest.approx(0.3 * outside, rel=1e-9)


@pytest.mark.parametrize("threshold", [0.4, 0.5])
def test_with_all_images_in_class_and_none_confident_it_is_fixmatch(threshold):
    """The same loss, the same gradients, the same statistics, bit for bit."""
    ours, plain = _method(torch.ones(IMAGES, dtype=torch.bool), threshold=threshold), _fixmatch(threshold=threshold)
    mine, theirs = ours(BATCH, AT), plain(BATCH, AT)
    assert mine.terms["outside"] == 0
    assert all(torch.equal(mine.terms[name], theirs.terms[name]) for name in ("labeled", "unlabeled"))
    mine.total.backward()
    theirs.total.backward()
    for (name, p), q in zip(ours.net.named_parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert all(torch.equal(p, q) for p, q in zip(ours.net.buffers(), plain.net.buffers(), strict=True))


def test_images_out_of_class_touch_neither_the_other_terms_nor_the_nets_statistics():
    changed = {name: view.clone() for name, view in BATCH.unlabeled.views.items()}
    for view in changed.values():
        view[~IN[:10]] = 1 - view[~IN[:10]]
    u = BATCH.unlabeled
    noisy = Batch(BATCH.labeled, Rows(changed, u.targets, u.truth, u.indices))
    first, second = _method(threshold=0.4), _method(threshold=0.4)
    a, b = first(BATCH, AT).terms, second(noisy, AT).terms
    assert torch.equal(a["labeled"], b["labeled"])
    assert torch.equal(a["unlabeled"], b["unlabeled"])
    assert a["outside"] != b["outside"]
    assert all(torch.equal(p, q) for p, q in zip(first.net.buffers(), second.net.buffers(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(first.auxiliary_norms.buffers(), second.auxiliary_norms.buffers(),
                                                    strict=True))


def test_a_batch_without_images_in_class_is_supervised_but_for_the_outside():
    method = _method(torch.zeros(IMAGES, dtype=torch.bool), confident=SURE, threshold=0.0)
    loss = method(BATCH, AT)
    assert loss.terms["unlabeled"] == 0
    assert loss.logs["in_class_rate"] == 0
    with torch.no_grad():
        every = torch.cat([BATCH.labeled["weak"], BATCH.unlabeled["weak"], BATCH.unlabeled["strong"]])
        logits = _method().net(every).logits[:6]
    assert loss.terms["labeled"].item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, BATCH.labeled.targets).item(), rel=1e-9)


def test_auxiliary_norms_are_state_and_are_not_exported():
    method = _method()
    assert len(method.auxiliary_norms) == len(_norms(method.net)) > 0
    before = copy.deepcopy(method.state_dict())
    method(BATCH, AT)
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("auxiliary_norms.") and "running_mean" in name for name in moved)
    assert method.predictor().state_dict().keys() == _fixmatch().net.state_dict().keys()


@pytest.mark.parametrize(("chosen", "expected"), [
    ([1, 1, 1, 1], [0, 1, 2, 3]),
    ([0, 1, 0, 1, 0], [1, 3, 1, 3, 1]),
    ([0, 0, 1], [2, 2, 2]),
])
def test_filled_repeats_the_chosen_rows(chosen, expected):
    assert filled(torch.tensor(chosen, dtype=torch.bool)).tolist() == expected


def test_filled_of_no_row_or_none_chosen():
    assert filled(torch.zeros(0, dtype=torch.bool)).tolist() == []
    assert filled(torch.zeros(3, dtype=torch.bool)).tolist() == [0, 1, 2]


def test_buffers_of_other_sizes_are_refused():
    with pytest.raises(UsageError, match=r"expected torch.bool \[images\], \[images, 3\] and \[images\]"):
        _method(soft=SOFT[:, :2])
    with pytest.raises(UsageError, match=r"in_class is torch\.int64"):
        _method(in_class=IN.long())


# Detection


def _two_kinds(seed=0, per_class=6):
    """Embeddings of three classes around axes 0 to 2, and of images around axis 3 and its opposite."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(CLASSES).repeat_interleave(per_class)
    axes = torch.eye(5, dtype=torch.float64)
    labeled = axes[targets] + 0.2 * torch.randn(len(targets), 5, generator=draw, dtype=torch.float64)
    kinds = torch.arange(40) % 5
    around = torch.cat([axes[:4], -axes[3:4]])[kinds]
    lengths = torch.rand(40, 1, generator=draw, dtype=torch.float64) * 3 + 0.5
    embeddings = lengths * (around + 0.1 * torch.randn(40, 5, generator=draw, dtype=torch.float64))
    return embeddings, labeled, targets, kinds


def _cosine(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize("deviations", [2.0, 0.0])
def test_detection_against_its_equations(deviations):
    embeddings, labeled, targets, _ = _two_kinds()
    found = split_open_set(embeddings, labeled, targets, CLASSES, deviations, temperature=0.2)
    rows = labeled.tolist()
    centers = []
    for c in range(CLASSES):
        own = [row for row, y in zip(rows, targets.tolist(), strict=True) if y == c]
        centers.append([sum(column) / len(own) for column in zip(*own, strict=True)])
    scores = [max(_cosine(row, center) for center in centers) for row in rows]
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    for z, inside, soft in zip(embeddings.tolist(), found.in_class.tolist(), found.soft_labels.tolist(), strict=True):
        similar = [_cosine(z, center) for center in centers]
        assert inside == (max(similar) > mean - deviations * std)
        assert soft == pytest.approx(softmax([value / 0.2 for value in similar]), rel=1e-9)
    assert 0 < found.in_class.sum() < 40


def test_detection_tells_the_kinds_apart_and_is_sure_of_the_right_classes():
    embeddings, labeled, targets, kinds = _two_kinds()
    found = split_open_set(embeddings, labeled, targets, CLASSES, top=0.5)
    assert torch.equal(found.in_class, kinds < CLASSES)
    sure = found.confident >= 0
    assert sure.sum() == int(0.5 * found.in_class.sum())
    assert torch.equal(found.confident[sure], kinds[sure])


def test_the_confident_are_those_of_whom_a_linear_classifier_is_surest():
    embeddings, labeled, targets, _ = _two_kinds()
    few, more = (split_open_set(embeddings, labeled, targets, CLASSES, top=top) for top in (0.1, 0.5))
    assert int((few.confident >= 0).sum()) == int(0.1 * few.in_class.sum()) > 0
    assert (more.confident[few.confident >= 0] >= 0).all()
    assert (more.confident[~more.in_class] == -1).all()
    assert (split_open_set(embeddings, labeled, targets, CLASSES, top=0.0).confident == -1).all()


def test_detection_does_not_depend_on_the_scale_or_the_order():
    embeddings, labeled, targets, _ = _two_kinds()
    found = split_open_set(embeddings, labeled, targets, CLASSES)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    again = split_open_set(3 * embeddings[order], 3 * labeled, targets, CLASSES)
    assert torch.equal(again.in_class, found.in_class[order])
    assert torch.equal(again.confident, found.confident[order])
    torch.testing.assert_close(again.soft_labels, found.soft_labels[order])


@pytest.mark.parametrize("targets", [[0, 0, 1, 1], [0, 1, 2], [0, 1, 2, 3, 3]])
def test_too_few_labeled_images_to_detect_by(targets):
    with pytest.raises(UsageError, match="labeled images by class"):
        split_open_set(torch.rand(4, 2), torch.rand(len(targets), 2), torch.tensor(targets), CLASSES)


def test_by_index_puts_each_row_where_its_image_is():
    found = OpenSet(torch.tensor([True, True]), torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([5, -1]))
    whole = found.by_index(torch.tensor([3, 1]), 4)
    assert whole.in_class.tolist() == [False, True, False, True]
    assert whole.soft_labels.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]
    assert whole.confident.tolist() == [0, -1, 0, 5]


# Open-set pools


def _pool(count=60, shape=(8, 8), name="ours", seed=0, classes=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (count + 12, *shape), dtype=np.uint8)
    labels = np.arange(count + 12) % classes
    return sl.Pool.from_arrays(pixels[:count], labels[:count], pixels[count:], labels[count:], name=name)


@pytest.fixture
def ours():
    return _pool().split(labels=6, valid=9, seed=1)


def test_a_share_of_the_unlabeled_images_is_of_the_other_pool(ours):
    other = _pool(80, (8, 8, 3), "theirs", seed=5, classes=4)
    mixed = open_set(ours, other, 0.5, seed=3)
    foreign = mixed.train[mixed.train >= len(ours)]
    assert len(mixed.train) == len(ours.train) == 51
    assert len(foreign) == round(0.5 * (51 - 6))
    assert (mixed.truth[foreign] == -1).all()
    assert (mixed.labels[foreign] == -1).all()
    for part in ("labeled", "valid", "test"):
        assert np.array_equal(getattr(mixed, part), getattr(ours, part))
    assert np.array_equal(mixed.labels[:len(ours)], ours.labels)
    assert np.array_equal(mixed.truth[:len(ours)], ours.truth)
    assert set(mixed.train[mixed.train < len(ours)]) < set(ours.train)
    assert np.array_equal(mixed.train, np.unique(mixed.train))
    assert torch.equal(mixed.images.take(np.arange(len(ours))), ours.images.take(np.arange(len(ours))))
    assert (mixed.name, mixed.classes, mixed.style) == ("ours+theirs", 3, ours.style)
    theirs = other.images.take(other.train).float() @ torch.eye(8)  # of the train images alone, as gray
    gray = (theirs * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True).round()
    known = {image.numpy().tobytes() for image in gray.to(torch.uint8)}
    seen = [image.numpy().tobytes() for image in mixed.images.take(foreign)]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= known


def test_the_draw_is_a_function_of_the_seed(ours):
    other = _pool(80, name="theirs", seed=5)
    first, again, different = (open_set(ours, other, 0.5, seed) for seed in (3, 3, 4))
    assert first.manifest() == again.manifest()
    assert first.manifest()["hash"] != different.manifest()["hash"]
    assert first.images.fingerprint() != different.images.fingerprint()
    assert first.manifest()["hash"] != ours.manifest()["hash"]
    assert first.manifest()["pixels"] != open_set(ours, _pool(80, seed=6), 0.5, 3).manifest()["pixels"]


def test_the_ends_of_the_share(ours):
    other = _pool(80, name="theirs", seed=5)
    none, everything = open_set(ours, other, 0.0, 0), open_set(ours, other, 1.0, 0)
    assert np.array_equal(none.train, ours.train)
    assert (none.truth[none.train] >= 0).all()
    known = everything.train[everything.truth[everything.train] >= 0]
    assert np.array_equal(known, ours.labeled)


def test_a_split_of_the_mixed_pool_can_be_repeated_from_its_manifest(ours, tmp_path):
    mixed = open_set(ours, _pool(80, name="theirs", seed=5), 0.5, 3)
    mixed.write_manifest(tmp_path / "split.json")
    again = mixed.split(labeled=tmp_path / "split.json")
    assert again.manifest()["hash"] == mixed.manifest()["hash"]
    with pytest.raises(UsageError, match="belongs to other images"):
        ours.split(labeled=tmp_path / "split.json")


def test_an_oracle_can_label_what_is_left_and_a_ledger_goes_on(tmp_path):
    other, arguments = _pool(80, name="theirs", seed=5), {"labels": 6, "seed": 1, "ledger": tmp_path / "ledger"}
    mixed = open_set(_pool().split(**arguments), other, 0.5, 3)
    row, foreign = np.setdiff1d(mixed.train, mixed.labeled)[0], mixed.train[-1]
    mixed.record([row, foreign], [2, -2])
    again = open_set(_pool().split(**arguments), other, 0.5, 3)
    assert again.labels[[row, foreign]].tolist() == [2, -2]
    assert np.array_equal(again.unlabeled, mixed.unlabeled)
    assert foreign not in again.unlabeled


def test_labels_given_before_are_not_thrown_away(ours):
    ours.record(np.setdiff1d(ours.train, ours.labeled), np.zeros(45, dtype=np.int64))
    with pytest.raises(UsageError, match="before any label is asked for"):
        open_set(ours, _pool(80), 0.5, 3)


@pytest.mark.parametrize(("share", "words"), [(1.5, "share=1.5: expected 0 to 1"), (-0.1, "share=-0.1"),
                                              (0.9, "is 40, but theirs has only 30 to train on")])
def test_shares_that_cannot_be(ours, share, words):
    with pytest.raises(UsageError, match=words):
        open_set(ours, _pool(30, name="theirs"), share, 0)


@pytest.mark.parametrize(("given", "wanted"), [((3, 12, 12), (1, 6, 6)), ((1, 6, 6), (3, 9, 9)), ((1, 5, 5), (1, 4, 8)),
                                               ((3, 8, 20), (3, 4, 4))])
def test_borrowed_images_have_the_shape(given, wanted):
    """One color stays one color, and of a strip the middle is kept."""
    pixels = np.zeros((5, *given), np.uint8) + np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None]
    borrowed = Borrowed(ArrayImages(pixels), np.array([4, 1]), wanted)
    images = borrowed.take(np.array([1, 0, 1]))
    assert images.shape == (3, *wanted)
    assert images.dtype == torch.uint8
    assert [image.unique().tolist() for image in images] == [[50], [200], [50]]
    assert len(borrowed) == 2


def test_borrowed_keeps_the_middle():
    pixels = np.zeros((1, 1, 4, 12), np.uint8)
    pixels[..., 4:8] = 200
    assert Borrowed(ArrayImages(pixels), np.array([0]), (1, 4, 4)).take(np.array([0])).unique().tolist() == [200]


# The recipe


def test_the_recipe_trains_opencos_on_a_mixed_pool(tmp_path, capsys):
    path = Path(__file__).parent.parent / "recipes" / "openset.py"
    spec = importlib.util.spec_from_file_location("recipe_openset_here", path)
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    noise = np.random.default_rng(0).integers(0, 256, (700, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise, labels=np.arange(700) % 2)
    common = ["--net", "tiny_4", "--labels", "40", "--labeled", "8", "--unlabeled", "8", "--device", "cpu",
              "--precision", "fp32", "--other", str(tmp_path / "noise.npz"), "--method", "opencos", "--steps", "2"]
    weights = ["--encoder", str(tmp_path / "a" / "encoder" / "model.safetensors")]
    for name, more in (("a", ["--encoder-steps", "3"]), ("b", weights)):
        recipe.main(parse(recipe.Settings, [*common, *more, "--out", str(tmp_path / name)]))
        counted, result = capsys.readouterr().out.splitlines()[-2:]
        assert counted.endswith("unlabeled images count as of a known class")
        assert result.startswith("opencos on digits+noise with 40 labels: test ")
    with pytest.raises(UsageError, match="labeled images by class"):  # and no encoder is trained
        recipe.main(parse(recipe.Settings, [*common, "--labels", "10", "--out", str(tmp_path / "few")]))
    assert not (tmp_path / "few").exists()
    assert "method: simclr" in (tmp_path / "a" / "encoder" / "config.yaml").read_text()
    first, second = ([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                     for name in ("a", "b"))
    assert first == second  # the same encoder, trained or read
    assert json.loads((tmp_path / "a" / "encoder" / "summary.json").read_text())["method"] == "simclr"
