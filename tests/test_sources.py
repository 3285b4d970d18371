"""Where pools come from: arrays, torch data sets, .npz files, names; and what taking pixels from them gives."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lab.data import ArrayImages, Concat, Pool, load
from ssl_lab.errors import UsageError

PLAIN = load("digits")


def random_images(n, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8)


# --- arrays ---

def test_layouts_and_ranges_of_arrays():
    pixels = random_images(4)
    labels = [0, 1, 2, 2]
    for given in (pixels, pixels.transpose(0, 2, 3, 1), pixels.astype(np.int32), pixels / 255,
                  pixels.astype(np.float32), torch.from_numpy(pixels), torch.from_numpy(pixels) / 255):
        taken = Pool.from_arrays(given, labels).images.take(np.array([3, 0]))
        assert taken.dtype == torch.uint8
        assert np.array_equal(taken.numpy(), pixels[[3, 0]])
    gray = Pool.from_arrays(pixels[:, 0] > 127, labels)
    assert gray.images.shape == (1, 8, 8)
    assert np.array_equal(gray.images.take(np.arange(4)).numpy()[:, 0], np.where(pixels[:, 0] > 127, 255, 0))


def test_one_rule_for_train_and_test():
    apart = np.full((2, 2, 2), 1.0), [0, 1], np.full((1, 2, 2), 255.0), [0]
    with pytest.raises(UsageError, match=r"floats from 1 to 1 and 255 to 255: images on different scales"):
        Pool.from_arrays(*apart)
    dark = Pool.from_arrays(*apart, value_range=(0, 255))
    assert dark.images.take(np.array([0, 2]))[:, 0, 0, 0].tolist() == [1, 255]
    mixed = Pool.from_arrays(np.full((2, 2, 2), 1.0), [0, 1], np.full((1, 2, 2), 7, np.uint8), [0])
    assert mixed.images.take(np.array([0, 2]))[:, 0, 0, 0].tolist() == [255, 7]


def test_the_style_is_measured_on_train_images():
    pixels = random_images(50)
    pool = Pool.from_arrays(pixels, np.arange(50) % 2, random_images(9) // 2, np.arange(9) % 2)
    scaled = pixels.astype(np.float64) / 255
    assert pool.style.mean == pytest.approx(scaled.mean((0, 2, 3)), abs=1e-6)
    assert pool.style.std == pytest.approx(scaled.std((0, 2, 3)), abs=1e-6)
    assert (pool.style.channels, pool.style.height, pool.style.width, pool.style.shift) == (3, 8, 8, 1)
    assert Pool.from_arrays(np.zeros((2, 1, 1), np.uint8), [0, 1]).style.std == pytest.approx((1 / 255,))


@pytest.mark.parametrize(("images", "labels", "message"), [
    (np.zeros((2, 8)), [0, 1], r"shape \(2, 8\), expected"),
    (np.zeros((2, 4, 8, 8)), [0, 1], "1 or 3 channels"),
    (np.zeros((0, 3, 8, 8)), [], "are empty"),
    (np.full((2, 8, 8), 65536), [0, 1], "whole numbers from 65536 to 65536, expected 0 to 1, 0 to 255"),
    (np.linspace(-2, 2, 128).reshape(2, 8, 8), [0, 1], "floats from -2 to 2, .* before any normalization"),
    (np.where(np.arange(128) == 100, np.nan, 0.5).reshape(2, 8, 8), [0, 1], "row 1 holds NaN"),
    (np.where(np.arange(128) == 3, np.inf, 9.0).reshape(2, 8, 8), [0, 1], "row 0 holds NaN or infinity"),
    (np.full((2, 8, 8), "a"), [0, 1], "have dtype"),
    (np.zeros((2, 8, 8)), [0, 1, 2], "labels have length 3, but there are 2 images"),
    (np.zeros((2, 8, 8)), [0, -2], "entry 1 is -2"),
    (np.zeros((2, 8, 8)), [0, 0], "one class only"),
])
def test_bad_arrays(images, labels, message):
    with pytest.raises(UsageError, match=message):
        Pool.from_arrays(images, labels)


def test_more_bad_arrays():
    images = random_images(2)
    with pytest.raises(UsageError, match=r"entry 1 is 2, expected -1..1"):
        Pool.from_arrays(images, [0, 2], class_names=["a", "b"])
    with pytest.raises(UsageError, match="belong together"):
        Pool.from_arrays(images, [0, 1], images)
    with pytest.raises(UsageError, match="the same channels, height and width"):
        Pool.from_arrays(images, [0, 1], random_images(2, size=4), [0, 1])


def test_images_without_any_label_make_a_pool():
    pool = Pool.from_arrays(random_images(3), [-1, -1, -1])
    assert pool.classes == 0
    assert len(pool.labeled) == 0
    assert len(pool.unlabeled) == 3
    with pytest.raises(UsageError, match="labels=4"):
        pool.split(4)


# --- sources ---

def test_concat_takes_from_both_in_order():
    first, second = random_images(5), random_images(3, seed=1)
    both = Concat([ArrayImages(first), ArrayImages(second)])
    assert len(both) == 8
    for rows in ([7, 0, 5, 4, 7], [1, 3], [6], []):
        rows = np.array(rows, dtype=np.int64)
        assert np.array_equal(both.take(rows).numpy(), np.concatenate([first, second])[rows])


def test_taking_copies_so_that_views_may_write():
    pixels = random_images(3)
    ArrayImages(pixels).take(np.array([0, 1])).zero_()
    assert np.array_equal(pixels, random_images(3))


def test_digits_is_fixed():
    assert (len(PLAIN), len(PLAIN.train), len(PLAIN.test), PLAIN.classes) == (1797, 1198, 599, 10)
    assert np.ptp(np.bincount(PLAIN.truth[PLAIN.test])) <= 4, "stratified: classes have 174 to 183 images"
    assert PLAIN.style.flip is False
    assert PLAIN.images.take(np.arange(100)).max() == 255
    assert PLAIN.images.fingerprint() == "cddd34bc2f82f73455f3a539c26e5097da2a91a9a90a6b57681124a7a3082a40"
    split = PLAIN.split(10, seed=0).manifest()
    assert split["hash"] == "113c84c2cfb62feb414d7f8c1edf955ace4dcbf4c71d0b2e5c657e455901e41b"


def test_resizing_matches_pillow_and_crops_the_center():
    pool = load("digits", image_size=16)
    assert pool.images.shape == (1, 16, 16)
    assert (pool.style.height, pool.style.shift) == (16, 2)
    small, large = PLAIN.images.take(np.arange(20)), pool.images.take(np.arange(20))
    for before, after in zip(small.numpy()[:, 0], large.numpy()[:, 0], strict=True):
        expected = np.asarray(Image.fromarray(before).resize((16, 16), Image.Resampling.BICUBIC), dtype=int)
        assert np.abs(expected - after).max() <= 2
    assert load("digits", image_size=8).images.shape == (1, 8, 8)


def test_a_torch_dataset():
    class Pictures:
        classes = ("dark", "light")

        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, row):
            return self.items[row]

    pixels = random_images(3)
    rgb = [Image.fromarray(image) for image in pixels.transpose(0, 2, 3, 1)]
    pool = Pool.from_dataset(Pictures(list(zip(rgb, [0, torch.tensor(1), None], strict=True))),
                             Pictures([(rgb[0], np.int64(1))]))
    assert pool.class_names == ("dark", "light")
    assert pool.truth.tolist() == [0, 1, -1, 1]
    assert np.array_equal(pool.images.take(np.arange(3)).numpy(), pixels)
    assert pool.test.tolist() == [3]

    tensors = Pool.from_dataset(Pictures([(torch.from_numpy(image) / 255, 0) for image in pixels]), image_size=4)
    assert tensors.images.shape == (3, 4, 4)
    mixed = Pictures([(rgb[0], 0), (Image.new("L", (20, 9), 77), 1)])
    sized = Pool.from_dataset(mixed, image_size=5)
    assert sized.images.take(np.array([1])).unique().tolist() == [77]
    for items, message in [(mixed.items, "row 1 .*image_size"), ([(rgb[0], {})], "entry 0 is '{}'"),
                           ([(rgb[0], 0, 0)], "row 0"), ([], "empty")]:
        with pytest.raises(UsageError, match=message):
            Pool.from_dataset(Pictures(items))


class Named(list):
    """A data set as torchvision's are: rows of (image, label), and what it calls its classes."""

    def __init__(self, labels, names=None, numbers=None):
        pixels = random_images(len(labels)).transpose(0, 2, 3, 1)
        super().__init__((Image.fromarray(image), label) for image, label in zip(pixels, labels, strict=True))
        if names is not None:
            self.classes = names
        if numbers is not None:
            self.class_to_idx = numbers


