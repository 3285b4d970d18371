"""Sharded runs: two ranks that each hold half of everything take the steps of one that holds it all."""

import atexit
import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import as_two_ranks
from safetensors.torch import load_file
from small_runs import assert_equal, digits, rows, signal_at, summary, train
from torch import nn

from ssl_lab.batch import At
from ssl_lab.engine import Feed, PseudoLabels, Runtime, checkpoint
from ssl_lab.engine.evaluate import predict
from ssl_lab.engine.folder import RunFolder
from ssl_lab.engine.placed import place
from ssl_lab.engine.sharded import blocks, load_sharded, save_sharded, shard, whole_state
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.features import OnlineAccuracy, weighted_knn
from ssl_lab.methods import FixMatch, MeanTeacher, SimCLR, SoTeacher, Supervised
from ssl_lab.nets import Net, net
from ssl_lab.optim import SGD, AdamW

CPU = torch.device("cpu")
OPTIMIZER = AdamW(lr=0.01)
POOL = digits()
STEPS = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


class Blocks(nn.Module):
    """Without BatchNorm, so that a row's gradient does not depend on its neighbors; 17: does not divide by two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.last = nn.Linear(16, 17)
        self.register_buffer("scale", torch.full((17,), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.tanh(self.last(self.blocks(self.embed(x))))


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(Blocks(), nn.Linear(17, 10), mean=(0.3,), std=(0.4,))
    return {"supervised": Supervised, "fixmatch": lambda net: FixMatch(net, threshold=0.12), "simclr": SimCLR,
            "mean_teacher": MeanTeacher, "so_teacher": lambda net: SoTeacher(net, len(POOL))}[name](net)


def embedded():
    """A net of convolutions as `embed` leaves it, in channels_last."""
    method = Supervised(net("tiny_4", 10, POOL.style))
    place(method, CPU)
    return method


def fit(out, name="fixmatch", **settings):
    """A run through the trainer."""
    nearest = OnlineAccuracy({"knn": partial(weighted_knn, k=5)})
    monitors = [PseudoLabels(0.2), nearest]  # each rank passes a part of the images
    return train(out, made(name), POOL, steps=STEPS, clip=1.0, monitors=monitors, **settings)


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def take_steps(method, optimizer, steps, rank=0, world=1):
    """The loss of each step, summed over ranks' means, and its gradients."""
    feed = Feed(POOL, method.views, 8, 16, 0, CPU, world)
    taken = []
    for step in steps:
        at = At(step, 10, 0, rank, world)
        OPTIMIZER.set(optimizer, at)
        optimizer.zero_grad()
        loss = method(feed(at), at)
        loss.total.backward()
        mean = loss.total.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        gradients = {name: full(p.grad) for name, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        if method.name == "mean_teacher":
            method.after_step(at)
        taken.append({"loss": mean / world, "gradients": gradients})
    return taken


def write_threads(file):
    file.write_text(json.dumps([name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]))


def job(out):
    """What each of the ranks does; run as a script."""
    atexit.register(write_threads, out / f"threads{os.environ['RANK']}.json")  # after what the runtime registers
    runtime = Runtime.start("cpu", "fp32")
    rank, world = runtime.rank, runtime.world
    for name in ("supervised", "fixmatch", "simclr", "mean_teacher"):
        method = shard(made(name), CPU)
        optimizer = OPTIMIZER.build(method)
        torch.save(take_steps(method, optimizer, range(3), rank, world), out / f"{name}{rank}.pt")
        torch.save(whole_state(method), out / f"{name}{rank}.state.pt")

    held = sum(p.to_local().numel() for p in method.parameters())
    momenta = sum(full(value).numel() for state in optimizer.state.values() for value in state.values())
    held_momenta = sum(value.to_local().numel() for state in optimizer.state.values() for value in state.values()
                       if hasattr(value, "to_local"))
    (out / f"held{rank}.json").write_text(json.dumps([held, held_momenta, momenta]))

    save_sharded(out / "two", method, optimizer)
    take_steps(method, optimizer, [3], rank, world)
    torch.save(whole_state(method), out / f"went_on{rank}.pt")
    for name in ("two", "one"):
        again = shard(made("mean_teacher"), CPU)
        optimizer = OPTIMIZER.build(again)
        predict(again.net, POOL, POOL.test[:40], runtime)  # also before the first step
        load_sharded(out / name, again, optimizer)
        take_steps(again, optimizer, [3], rank, world)
        torch.save(whole_state(again), out / f"loaded_{name}{rank}.pt")

    pool = POOL
    rows = pool.test[:300] if rank else pool.test[:40]  # two batches on one rank, one on the other
    torch.save(predict(method.net, pool, rows, runtime), out / f"predicted{rank}.pt")
    torch.save({"all": sum(p.to_local().numel() for p in method.net.parameters())}, out / f"freed{rank}.pt")
    take_steps(method, OPTIMIZER.build(method), [4], rank, world)  # training goes on after an evaluation

    fit(out / "plain")
    fit(out / "run", shard=True)
    try:
        fit(out / "cut", shard=True, callbacks=[signal_at(4, signal.SIGTERM)])
    except Interrupted:
        result = fit(out / "cut", shard=True, resume="auto")
    said = []
    for again in (lambda: fit(out / "refused", "so_teacher", shard=True),
                  lambda: train(out / "refused", result.method, POOL, shard=True)):
        try:
            again()
        except UsageError as error:
            said.append(str(error))
    (out / f"refused{rank}.json").write_text(json.dumps(said))

    try:
        averaged = shard(made("fixmatch"), CPU)
        take_steps(averaged, OPTIMIZER.build(averaged), range(1), rank, world)
        averaged.after_step(At(0, 10, 0, rank, world))
        torch.save(whole_state(averaged), out / f"averaged{rank}.pt")
    except RuntimeError as error:
        (out / f"averaged{rank}.txt").write_text(str(error))

    torch.save(whole_state(shard(embedded(), CPU)), out / f"embedded{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks left behind; they also read what one wrote."""
    out = tmp_path_factory.mktemp("sharded")
    method = made("mean_teacher")
    optimizer = OPTIMIZER.build(method)
    take_steps(method, optimizer, range(3))
    save_sharded(out / "one", method, optimizer)
    _, err = as_two_ranks("-W", "error", Path(__file__), out)
    assert "Warning" not in err
    return out


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "simclr", "mean_teacher"])
def test_sharded_steps_are_the_steps_of_one_process(ranks, name):
    method = made(name)
    expected = take_steps(method, OPTIMIZER.build(method), range(3))
    for rank in (0, 1):
        taken = torch.load(ranks / f"{name}{rank}.pt")
        for ours, theirs in zip(taken, expected, strict=True):
            assert ours["gradients"].keys() == theirs["gradients"].keys()
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        state = torch.load(ranks / f"{name}{rank}.state.pt")
        torch.testing.assert_close(state, dict(method.state_dict()), atol=1e-4, rtol=0)  # AdamW divides by |g|
    assert max(g.abs().max() for g in expected[0]["gradients"].values()) > 1e-3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_of_a_process_group_outlives_the_run(ranks):
    for rank in (0, 1):
        names = json.loads((ranks / f"threads{rank}.json").read_text())
        assert names
        assert not [name for name in names if "gloo" in name]


