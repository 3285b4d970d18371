"""Kornia's and torchvision's augmentations as views: the contract, and that what breaks it is refused."""

from dataclasses import replace

import kornia.augmentation as K
import pytest
import torch
from torchvision.transforms import v2

import ssl_lab as sl
from ssl_lab.batch import At, Style
from ssl_lab.errors import UsageError
from ssl_lab.notes import once
from ssl_lab.testing import check_views
from ssl_lab.views import kornia, torchvision

STYLE = Style(3, 12, 12)


def crop(size=(12, 12)):
    return K.RandomResizedCrop(size, scale=(0.3, 1.0))


ANY_CHANNELS = {
    "flip": lambda: [K.RandomHorizontalFlip()],
    "affine": lambda: [K.RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 10, p=1.0)],
    "blur": lambda: [K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5)], "erasing": lambda: [K.RandomErasing(p=0.5)],
    "solarize": lambda: [K.RandomSolarize(p=0.5)], "posterize": lambda: [K.RandomPosterize(p=0.5)],
    "equalize": lambda: [K.RandomEqualize(p=0.5)], "contrast": lambda: [K.RandomContrast((0.5, 1.5), p=0.5)],
    "sharpness": lambda: [K.RandomSharpness(p=0.5)], "perspective": lambda: [K.RandomPerspective(p=1.0)],
    "padded crop": lambda: [K.Resize((12, 12)), K.RandomCrop((12, 12), padding=3), K.CenterCrop((12, 12))],
    "noise": lambda: [K.RandomGaussianNoise(p=0.5)], "elastic": lambda: [K.RandomElasticTransform((3, 3), p=0.5)],
    "rotate": lambda: [K.RandomRotation(20.0)],
    "invert": lambda: [K.RandomInvert(p=0.5)], "brightness": lambda: [K.RandomBrightness((0.5, 1.5), p=1.0)],
}
COLORS = {
    "jitter": lambda: [K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)], "gray": lambda: [K.RandomGrayscale(p=0.5)],
    "jiggle": lambda: [K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=0.8)], "hue": lambda: [K.RandomHue((-0.2, 0.2), p=1.0)],
}


@pytest.mark.parametrize("name", ANY_CHANNELS | COLORS)
def test_the_contract_of_views(name):
    channels = (1, 3) if name in ANY_CHANNELS else (3,)
    sizes = [(12, 12)] if name == "padded crop" else [(8, 8), (16, 24)]
    check_views(kornia(*(ANY_CHANNELS | COLORS)[name]()), sizes=sizes, channels=channels)


