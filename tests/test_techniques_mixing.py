"""MixUp and CutMix of labeled images, around any method: their equation, what they refuse, and where they stand."""

import pytest
import torch
from small_runs import digits, flat_net

import ssl_lab as sl
from ssl_lab import methods
from ssl_lab.batch import At
from ssl_lab.engine import Feed
from ssl_lab.errors import UsageError
from ssl_lab.losses import cross_entropies
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.methods.mixture import beta_shares, permutation
from ssl_lab.techniques import technique, together

AT = At(3, 10, seed=1)
BASES = {"supervised": Supervised, "fixmatch": FixMatch, "adamatch": methods.AdaMatch, "s4l": methods.S4L,
         "uda": methods.UDA, "abc": lambda net: methods.ABC(net, [10] * 10)}


@pytest.fixture(scope="module")
def pool():
    return digits()


def batch_of(pool, method, at=AT):
    return Feed(pool, method.views, 8, 8, 0, torch.device("cpu"))(at)


@pytest.mark.parametrize("text", ["mixup(alpha=0.4)", "mixup(chance=0.5)", "cutmix(chance=1)", "cutmix"])
def test_each_is_its_equation(pool, text):
    """Row by row and pixel by pixel, in float64."""
    made, method = technique(text), Supervised(flat_net()).double()
    around, seen = made.around(method, pool, 0), []
    batch = batch_of(pool, method)
    method.net.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch.labeled.views["view"] = batch.labeled["view"].double()
    loss = around(batch, AT)
    x, y, draw = batch.labeled["view"], batch.labeled.targets, AT.draw(made.name, 8)
    share, partner = beta_shares(draw, made.alpha).double(), permutation(draw.child("partner"))
    whole = AT.draw(made.name, 8).uniform() >= made.chance
    assert whole.any() == (made.chance < 1)
    share[whole] = 1
    total = 0.0
    for b, mixed in enumerate(seen[0]):
        own, other = x[b], x[partner[b]]
        s = share[b].item()
        if made.name == "mixup":
            torch.testing.assert_close(mixed, s * own + (1 - s) * other, atol=1e-7, rtol=0)
        else:
            differs = own != other
            assert torch.equal(mixed[~differs], own[~differs])
            pasted = mixed == other
            assert torch.equal(torch.where(pasted, other, own), mixed)
            found = [place for place in range(64) if differs.flatten()[place] and pasted.flatten()[place]]
            lines, columns = ([each(place, 8) for place in found] for each in (int.__floordiv__, int.__mod__))
            most = int(8 * (1 - s) ** 0.5)
            assert not found or max(max(lines) - min(lines), max(columns) - min(columns)) < most
            s = around_share(draw, share, b)
        z = method.net(mixed[None]).logits[0].log_softmax(0)
        total -= s * z[y[b]].item() + (1 - s) * z[y[partner[b]]].item()
    assert loss.total.item() == pytest.approx(total / 8, rel=1e-6)


def around_share(draw, share, b):
    """The share of the pixels outside the rectangle, by its center and its sides."""
    again, inside = draw.child("rectangle"), 1
    centers = [again.integers(0, 8, 1, 1)[b].item() for _ in range(2)]
    for center in centers:
        side = int(8 * (1 - share[b].float().item()) ** 0.5)
        inside *= len([place for place in range(center - side // 2, center - side // 2 + side) if 0 <= place < 8])
    return 1 - inside / 64


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_any_method_sees_mixtures_and_only_its_labeled_images_are_mixed(pool, base, name):
    method = BASES[base](flat_net())
    around, batch = technique(name).around(method, pool, 0), batch_of(pool, method)
    before = {kind: {key: view.clone() for key, view in getattr(batch, kind).views.items()}
              for kind in ("labeled", "unlabeled")}
    plain, loss = method(batch, AT), around(batch, AT)
    assert loss.terms.keys() == plain.terms.keys()
    assert not torch.equal(loss.terms["labeled"], plain.terms["labeled"])
    assert all(torch.equal(view, before[kind][key]) for kind in before
               for key, view in getattr(batch, kind).views.items())
    loss.total.backward()


def test_another_loss_of_labeled_images_is_that_of_each_label_wherever_it_is_given(pool):
    """Mixing acts first: l is what the other techniques make of it."""
    losses = []
    for given in (["cutmix(chance=1)", "ldam(beta=0)"], ["ldam(beta=0)", "cutmix(chance=1)"]):
        around = together(given).around(Supervised(flat_net()), pool, 0)
        losses.append(around(batch_of(pool, around), AT).total)
    assert torch.equal(*losses)
    plain = together(["cutmix(chance=1)"]).around(Supervised(flat_net()), pool, 0)
    assert losses[0] > plain(batch_of(pool, plain), AT).total  # a margin makes it larger


class Doubled(Supervised):
    name = "doubled"

    def forward(self, batch, at):
        logits = self.net(batch.labeled["view"]).logits
        return sl.Loss({"labeled": self.labeled_loss(logits.repeat_interleave(2, 0),
                                                     batch.labeled.targets.repeat_interleave(2))})


@pytest.mark.parametrize(("make", "words"), [
    (lambda net: methods.MixMatch(net), "cutmix mixes labeled images, and mixmatch mixes images itself: give it mix="),
    (lambda net: methods.TemporalEnsembling(net, 2000), "temporal_ensembling keeps what it has seen of each"),
    (lambda net: sl.KD(net, sl.methods.distillation.teacher.StoredLogits(torch.zeros(2000, 10)), view=sl.views.Eval),
     "kd goes by answers that were stored of whole ones"),
    (lambda net: sl.SimCLR(net), "simclr has none"),
])
def test_what_cannot_be_mixed_is_said(pool, make, words):
    with pytest.raises(UsageError, match=words):
        together(["cutmix"]).check(make(flat_net()), pool, None, sharded=False)


def test_a_method_of_ones_own_with_other_rows_in_its_loss_is_refused_in_its_first_step(pool):
    around = sl.CutMix().around(Doubled(flat_net()), pool, 0)
    with pytest.raises(UsageError, match="doubled has other rows than those, in this order, in its labeled loss"):
        around(batch_of(pool, around), AT)


@pytest.mark.parametrize(("given", "words"), [
    (["mixup", "cutmix"], "mixup and cutmix exclude each other: an image is mixed once"),
    (["relay", "cutmix"], "relay and cutmix exclude each other: it goes by one label of each image"),
    (["cutmix(chance=2)"], "cutmix: chance=2; expected a share of the images, 0 to 1"),
    (["mixup(alpha=-1)"], "alpha, of the Beta .* is -1; expected 0"),
])
def test_what_cannot_be_is_said(given, words):
    with pytest.raises(UsageError, match=words):
        together(given)


def test_cross_entropy_of_mixtures_is_that_of_mixed_labels(pool):
    """The paper's two forms: s H(y, z) + (1 - s) H(y', z) = H(s y + (1 - s) y', z)."""
    logits, share = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    own, other = torch.arange(6) % 4, torch.arange(1, 7) % 4
    mixed = torch.nn.functional.one_hot(own, 4) * share[:, None] + torch.nn.functional.one_hot(other, 4) * (
        1 - share[:, None])
    torch.testing.assert_close(share * cross_entropies(logits, own) + (1 - share) * cross_entropies(logits, other),
                               cross_entropies(logits, mixed))
