"""Which classes belong together: two-level hierarchies of the data sets that have a name."""

from __future__ import annotations

from ssl_lab.data.pool import Pool
from ssl_lab.errors import UsageError

_DIGITS = {"with a loop": "0 6 8 9", "open curves": "2 3 5", "straight strokes": "1 4 7"}

HIERARCHIES = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "svhn": _DIGITS,
    "fashion_mnist": {
        "tops": "T-shirt/top Pullover Coat Shirt",
        "other clothes": "Trouser Dress",
        "shoes": "Sandal Sneaker Ankle_boot",
        "bags": "Bag",
    },
    "cifar10": {
        "vehicles": "airplane automobile ship truck",
        "animals": "bird cat deer dog frog horse",
    },
    "stl10": {
        "vehicles": "airplane car ship truck",
        "animals": "bird cat deer dog horse monkey",
    },
    "cifar100": {  # the data set's own superclasses (Krizhevsky 2009), in its own order
        "aquatic mammals": "beaver dolphin otter seal whale",
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food containers": "bottle bowl can cup plate",
        "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
        "household electrical devices": "clock keyboard lamp telephone television",
        "household furniture": "bed chair couch table wardrobe",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "large carnivores": "bear leopard lion tiger wolf",
        "large man-made outdoor things": "bridge castle house road skyscraper",
        "large natural outdoor scenes": "cloud forest mountain plain sea",
        "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
        "medium-sized mammals": "fox porcupine possum raccoon skunk",
        "non-insect invertebrates": "crab lobster snail spider worm",
        "people": "baby boy girl man woman",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "small mammals": "hamster mouse rabbit shrew squirrel",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles 1": "bicycle bus motorcycle pickup_truck train",
        "vehicles 2": "lawn_mower rocket streetcar tank tractor",
    },
}
"""Data set -> coarse class -> its classes, separated by blanks (a blank within a name is written `_`)."""


def parents(pool: Pool) -> tuple[int, ...]:
    """The coarse class of each class of a pool with a name in `HIERARCHIES`, numbered in the order there.

    UsageError for another pool: its hierarchy has to be given, as a tuple like this one.
    """
    if pool.name not in HIERARCHIES:
        raise UsageError(f"no hierarchy of {pool.name}'s classes is known, only those of {', '.join(HIERARCHIES)}; "
                         "give HierMatch the coarse class of each class: parents=[[0, 0, 1, ...]]")
    coarse = {name: number for number, names in enumerate(HIERARCHIES[pool.name].values()) for name in names.split()}
    return tuple(coarse[name.replace(" ", "_")] for name in pool.class_names)