def test_the_contract_of_a_whole_pipeline():
    check_views(kornia(torch.nn.Sequential(crop(), K.RandomHorizontalFlip()), [K.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
                sizes=[(12, 12)], channels=[3])


def test_the_pixels_are_kornias():
    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    flip = kornia(K.RandomHorizontalFlip(p=1.0))(STYLE)
    assert torch.equal(flip(images, At(0, 1).draw("x", 4)), images.flip(3) / 255)
    assert torch.equal(kornia(K.RandomInvert(p=1.0))(STYLE)(images, At(0, 1).draw("x", 4)), 1 - images / 255)


def test_sequences_of_kornia_are_what_is_in_them():
    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    modules = K.RandomInvert(p=0.5), K.RandomAffine(20, p=0.5)
    given = [modules, [K.AugmentationSequential(*modules, data_keys=["input"])], [[modules[0]], [modules[1]]],
             [K.ImageSequential(*modules)], [torch.nn.Sequential(*modules)]]
    first, *others = [kornia(*each)(STYLE)(images, At(0, 1).draw("x", 4)) for each in given]
    assert all(torch.equal(each, first) for each in others)


def test_a_share_of_the_images_is_changed():
    images = torch.randint(0, 256, (1000, 1, 4, 4), dtype=torch.uint8)
    views = kornia(K.RandomHorizontalFlip(p=0.3))(Style(1, 4, 4, (0.5,), (0.5,)))(images, At(0, 1).draw("x", 1000))
    assert 0.25 < (views != images / 255).flatten(1).any(dim=1).float().mean() < 0.35


def test_the_global_generator_is_left_alone():
    view = kornia(K.RandomErasing(p=0.5))(STYLE)
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    view(torch.zeros(4, 3, 12, 12, dtype=torch.uint8), At(0, 1).draw("x", 4))
    assert torch.equal(torch.rand(3), before)


@pytest.mark.parametrize(("modules", "match"), [
    ([K.auto.RandAugment(2, 10)], "once for the whole batch; take the view strong"),
    ([K.auto.TrivialAugment()], "once for the whole batch"),
    ([K.ImageSequential(K.RandomInvert(), K.RandomGrayscale(), random_apply=1)], "random_apply"),
    ([K.RandomInvert(same_on_batch=True)], "leave that out"),
    ([K.AugmentationSequential(K.RandomInvert(), data_keys=["input"], same_on_batch=True)], "leave that out"),
    ([K.PatchSequential(K.RandomInvert(), patchwise_apply=False)], "list augmentations of whole images"),
    ([K.RandomMixUpV2()], "mixes images"), ([K.Normalize(0.5, 0.5)], "nets normalize"),
    ([torch.nn.ReLU()], "is no augmentation of images"),
    ([], "was given no augmentation")])
def test_what_breaks_the_contract_is_refused(modules, match):
    with pytest.raises(UsageError, match=match):
        kornia(*modules)


def test_images_that_it_does_not_take_are_refused_before_a_run():
    with pytest.raises(UsageError, match=r"makes images of \[3, 8, 8\] out of \[3, 12, 12\]"):
        kornia(crop((8, 8)))(STYLE)
    with pytest.raises(UsageError, match="cannot take images of 1 channels"):
        kornia(K.RandomRGBShift(p=1.0))(Style(1, 12, 12, (0.5,), (0.5,)))


def test_crops_resample_and_leave_the_given_module_alone():
    given = crop()
    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    resampling = K.RandomResizedCrop((12, 12), scale=(0.3, 1.0), cropping_mode="resample")
    views = [kornia(each)(STYLE)(images, At(0, 1).draw("x", 4)) for each in (given, resampling)]
    assert torch.equal(*views)
    assert given.flags["cropping_mode"] == "slice"


OTHERS = v2.RandomChoice([v2.RandomApply([v2.RandomHorizontalFlip(p=1.0)]), v2.RandomHorizontalFlip(p=1.0)])


@pytest.mark.parametrize("view", [kornia(crop(), K.RandomHorizontalFlip(p=1.0)), torchvision(v2.Compose([OTHERS]))])
def test_it_mirrors_where_it_may_and_says_so(view, capsys):
    assert view(STYLE).mirrors
    one_way = torch.arange(12, dtype=torch.uint8).expand(4, 3, 12, 12).contiguous()
    once.cache_clear()
    kept = view(replace(STYLE, flip=False))
    assert not kept.mirrors
    assert "RandomHorizontalFlip is left out of views" in capsys.readouterr().err
    assert view(STYLE).mirrors, "the given transform is left alone"
    for step in range(3):
        assert (kept(one_way, At(step, 3).draw("x", 4)).diff(dim=3) >= -1e-6).all()


def test_it_says_if_it_cannot_say_whether_it_mirrors():
    assert not kornia(crop())(STYLE).mirrors
    assert torchvision(v2.TrivialAugmentWide())(STYLE).mirrors is False
    assert torchvision(lambda image: image.flip(2))(STYLE).mirrors is None


def test_gray_images_pass_what_changes_colors():
    gray = Style(1, 12, 12, (0.5,), (0.5,))
    images = torch.randint(0, 256, (4, 1, 12, 12), dtype=torch.uint8)
    for module in (K.RandomGrayscale(p=1.0), K.RandomHue((-0.5, 0.5), p=1.0), K.ColorJitter(0, 0, (0.1, 0.9), 0.4)):
        assert torch.allclose(kornia(module)(gray)(images, At(0, 1).draw("x", 4)), images / 255, atol=1e-5)
    check_views(kornia(K.ColorJitter(0.4, 0.4, 0.4, 0.1)), sizes=[(8, 8)], channels=[1])


@pytest.mark.parametrize("transform", [v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(), v2.Compose(
    [v2.RandomResizedCrop(8, antialias=True), v2.ToDtype(torch.float32, scale=True)])])
def test_torchvisions_transforms_keep_the_contract(transform):
    check_views(torchvision(transform), sizes=[(8, 8)], channels=[3])


def test_a_transform_that_resizes_is_refused():
    view = torchvision(v2.Resize(8))(STYLE)
    with pytest.raises(UsageError, match=r"makes images of \[3, 8, 8\]"):
        view(torch.zeros(1, 3, 12, 12, dtype=torch.uint8), At(0, 1).draw("x", 1))


def test_a_method_trains_on_them(digits, tmp_path):
    from small_runs import tiny_net, train

    class Jittered(sl.methods.FixMatch):
        views = sl.methods.Views(labeled={"weak": sl.Weak}, unlabeled={
            "weak": kornia(K.RandomAffine(5, (0.1, 0.1), p=1.0)), "strong": kornia(K.RandomErasing(p=1.0))})

    result = train(tmp_path, Jittered(tiny_net(digits)), digits, steps=3)
    assert result.summary["steps"] == 3