@pytest.mark.parametrize(("test", "truth"), [
    (Named([0, 1], ["bee", "cow"]), [1, 2]),
    (Named([0, 1, 2], ["cow", "ant", "bee"]), [2, 0, 1]),
    (Named([0, 1, -1], ["bee", "dog"]), None),  # no training image can teach what a dog is
    (Named([0, -1], ["bee", "dog"]), [1, -1]),
    (Named([0, 1], numbers={"cow": 0, "bee": 1}), [2, 1]),
    (torch.utils.data.Subset(Named([0, 1, 1], ["bee", "cow"]), [1, 2]), [2, 2]),
    (torch.utils.data.ConcatDataset([Named([0], ["bee", "cow"]), Named([1], ["bee", "cow"])]), [1, 2]),
    (torch.utils.data.ConcatDataset([Named([0], ["bee", "cow"]), Named([1], ["cow", "bee"])]), None),
    (Named([0, 1], ["bee", "bee"]), None),
])
def test_labels_of_a_test_data_set_go_by_the_names_of_classes(test, truth):
    for train in (Named([0, 1, 2], ["ant", "bee", "cow"]), Named([0, 1, 2], numbers={"cow": 2, "bee": 1, "ant": 0}),
                  torch.utils.data.Subset(Named([0, 0, 1, 2], ["ant", "bee", "cow"]), [1, 2, 3])):
        if truth is None:
            with pytest.raises(UsageError, match=r"there is no dog|name their classes differently|not each once"):
                Pool.from_dataset(train, test)
        else:
            pool = Pool.from_dataset(train, test)
            assert (pool.class_names, pool.notes) == (("ant", "bee", "cow"), ())
            assert pool.truth[pool.test].tolist() == truth
            assert pool.truth[pool.train].tolist() == [0, 1, 2]