def test_the_average_of_a_sharded_net(ranks):
    method = made("fixmatch")
    take_steps(method, OPTIMIZER.build(method), range(1))
    method.after_step(At(0, 10))
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(ranks / f"averaged{rank}.pt"), dict(method.state_dict()), atol=1e-5,
                                   rtol=0)


def test_a_net_that_was_embedded_before_is_sharded(ranks):
    for rank in (0, 1):
        assert_equal(torch.load(ranks / f"embedded{rank}.pt"), dict(embedded().state_dict()), "state")


def test_each_rank_holds_about_half(ranks):
    total = sum(p.numel() for p in made("mean_teacher").parameters())
    held = [json.loads((ranks / f"held{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(parameters for parameters, _, _ in held) == total
    assert all(abs(parameters - total / 2) < 0.1 * total for parameters, _, _ in held)
    assert all(momenta < 0.6 * everything for _, momenta, everything in held)


def test_what_two_wrote_two_read_on_exactly_and_one_reads_too(ranks):
    on = torch.load(ranks / "went_on0.pt")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(ranks / f"loaded_two{rank}.pt"), on, atol=0, rtol=0)
        torch.testing.assert_close(torch.load(ranks / f"loaded_one{rank}.pt"), on, atol=1e-4, rtol=0)
    method = made("mean_teacher")
    optimizer = OPTIMIZER.build(method)
    load_sharded(ranks / "two", method, optimizer)
    torch.testing.assert_close(dict(method.state_dict()), torch.load(ranks / "mean_teacher0.state.pt"),
                               atol=0, rtol=0)
    take_steps(method, optimizer, [3])
    torch.testing.assert_close(dict(method.state_dict()), on, atol=1e-4, rtol=0)


def test_evaluation_may_differ_in_batches_and_frees_the_weights(ranks):
    method = made("mean_teacher")
    method.load_state_dict(torch.load(ranks / "went_on0.pt"))
    pool, runtime = POOL, Runtime(CPU, "fp32", "asked")
    for rank, count in ((0, 40), (1, 300)):
        torch.testing.assert_close(torch.load(ranks / f"predicted{rank}.pt"),
                                   predict(method.net, pool, pool.test[:count], runtime))
    total = sum(p.numel() for p in method.net.parameters())
    assert sum(torch.load(ranks / f"freed{rank}.pt")["all"] for rank in (0, 1)) == total


# Through the trainer


def assert_close_runs(one, other):
    for ours, theirs in zip(rows(one), rows(other), strict=True):
        right, wanted = (row.pop("pseudo_label_accuracy") for row in (ours, theirs))  # a mean over unequal parts
        assert right == pytest.approx(wanted, abs=0.02, nan_ok=True)
        assert theirs == pytest.approx(ours, abs=1e-5, nan_ok=True)
    states = [load_file(run / "model.safetensors") for run in (one, other)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)


def test_a_sharded_run_is_the_run_of_whole_weights(ranks):
    assert_close_runs(ranks / "plain", ranks / "run")
    assert summary(ranks / "run")["test_accuracy"] == summary(ranks / "plain")["test_accuracy"]
    assert {"pseudo_coverage", "knn_accuracy", "test_accuracy"} <= rows(ranks / "run")[-1].keys()
    exported = {name: tensor.shape for name, tensor in load_file(ranks / "run" / "model.safetensors").items()}
    assert exported == {name: tensor.shape for name, tensor in made("fixmatch").net.state_dict().items()}


def test_a_sharded_run_resumes_exactly(ranks):
    assert rows(ranks / "cut") == rows(ranks / "run")
    assert summary(ranks / "cut") == summary(ranks / "run")
    parts = [file.relative_to(ranks / "run") for file in (ranks / "run").rglob("*.safetensors")]
    assert len(parts) == 3  # of two ranks, and the model
    for part in parts:
        assert_equal(load_file(ranks / "cut" / part), load_file(ranks / "run" / part), str(part))
    folders = [sorted(path.name for path in (ranks / name).glob("sharded-*")) for name in ("run", "cut")]
    assert folders == [["sharded-6"], ["sharded-4", "sharded-6"]]


def test_a_torn_part_is_replaced_by_the_checkpoint_before_and_one_process_goes_on(ranks, tmp_path, capsys):
    shutil.copytree(ranks / "cut", tmp_path / "cut")
    part = sorted((tmp_path / "cut/sharded-6").glob("*.safetensors"))[1]
    os.truncate(part, part.stat().st_size - 1)
    fit(tmp_path / "cut", shard=True, resume="auto")
    assert capsys.readouterr().err.startswith(f"note: {tmp_path / 'cut/checkpoint.pt'} cannot be read ({part} is "
                                              "damaged: ")
    assert_close_runs(tmp_path / "cut", ranks / "run")


def test_a_run_that_dies_between_the_parts_and_the_checkpoint_resumes_exactly(tmp_path, monkeypatch):
    fit(tmp_path / "whole", shard=True)
    save = checkpoint.save

    def dying(path, state):
        if state["step"] == 4:
            raise KeyboardInterrupt
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", shard=True, checkpoint_seconds=0)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "cut/checkpoint.pt")["sharded"] == "sharded-3"
    fit(tmp_path / "cut", shard=True, resume="auto", checkpoint_seconds=0)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for file in ("model.safetensors", "sharded-6/*.safetensors"):
        cut, whole = (load_file(next((tmp_path / name).glob(file))) for name in ("cut", "whole"))
        assert_equal(cut, whole, file)
    assert sorted(path.name for path in (tmp_path / "cut").glob("sharded-*")) == ["sharded-5", "sharded-6"]


def test_a_torn_part_costs_no_spare_checkpoint(tmp_path):
    run = RunFolder(tmp_path)

    def save(step):
        folder = tmp_path / f"sharded-{step}"
        folder.mkdir(exist_ok=True)
        (folder / "part.safetensors").write_text("whole")
        checkpoint.list_files(folder)
        run.save({"step": step, "sharded": folder.name})

    def kept():
        return [checkpoint.sharded_folder(path) for path in (checkpoint.previous(run.checkpoint), run.checkpoint)]

    for step in (1, 2):
        save(step)
    (tmp_path / "sharded-2/part.safetensors").write_text("torn")
    save(3)
    assert kept() == ["sharded-1", "sharded-3"]
    save(3)  # resumed from the first one, and run again
    assert kept() == ["sharded-1", "sharded-3"]
    save(4)
    assert kept() == ["sharded-3", "sharded-4"]
    assert sorted(path.name for path in tmp_path.glob("sharded-*")) == kept()


def test_what_cannot_be_sharded_says_so(ranks):
    for rank in (0, 1):
        reads, again = json.loads((ranks / f"refused{rank}.json").read_text())
        assert reads.startswith("this method reads weights of a net otherwise than by passing images through the net")
        assert again.startswith("a net of this method belongs to an earlier sharded run")


# Files


def test_a_checkpoint_is_tensors_alone(ranks):
    names = sorted(path.name for path in (ranks / "two").iterdir())
    assert [Path(name).suffix for name in names] == [".json", ".safetensors", ".safetensors"]
    assert json.loads((ranks / "two/files.json").read_text()) == {name: (ranks / "two" / name).stat().st_size
                                                                  for name in names[1:]}


@pytest.mark.parametrize(("damage", "words"), [
    ("cut", r"model.*safetensors is damaged: it has not the \d+ bytes"),
    ("one file gone", "holds no whole checkpoint of a sharded run"),
    ("no list", "holds no whole checkpoint of a sharded run"),
    ("gone", "holds no whole checkpoint of a sharded run"),
    ("torn list", "holds no whole checkpoint of a sharded run"),
    ("bytes", "cannot read"),
    ("other method", r"another method or optimizer than this one: .* more tensors differ"),
    ("other optimizer", r"another method or optimizer than this one: optimizer\.net.*exp_avg and"),
])
def test_damage_is_told(ranks, tmp_path, damage, words):
    shutil.copytree(ranks / "two", tmp_path / "two")
    file = sorted((tmp_path / "two").glob("*.safetensors"))[1]
    method, spec = made("fixmatch" if damage == "other method" else "mean_teacher"), OPTIMIZER
    if damage == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "one file gone":
        file.unlink()
    elif damage == "no list":
        (tmp_path / "two/files.json").unlink()
    elif damage == "torn list":
        os.truncate(tmp_path / "two/files.json", 20)
    elif damage == "gone":
        shutil.rmtree(tmp_path / "two")
    elif damage == "bytes":
        file.write_bytes(b"\xff" * file.stat().st_size)
    elif damage == "other method":
        method.register_buffer("queue", torch.zeros(3))
    else:
        spec = SGD(momentum=0.9)
    with pytest.raises(UsageError, match=words):
        load_sharded(tmp_path / "two", method, spec.build(method))


def test_what_the_loss_does_not_reach_has_no_momenta_before_and_after(tmp_path):
    method, again = made("simclr"), made("simclr")  # trains no classifier
    optimizer, fresh = OPTIMIZER.build(method), OPTIMIZER.build(again)
    take_steps(method, optimizer, range(2))
    save_sharded(tmp_path / "one", method, optimizer)
    load_sharded(tmp_path / "one", again, fresh)
    assert len(fresh.state) == len(optimizer.state) < len(list(method.parameters()))
    for one, other in ((method, optimizer), (again, fresh)):
        take_steps(one, other, range(2, 4))
    torch.testing.assert_close(dict(again.state_dict()), dict(method.state_dict()), atol=0, rtol=0)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    method = made("supervised")
    with pytest.raises(UsageError, match=r"cannot write .*file/two: Not a directory"):
        save_sharded(tmp_path / "file/two", method, OPTIMIZER.build(method))


def test_only_the_checkpoint_that_counts_is_kept(tmp_path):
    for name in ("sharded-1", "sharded-2", "other"):
        (tmp_path / name).mkdir()
    checkpoint.keep_only(tmp_path, "sharded-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "sharded-2"]


def test_blocks_are_what_repeats():
    assert [type(block) for block in blocks(Blocks())] == [Block] * 3
    transformer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4)
    assert blocks(transformer) == list(transformer.layers)
    assert blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


if __name__ == "__main__":
    job(Path(sys.argv[1]))
