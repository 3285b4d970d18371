"""Deep Reference Priors: slow references in float64, the identities of its entropies, its particles."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from slow import noise_rows, softmax

from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.methods.consistency.reference_prior import ReferencePrior, bounded_entropy, joint_entropy, rearranged
from ssl_lab.nets import net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, LABELED, UNLABELED = 3, 4, 12
AT = At(2, 10)


def _batch():
    return Batch(noise_rows(LABELED, 0, ["weak"]), noise_rows(UNLABELED, 1, ["weak", "strong"]))


def _net(seed=0):
    return net("tiny_4", classes=CLASSES, style=STYLE, seed=seed)


def _method(seed=0, **arguments):
    return ReferencePrior(_net(seed), **({"threshold": 0.5} | arguments)).double().train()


def _log_p(rows, particles, classes=CLASSES, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, particles, classes, generator=draw, dtype=torch.float64).mul(2).log_softmax(dim=2)


def _entropy(p):
    return -sum(value * math.log(value) for value in p if value)


def _slow_joint_entropy(p, order):
    """p[b][k][c]: outcome by outcome, particle by particle."""
    entropies = []
    for start in range(0, len(p), order):
        group = p[start : start + order]
        mixture = [
            sum(math.prod(group[i][k][y] for i, y in enumerate(outcome)) for k in range(len(p[0]))) / len(p[0])
            for outcome in itertools.product(range(len(p[0][0])), repeat=order)
        ]
        assert sum(mixture) == pytest.approx(1)
        entropies.append(_entropy(mixture) / order)
    return sum(entropies) / len(entropies)


@pytest.mark.parametrize("build", [partial(ReferencePrior, particles=1, order=1),
                                   partial(ReferencePrior, particles=2, threshold=0.0, alpha=1.0, order=4)])
def test_contract_with_other_arguments(build):
    check_method(build, compile=False)


@pytest.mark.parametrize("arguments", [{}, {"particles": 2, "order": 3, "alpha": 0.7}, {"tau": 0.6, "threshold": 0.0},
                                       {"particles": 1, "order": 1}, {"threshold": 1.0}])
def test_against_its_equations(arguments):
    method, batch = _method(**arguments), _batch()
    settings = {"particles": 4, "order": 2, "alpha": 0.05, "tau": 1 / 3, "threshold": 0.5} | arguments
    count, tau = settings["particles"], settings["tau"]
    x, u = batch.labeled, batch.unlabeled
    particles = copy.deepcopy(method.net.particles)
    assert len(particles) == count
    p = [[softmax(row) for row in particle(torch.cat([x["weak"], u["weak"], u["strong"]])).logits.tolist()]
         for particle in particles]
    labeled, conditional, kept = 0.0, 0.0, 0
    for said in p:
        labeled += sum(-math.log(row[y]) for row, y in zip(said, x.targets.tolist(), strict=False)) / LABELED
        for weak, strong in zip(said[LABELED:-UNLABELED], said[-UNLABELED:], strict=True):
            if max(weak) >= settings["threshold"]:
                kept += 1
                conditional -= sum((tau * w + (1 - tau) * s) * (tau * math.log(w) + (1 - tau) * math.log(s))
                                   for w, s in zip(weak, strong, strict=True)) / UNLABELED
    weak = [list(rows) for rows in zip(*(said[LABELED:-UNLABELED] for said in p), strict=True)]
    marginal = count * settings["alpha"] * _slow_joint_entropy(weak, settings["order"])
    loss = method(batch, AT)
    assert loss.terms["labeled"].item() == pytest.approx(labeled, rel=1e-9)
    assert loss.terms["conditional"].item() == pytest.approx(conditional / (1 - tau**2), rel=1e-9)
    assert loss.terms["marginal"].item() == pytest.approx(-marginal / (1 - tau**2), rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / UNLABELED / count)


def test_the_threshold_above_keeps_some_rows():
    """Else the reference would not see the mask at work."""
    assert 0 < _method()(_batch(), AT).logs["mask_rate"] < 1


@pytest.mark.parametrize(("order", "particles", "classes"), [(1, 3, 4), (2, 1, 4), (2, 3, 4), (3, 2, 3)])
def test_joint_entropy_is_that_of_all_outcomes(order, particles, classes):
    log_p = _log_p(6, particles, classes)
    assert joint_entropy(log_p, order).item() == pytest.approx(_slow_joint_entropy(log_p.exp().tolist(), order))


def test_joint_entropy_of_equal_particles_is_the_mean_entropy_of_the_rows():
    """Labels are then independent: nothing is learned about which particle it is."""
    log_p = _log_p(6, 1)
    mean = sum(_entropy(row[0]) for row in log_p.exp().tolist()) / 6
    for order in (1, 2, 3):
        assert joint_entropy(log_p.expand(6, 5, CLASSES), order).item() == pytest.approx(mean)


def test_mutual_information_of_labels_and_particles_is_between_zero_and_its_most():
    """n (H(y) - H(y|w)) lies in [0, log K], and is log K where labels give the particle away."""
    for order, seed in itertools.product((1, 2, 3), range(5)):
        log_p = _log_p(6, 3, seed=seed)
        conditional = -(log_p.exp() * log_p).sum(dim=2).mean()
        information = order * (joint_entropy(log_p, order) - conditional).item()
        assert 0 < information < math.log(3)
    certain = torch.eye(3).mul(60).log_softmax(dim=1).expand(6, 3, 3)  # particle k always says class k
    for order in (1, 2, 3):
        assert order * joint_entropy(certain, order).item() == pytest.approx(math.log(3))


def test_joint_entropy_of_certain_predictions_has_a_finite_gradient():
    logits = torch.eye(3).mul(2000).expand(4, 3, 3).clone().requires_grad_()
    joint_entropy(logits.log_softmax(dim=2), 2).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("tau", [0.0, 1 / 3, 0.8])
def test_bounded_entropy_bounds_the_entropy_of_the_mean(tau):
    one, two = _log_p(8, 2).unbind(dim=1)
    mixed = tau * one.exp() + (1 - tau) * two.exp()
    entropy = torch.tensor([_entropy(row) for row in mixed.tolist()], dtype=torch.float64)
    bound = bounded_entropy(one, two, tau)
    assert (bound >= entropy - 1e-12).all()
    if tau:
        assert (bound > entropy + 1e-3).any()
    torch.testing.assert_close(bounded_entropy(one, one, tau), -(one.exp() * one).sum(dim=1))


def test_each_particle_has_the_labeled_gradient_that_it_would_have_alone():
    method, batch = _method().eval(), _batch()  # eval: rows do not meet in BatchNorm
    x = batch.labeled
    twins = copy.deepcopy(method.net.particles)
    method(batch, AT).terms["labeled"].backward()
    for particle, twin in zip(method.net.particles, twins, strict=True):
        alone = Supervised(twin).double().eval()
        alone(Batch(Rows({"view": x["weak"]}, x.targets, x.truth, x.indices), batch.unlabeled), AT).total.backward()
        for mine, theirs in zip(particle.parameters(), alone.net.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradients_reach_the_marginal_by_weak_rows_and_the_conditional_by_strong_ones():
    for term, reached, other in (("marginal", "weak", "strong"), ("conditional", "strong", "weak")):
        method, batch = _method(threshold=0.0).eval(), _batch()
        for view in batch.unlabeled.views.values():
            view.requires_grad_()
        method(batch, AT).terms[term].backward()
        assert batch.unlabeled[reached].grad.any()
        untouched = batch.unlabeled[other].grad
        assert untouched is None or not untouched.any()


def test_the_marginal_drives_particles_apart_and_the_conditional_makes_them_sure():
    method, batch = _method(threshold=0.0, alpha=1.0).eval(), _batch()
    optimizer = torch.optim.SGD(method.net.parameters(), lr=0.02)

    def entropies():
        with torch.no_grad():
            log_p = torch.stack([out.logits for out in method.net.each(batch.unlabeled["weak"])], 1).log_softmax(2)
        return joint_entropy(log_p, 2).item(), -(log_p.exp() * log_p).sum(dim=2).mean().item()

    u = batch.unlabeled
    same = Batch(batch.labeled, Rows({"weak": u["weak"], "strong": u["weak"]}, u.targets, u.truth, u.indices))
    first_joint, first_each = entropies()
    for _ in range(15):
        optimizer.zero_grad()
        terms = method(same, AT).terms
        (terms["conditional"] + terms["marginal"]).backward()
        optimizer.step()
    joint, each = entropies()
    assert joint - each > first_joint - first_each
    assert each < first_each


# --- Particles ------------------------------------------------------------------------------------


def test_particles_are_other_draws_of_the_same_weights():
    method, again = (ReferencePrior(_net(), seed=3) for _ in range(2))
    original, *others = method.net.particles
    assert all(torch.equal(mine, given) for mine, given in zip(original.parameters(), _net().parameters(), strict=True))
    assert all(torch.equal(mine, same) for mine, same in zip(method.parameters(), again.parameters(), strict=True))
    for name, weight in original.named_parameters():
        versions = [weight, *(other.get_parameter(name) for other in others)]
        for one, two in itertools.combinations(versions, 2):
            assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
            assert torch.equal(one, two) == (weight.ndim < 2), name
    other = ReferencePrior(_net(), seed=9).net.particles[1].head.weight
    assert not torch.equal(other, others[0].head.weight)


def test_rearranging_leaves_the_net_and_the_global_generator_alone():
    given, before = _net(), torch.get_rng_state()
    rearranged(given, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), _net().parameters(), strict=True))


def test_predictor_is_the_mean_of_the_averaged_particles():
    method, batch = _method(ema=0.5), _batch()
    for step in range(2):
        method(batch, At(step, 10))
        with torch.no_grad():
            for parameter in method.net.parameters():
                parameter.mul_(1.1)
        method.after_step(At(step, 10))
    predictor, image = method.predictor(), batch.labeled["weak"]
    assert not any(module.training for module in predictor.modules())
    outputs = [particle(image) for particle in predictor.particles]
    result = predictor(image)
    torch.testing.assert_close(result.logits, sum(out.logits for out in outputs) / 4)
    assert torch.equal(result.features, torch.cat([out.features for out in outputs], dim=1))
    assert result.features.shape == (LABELED, predictor.features_dim)
    assert predictor.classes == CLASSES
    state = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    other = ReferencePrior(_net(1)).double().predictor()
    other.load_state_dict(state)
    assert torch.equal(other(image).logits, result.logits)


def test_state_survives_a_state_dict():
    method, other, batch = _method(), _method(seed=1), _batch()
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(other(batch, AT).total, method(batch, AT).total)


def test_micro_batches_have_the_loss_of_one_batch():
    """Rows are joined with their neighbors, which stay in one part."""
    method, batch = _method().eval(), _batch()  # eval: rows do not meet in BatchNorm
    halves = [method(part, At(2, 10, rank=i, world=2)).terms for i, part in enumerate(batch.chunk(2))]
    for name, term in method(batch, AT).terms.items():
        assert sum(half[name].item() for half in halves) / 2 == pytest.approx(term.item())


def test_bad_arguments_are_refused():
    for arguments in ({"particles": 0}, {"order": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            _method(**arguments)
    with pytest.raises(UsageError, match="12 unlabeled images"):
        _method(order=5)(_batch(), AT)
