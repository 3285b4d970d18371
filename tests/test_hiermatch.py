"""HierMatch: the contract, slices and gradients, MixMatch and FixMatch level by level in float64, hierarchies."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ssl_lab as sl
from ssl_lab import losses
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.data.hierarchy import HIERARCHIES, parents
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch, MixMatch
from ssl_lab.methods.consistency.flexmatch import FlexMatch
from ssl_lab.methods.consistency.hiermatch import HierMatch
from ssl_lab.nets import Net, net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, IMAGES = 4, 20
TWO, THREE = [[0, 0, 1, 1]], [[0, 0, 1, 2], [0, 0, 1, 1]]
AT = At(2, 10, seed=5)
FIX = partial(FixMatch, threshold=0.5)


def _rows(count, seed, views, unlabeled=False):
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % CLASSES
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in views}
    return Rows(images, torch.full_like(truth, -1) if unlabeled else truth, truth, torch.arange(count))


def _method(parents=TWO, base=FIX, **arguments):
    return HierMatch(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), parents, base, **arguments).double().train()


def _batch(method):
    return Batch(_rows(6, 0, method.views.labeled), _rows(9, 1, method.views.unlabeled, unlabeled=True))


def _terms(method, batch=None, at=AT):
    return {name: term.item() for name, term in method(batch or _batch(method), at).terms.items()}


COARSE = torch.stack([torch.arange(IMAGES) % 3 - 1, torch.arange(IMAGES) % 2], dim=1)


@pytest.mark.parametrize("build", [
    lambda net: HierMatch(net, TWO),
    lambda net: HierMatch(net, THREE, FixMatch, coarse=COARSE),
], ids=["mixmatch", "fixmatch, three levels, coarse labels"])
def test_contract(build):
    check_method(build, compile=False)


# What a level sees


class _Pixels(nn.Module):
    """A backbone whose features are the pixels, so that a gradient of an image is one of the features."""

    def forward(self, x):
        return x.flatten(1)


def _pixel_net(features=7):
    torch.manual_seed(0)
    return Net(_Pixels(), nn.Linear(features, CLASSES), (0.0,), (1.0,)).double()


@pytest.mark.parametrize(("parents", "slices"), [
    (TWO, [slice(3, 7), slice(0, 3)]),
    (THREE, [slice(4, 7), slice(2, 4), slice(0, 2)]),
])
def test_the_loss_of_a_level_reaches_its_own_slice_of_the_features_alone(parents, slices):
    method = HierMatch(_pixel_net(), parents, partial(FixMatch, threshold=0.0)).double()
    for level, own in enumerate(slices):
        batch = _batch(method)
        images = {name: torch.rand(6, 1, 1, 7, dtype=torch.float64, requires_grad=True) for name in ("weak", "strong")}
        labeled, unlabeled = Rows({"weak": images["weak"]}, *[batch.labeled.targets] * 3), batch.unlabeled
        unlabeled = Rows({"weak": images["weak"].detach(), "strong": images["strong"]}, *[batch.labeled.targets] * 3)
        terms = method(Batch(labeled, unlabeled), AT).terms
        suffix = f"_{level}" if level else ""
        (terms["labeled" + suffix] + terms["unlabeled" + suffix]).backward()
        for image in images.values():
            gradient = image.grad.flatten(1)
            assert (gradient[:, own] != 0).all()
            gradient[:, own] = 0
            assert not gradient.any()


def test_a_coarse_head_uses_the_finer_features_all_the_same():
    method = HierMatch(_pixel_net(), THREE, FIX).double()
    assert [base.net.head.in_features for base in method.bases] == [7, 5, 7]
    method(Batch(Rows({"weak": torch.rand(4, 1, 1, 7).double()}, *[torch.arange(4)] * 3),
                 Rows({name: torch.rand(4, 1, 1, 7).double() for name in ("weak", "strong")},
                      *[torch.arange(4)] * 3)), AT).total.backward()
    for base in method.bases[1:]:
        assert (base.net.head.weight.grad != 0).all()


def test_the_net_that_is_evaluated_is_the_finest_level_also_after_training():
    method = _method()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        method(_batch(method), At(step, 10)).total.backward()
        optimizer.step()
        method.after_step(At(step, 10))
    half = method.net.features_dim // 2
    assert not method.net.head.weight[:, :half].any()
    assert method.net.head.weight[:, half:].all()
    predictor = method.predictor()
    assert not predictor.head.weight[:, :half].any()
    image = _batch(method).labeled["weak"]
    with torch.no_grad():
        features, logits = predictor(image)
        expected = F.linear(features[:, half:], predictor.head.weight[:, half:], predictor.head.bias)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    fresh = net("tiny_4", classes=CLASSES, style=STYLE)
    fresh.load_state_dict(predictor.state_dict())


# Level by level against the base method


class _Seen(nn.Module):
    """The slow way: a pass of the whole net for this level, of which the level sees a part."""

    def __init__(self, whole, level):
        super().__init__()
        self.whole, self.level = whole, level
        self.classes, self.features_dim = level.classes, level.features_dim

    def forward(self, x):
        features = self.whole(x).features[:, -self.features_dim:]
        weight = self.level.head.weight[:, -self.features_dim:]
        return sl.Output(features, features @ weight.T + self.level.head.bias)


@pytest.mark.parametrize("parents", [TWO, THREE])
@pytest.mark.parametrize("base", [FIX, partial(MixMatch, weight=3.0)], ids=["fixmatch", "mixmatch"])
def test_each_level_is_the_base_method_with_the_labels_of_the_level(base, parents):
    method = _method(parents, base)
    batch = _batch(method)
    expected = {}
    for level, classes in enumerate([list(range(CLASSES)), *parents]):
        whole = copy.deepcopy(method)
        alone = base(_Seen(whole.net, whole.bases[level].net)).double().train()
        y = torch.tensor([classes[label] for label in batch.labeled.targets.tolist()])
        labeled = Rows(batch.labeled.views, y, y, batch.labeled.indices)
        for name, term in alone(Batch(labeled, batch.unlabeled), AT).terms.items():
            expected[f"{name}_{level}" if level else name] = term.item()
    assert _terms(method, batch) == pytest.approx(expected, rel=1e-9)
    assert all(value > 0 for value in expected.values())


@pytest.mark.parametrize("base", [FIX, MixMatch], ids=["fixmatch", "mixmatch"])
def test_the_levels_share_the_passes_of_the_net_and_what_they_move(base):
    method, single = _method(THREE, base), base(net("tiny_4", classes=CLASSES, style=STYLE, seed=0)).double().train()
    passes = {}
    for which in (method, single):
        which.net.register_forward_hook(lambda *_, which=which: passes.update({which: passes.get(which, 0) + 1}))
        which(_batch(which), AT)
    assert passes[method] == passes[single] > 0
    moved = dict(method.net.named_buffers())
    assert all(torch.equal(value, moved[name]) for name, value in single.net.named_buffers())
    assert not method.passes.done  # nothing is held until the next step


def test_a_base_with_state_moves_it_at_each_level():
    method = _method(TWO, partial(FlexMatch, images=IMAGES, threshold=0.3))
    method(_batch(method), AT)
    method.after_step(AT)
    assert [int(base.selected.max()) < base.net.classes for base in method.bases] == [True, True]
    assert all((base.selected >= 0).any() for base in method.bases)


def test_truth_of_a_level_is_for_its_diagnostics():
    method = _method(TWO, partial(FixMatch, threshold=0.0))
    batch = _batch(method)
    logits = copy.deepcopy(method).bases[1].net
    u = batch.unlabeled
    everything = torch.cat([batch.labeled["weak"], u["weak"], u["strong"]])
    said = logits(everything).logits[6:15].argmax(dim=1)
    right = np.mean([TWO[0][t] == s for t, s in zip(u.truth.tolist(), said.tolist(), strict=True)])
    assert method(batch, AT).logs["pseudo_label_accuracy_1"].item() == pytest.approx(right)


# Images with a coarse label alone


def test_coarse_labels_add_their_mean_cross_entropy_at_their_level_alone():
    coarse = torch.full((IMAGES, 2), -1)
    coarse[[0, 3, 4], 0] = torch.tensor([2, 1, 0])
    coarse[[0, 3, 4, 7], 1] = torch.tensor([1, 1, 0, 0])
    method, without = _method(THREE, coarse=coarse), _method(THREE)
    batch = _batch(method)
    terms = _terms(method, batch)
    own = {name: value for name, value in terms.items() if not name.startswith("coarse")}
    assert own == _terms(without, batch)
    assert terms.keys() - own.keys() == {"coarse_1", "coarse_2"}
    for level in (1, 2):
        with torch.no_grad():
            logits = _Seen(copy.deepcopy(without).net, without.bases[level].net)(batch.unlabeled["weak"]).logits
        each = [losses.cross_entropy(logits[[row]], coarse[[row], level - 1]).item()
                for row in range(9) if coarse[row, level - 1] >= 0]
        assert terms[f"coarse_{level}"] == pytest.approx(sum(each) / len(each), rel=1e-9)


def test_no_coarse_label_in_the_batch_adds_nothing():
    terms = _terms(_method(coarse=torch.full((IMAGES, 1), -1)))
    assert terms["coarse_1"] == 0


def test_coarse_labels_teach_the_fine_slice_nothing():
    method = HierMatch(_pixel_net(), TWO, FIX, coarse=torch.arange(IMAGES)[:, None] % 2).double()
    weak = torch.rand(6, 1, 1, 7, dtype=torch.float64, requires_grad=True)
    y = torch.arange(6) % CLASSES
    batch = Batch(Rows({"weak": weak.detach()}, y, y, y), Rows({"weak": weak, "strong": weak.detach()}, y, y, y))
    method(batch, AT).terms["coarse_1"].backward()
    assert (weak.grad.flatten(1)[:, :3] != 0).all()
    assert not weak.grad.flatten(1)[:, 3:].any()


# Bad input


@pytest.mark.parametrize("wrong", [[0, 0, 1, 1], [[0, 0, 1]], [[0, 0, 1, -1]], [[0.0, 0, 1, 1]], [[0, 0, 1, 1], [0]]])
def test_parents_that_are_no_hierarchy(wrong):
    with pytest.raises(UsageError, match="parents="):
        _method(wrong)


def test_coarse_labels_of_another_shape():
    with pytest.raises(UsageError, match=r"coarse is \[20\], expected \[images, 1\]"):
        _method(coarse=torch.zeros(20, dtype=torch.int64))


def test_too_few_features_for_the_levels():
    with pytest.raises(UsageError, match="2 features, too few for 3 levels"):
        HierMatch(_pixel_net(2), THREE)


def test_a_base_whose_passes_differ_between_levels_is_refused():
    class Uneven(FixMatch):
        def forward(self, batch, at):
            rows = self.net.classes  # as a base would that picks images by its predictions
            self.net(batch.labeled["weak"][:rows])
            return super().forward(batch, at)

    method = _method(base=Uneven)
    with pytest.raises(UsageError, match="the levels of HierMatch pass different images"):
        method(_batch(method), AT)


# Hierarchies


@pytest.mark.parametrize("name", HIERARCHIES)
def test_a_hierarchy_has_every_class_once(name):
    from ssl_lab.data.fetch import CLASS_NAMES

    classes = [fine for names in HIERARCHIES[name].values() for fine in names.split()]
    assert len(classes) == len(set(classes))
    if name == "cifar100":
        assert len(classes) == 100
        assert {len(names.split()) for names in HIERARCHIES[name].values()} == {5}
    else:
        known = CLASS_NAMES.get(name, tuple("0123456789"))
        assert sorted(classes) == sorted(fine.replace(" ", "_") for fine in known)


def test_cifar100_has_its_official_superclasses():
    """The coarse labels of the classes in alphabetical order, as the data set's files have them."""
    official = [4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15,
                0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18,
                17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5,
                8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13]
    fine = sorted(name for names in HIERARCHIES["cifar100"].values() for name in names.split())
    pool = sl.Pool.from_arrays(np.zeros((100, 2, 2), np.uint8), np.arange(100), class_names=fine, name="cifar100")
    assert parents(pool) == tuple(official)


def test_parents_of_digits():
    assert parents(sl.load("digits")) == (0, 2, 1, 1, 2, 1, 0, 2, 0, 0)


def test_parents_of_an_unknown_pool():
    pool = sl.Pool.from_arrays(np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1], name="mine")
    with pytest.raises(UsageError, match="no hierarchy of mine's classes is known"):
        parents(pool)
