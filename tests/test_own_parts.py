"""What strangers write, outside of the package, and what they are told where it does not fit."""

import sys

import numpy as np
import pytest
import torch
from small_runs import digits, tiny_net

import ssl_lab as sl
from ssl_lab import build, losses, testing
from ssl_lab.data import load
from ssl_lab.errors import UsageError
from ssl_lab.nets import net
from ssl_lab.techniques import together

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


class OneHead(sl.Supervised):
    """A head of its own, drawn as PyTorch does."""

    def __init__(self, net):
        super().__init__(net)
        self.own = torch.nn.Linear(net.head.in_features, net.classes)

    def forward(self, batch, at):
        out = self.net(batch.labeled["view"])
        return sl.Loss({"own": losses.cross_entropy(self.own(out.features) + out.logits, batch.labeled.targets)})


def test_weights_that_a_method_draws_go_by_the_seed_and_leave_the_generator_alone(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    pool, before = digits(), torch.get_rng_state()
    text = f"{__name__}:OneHead"
    one, same, other = (build.method(text, net("tiny_4", 10, pool.style, seed=seed), pool, {}).own.weight
                        for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    testing.check_method(OneHead, compile=False)


class Head(sl.TermTechnique):
    name, paper, arxiv = "head", "", ""

    def begin(self, pool, seed):
        self.head = torch.nn.Linear(self.net.head.in_features, 1)

    def forward(self, batch, at):
        loss = self.base(batch, at)
        rows = batch.labeled if batch.labeled.views else batch.unlabeled
        own = self.head(self.net(next(iter(rows.views.values()))).features)
        return sl.Loss(loss.terms | {"own": own.square().mean()})


def test_weights_that_a_technique_draws_go_by_the_seed():
    pool = digits()
    one, same, other = (together([Head()]).around(sl.Supervised(tiny_net(pool)), pool, seed).head.weight
                        for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


class Plain(sl.TermTechnique):
    name, paper, arxiv = "plain", "", ""

    def forward(self, batch, at):
        return self.wrong(self.base(batch, at))


def wrong(answer):
    return type("Wrong", (Plain,), {"name": "wrong", "wrong": lambda self, loss: answer(loss)})


class NoInit(Plain):
    name = "no_init"

    def __init__(self):
        self.scale = 2


class NoLoss(sl.StepTechnique):
    name, paper, arxiv = "no_loss", "", ""

    def forward(self, closure, optimizer, at):
        closure()
        optimizer.step()


class NoNet(sl.NetTechnique):
    name, paper, arxiv = "no_net", "", ""

    def __call__(self, net, pool, seed):
        net.head.bias.data.zero_()


class NoSeed(sl.DataTechnique):
    name, paper, arxiv = "no_seed", "", ""

    def __call__(self, pool, seed):
        return pool.split(labeled=np.random.permutation(pool.labeled)[:4])


@pytest.mark.parametrize(("make", "words"), [
    (wrong(lambda loss: loss.total), "wrong returns Tensor; expected sl.Loss"),
    (wrong(lambda loss: sl.Loss({"x": torch.ones(3)})), r"the term 'x' of the loss is \[3\]; expected a scalar"),
    (wrong(lambda loss: sl.Loss({"x": 0.0})), "the term 'x' of the loss is a float; expected a scalar"),
    (wrong(lambda loss: next(iter(()))), "with fixmatch it fails .StopIteration .*test_own_parts.py, line"),
    (NoInit, "no_init: its __init__ has to call super"),
    (NoLoss, "no_loss returns NoneType; expected sl.Loss"),
    (NoNet, "NoNet returns NoneType; expected the Net"),
    (NoSeed, "NoSeed: two runs of fixmatch with one seed differ"),
])
def test_a_technique_that_breaks_the_contract_is_told_how(make, words):
    with pytest.raises(AssertionError, match=words):
        testing.check_technique(make(), compile=False)


class Both(sl.ScoreQuery):
    name, family, paper, arxiv = "both", "hybrid", "", ""
    needs = ["embeddings", "probs"]  # noqa: RUF012 - as people write it

    def scores(self, view, rows):
        p = view.probs[rows].astype(float)
        return self.of(-(p * np.log(p)).sum(axis=1)) * np.linalg.norm(view.embeddings[rows], axis=1)

    def of(self, entropy):
        return np.nan_to_num(entropy)


class Asking(Both):
    needs = "probs", "logits"


def test_what_a_query_needs_may_be_written_in_any_way():
    assert Both.needs == {"embeddings", "probs"}
    assert type("One", (Both,), {"needs": "probs"}).needs == {"probs"}
    testing.check_query(Both())
    with pytest.raises(UsageError, match=r"unknown array that .*:Asking needs 'logits'. Known: embeddings"):
        sl.make_query(f"{__name__}:Asking")


@pytest.mark.parametrize(("of", "words"), [(lambda entropy: entropy, r"both scores \[3\], 1 of them NaN; expected"),
                                           (lambda entropy: 0, r"both scores \[1\], 0 of them NaN")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scores_that_are_none_are_refused(of, words, monkeypatch):
    view = sl.PoolView(np.full(3, -1), embeddings=np.ones((3, 2)), probs=[[0.5, 0.5], [0.9, 0.1], [1, 0]])
    monkeypatch.setattr(Both, "of", lambda self, entropy: of(entropy))
    if of(1) == 0:
        monkeypatch.setattr(Both, "scores", lambda self, view, rows: np.ones(1))
    with pytest.raises(UsageError, match=words):
        Both()(view, 2)


def scheduled(style, side=0.5):
    """Darker by a share that may be a schedule."""
    return lambda images, draw: images / 255 * (1 - draw.value(side) * draw.to_device(draw.uniform(1, 1, 1)))


def test_a_view_with_a_schedule_keeps_the_contract():
    testing.check_views(lambda style: scheduled(style, sl.schedule.linear(0.1, 0.6)), sizes=[(8, 8)])


def test_what_is_no_view_of_a_style_says_what_is():
    with pytest.raises(AssertionError, match=r"takes no Style alone .*expected a function of a Style that returns"):
        testing.check_views(lambda images: images / 255)
    with pytest.raises(UsageError, match=r"a view's arguments have names, as in .*:scheduled\(side=0.3\)"):
        sl.views.named(f"{__name__}:scheduled(0.3)")


@pytest.mark.parametrize("read", [sl.make_query, sl.views.named, sl.techniques.technique, sl.methods.get])
def test_a_file_below_the_current_folder_is_its_module(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"cannot load the \w+ 'mine.parts:Own': No module named 'mine"):
        read("mine/parts.py:Own(x=1)")
    with pytest.raises(UsageError, match=r"'../parts.py:Own\(x=1\)' names a file that does not lie below the current"):
        read("../parts.py:Own(x=1)")


class Source:
    """What can be indexed."""

    def __init__(self, row):
        self.row = row

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, number):
        if number >= len(self):
            raise IndexError(number)
        return self.row(number)


def test_what_can_be_indexed_is_a_source():
    pool = load({"train": Source(lambda i: (PIXELS[i], "ab"[i % 2] if i < 8 else None)), "test": Source(
        lambda i: (255 - PIXELS[i], "ab"[i % 2]))})
    assert str(pool).startswith("dataset: 2 classes, 8 labeled, 4 unlabeled, 0 valid, 12 test (8 px, RGB)")
    assert len(load(Source(lambda i: (PIXELS[i], i % 2))).labeled) == 12


@pytest.mark.parametrize("row", [lambda i: PIXELS[i], lambda i: torch.from_numpy(PIXELS[i]), lambda i: (PIXELS[i],),
                                 lambda i: PIXELS[i][:2]])
def test_images_alone_have_no_labels_and_a_note(row):
    pool = load(Source(row))
    assert (len(pool), len(pool.labeled)) == (12, 0)
    assert "rows of the data set are images alone, so no image has a label" in pool.notes


@pytest.mark.parametrize(("given", "words"), [
    (Source(lambda i: (PIXELS[i], 1, i)), "row 0 of the data set is a tuple of ndarray, int, int; expected a pair"),
    ([(PIXELS[0], 1)], "of a list of pairs Pool.from_dataset"),
    (torch.utils.data.DataLoader(Source(lambda i: (PIXELS[i], 1))), "give loader.dataset"),
])
def test_what_is_no_source_says_what_is(given, words):
    with pytest.raises(UsageError, match=words):
        load(given)