def test_data_sets_of_which_one_does_not_name_its_classes():
    for train, test, names in [(Named([0, 1]), Named([1, 0], ["a", "b"]), ("0", "1")),
                               (Named([0, 1], ["a", "b"]), Named([1, 0]), ("a", "b"))]:
        pool = Pool.from_dataset(train, test)
        assert pool.class_names == names
        assert pool.truth.tolist() == [0, 1, 1, 0]
        assert "names its classes" in pool.notes[0]
    given = Pool.from_dataset(Named([0, 1]), Named([1, 0], ["b", "a"]), class_names=["a", "b"])
    assert given.truth.tolist() == [0, 1, 0, 1]
    assert given.notes == ()


def test_an_npz_file(tmp_path):
    images = random_images(6)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(6) % 2, test_images=images[:2],
             test_labels=np.array([0, 1]), class_names=np.array(["a", "b"]))
    pool = load(tmp_path / "mine.npz", image_size=4)
    assert (pool.name, pool.class_names, len(pool.test), pool.images.shape) == ("mine", ("a", "b"), 2, (3, 4, 4))
    np.savez(tmp_path / "less.npz", images=images)
    np.savez(tmp_path / "pickle.npz", images=images, labels=np.array([None] * 6))
    (tmp_path / "text.npz").write_text("no zip")
    np.savez_compressed(tmp_path / "damaged.npz", images=images, labels=np.arange(6) % 2)
    with zipfile.ZipFile(tmp_path / "damaged.npz") as archive:
        start = archive.getinfo("images.npy").header_offset + 60
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[start:start + 100] = b"\xff" * 100
    (tmp_path / "damaged.npz").write_bytes(content)
    for name, message in [("less", "holds images; expected"), ("pickle", r"labels.astype\(str\)"),
                          ("text", "cannot read"), ("damaged", r"cannot read .*damaged.npz: Error -3")]:
        with pytest.raises(UsageError, match=message):
            load(tmp_path / f"{name}.npz")


def test_names_and_paths_that_do_not_exist(tmp_path):
    with pytest.raises(UsageError, match=r"unknown data set 'cifar'. Did you mean cifar10"):
        load("cifar")
    with pytest.raises(UsageError, match="there is no file or folder"):
        load(tmp_path / "none.csv")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match=r"expected a folder of images, a .csv or an .npz"):
        load(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="image_size=0"):
        load("digits", image_size=0)
