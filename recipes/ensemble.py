r"""Few labels, pretrained nets, an hour: several nets label images softly, and one net learns that.

    ssl-lab fetch cifar10 lite0 lite1 lite2
    python recipes/ensemble.py --data cifar10 --labels 250 --nets lite0 lite1 lite2 --minutes 60 --out runs/ensemble

The first member is self-training on the features of all these nets, side by side. Others are fine-tunings of the first
net on the labels (--tuned: what of it learns). The mean of what they say of each image is soft_labels.safetensors, and
the first net learns it under strong views (Zhang et al. 2025, arXiv 2503.09707); its own say over these labels grows
(--own). Half of the --minutes at most go into labeling the images: where that does not suffice for all of them, as many
at random have soft labels as it does, and where these would be fewer than 5,000, members are left out, each with a
word. With fewer than 10 labels for each class no net is fine-tuned on them; with 100 labels of each class, the
fine-tuned nets speak alone, by their own heads, and the one net goes on from the first of them, under weak views and
without a say of its own. Killed at whatever moment, the same command goes on with --resume auto.

Why several nets, why large images, and why some of these suffice: self-training by 250 labels of CIFAR-10, and so many
unlabeled images, accuracy (%) on 2,500 validation images of split 101, one run each (of other draws of as many images
within 0.6):

    side in px, unlabeled images    none  1,250  2,500  5,000  10,000
    128, lite0                      77.7   80.0   80.3   80.2    80.3
    128, lite0, lite1 and lite2     81.7   83.6   83.8
    160, lite0; lite1; lite2                      82.5; 83.5; 84.8
    160, lite0, lite1 and lite2                   86.5
    192, lite0                                    83.9 (of 224 px 83.4)

The mean with features of mirror images adds 0.5 to the second line's 83.8, for twice as much embedding.

CIFAR-10, 250 labels, --nets lite0 lite1 lite2, 160 px, cold caches, test accuracy (%) of one core of an Intel Xeon with
bf16, whose other core was busy: --minutes 60 of seed 0, 50 of the others (members: on 1,000 of the test images, and
asked of 35,817, 23,689, 25,018, 23,253 and 23,693 images). The one net: 88.9 ± 0.3 in an hour of a core.

                                                  seed 0  seed 1  seed 2  seed 3  seed 4
    self-training on frozen features of three nets  87.3    86.8    85.6    86.1    86.9
    lite0 fine-tuned, all of it                     84.6    86.0    83.3    86.7    85.8
    lite0 fine-tuned, its biases                    86.2    86.9    85.2    86.1    88.2
    the mean of the three                           89.0    88.7    87.6    88.4    89.4
    one net, lite0, that learned it                 88.6    89.2    89.0    89.2    88.5
    in so many steps                                 422     493     507     430     427
    in so many minutes, in all                        60      52      52      52      52

Before, one run each (members in brackets: on 1,000 of the test images): on that core, of --seed 0 with --minutes 105,
at 128 px, members asked of all images, before gradients of depthwise convolutions were ours; on two cores of an AMD
EPYC without bf16, of --seed 1 with --minutes 60, at 128 px, of 33,312 images, and of --seed 2 with --minutes 30, at 160
px, of 6,739:

                                                  seed 0  seed 1  seed 2
    self-training on frozen features of three nets  83.6  (84.0)  (85.0)
    lite0 fine-tuned, all of it                     85.1  (83.9)  (85.3)
    lite0 fine-tuned, its biases                    83.6  (83.7)  (86.6)
    the mean of the three                           86.4  (86.8)  (88.8)
    one net, lite0, that learned it                 88.2    87.8    87.5
    in so many steps                                 903     816     145
    in so many minutes, in all                       105      66      29

More steps of the same labels gain little at 128 px: of 1,000 test images that net of seed 1 knew 85.9% after 80 steps,
86.6% after 240, and 87.1% at its end. The 66 minutes were meant to be 60; steps became slower than when they were
timed, and what was done before the first member was not counted, which it is since. Eight minutes (--seed 3, 160 px)
are too few on such cores: there is time for the frozen nets (86.3), not for fine-tunings, and measuring 10,000 test
images leaves one step to the one net, 83.1.

What the fine-tunings of lite0 give, at 160 px, of the same 2,500 validation images: self-training on the features of
all of it after 300 steps 85.8, 100 steps 85.0, of its biases after 100 steps 86.4; the mean of frozen nets (86.5) and
these two after 100 steps 87.8, with 300 steps of the first 88.1.

With --labels 40 and --minutes 25, at 160 px, cold caches, on one core of an AMD EPYC with bf16, whose other core was
busy (frozen nets: on 1,000 of the test images). The one net: 85.8 ± 1.7.

                                                  seed 0  seed 1  seed 2  seed 3  seed 4
    self-training on frozen features of three nets  84.2    84.0    82.9    80.1    86.0
    asked of so many images                       49,779  49,491  53,691  54,797  46,638
    one net, lite0, that learned it                 87.3    85.5    86.3    83.1    87.0
    in so many steps                                 333     379     408     468     429
    in so many minutes, in all                        21      22      22      24      23
    before, with all of lite0 fine-tuned beside it  86.6    83.0    85.1    80.3

The last line is of one core of the Xeon, which asked 12 to 14 thousand images and took 199 to 221 steps; there frozen
nets had 84.9, 82.2, 83.5 and 81.1, lite0 84.3, 81.5, 79.8 and 71.8. Fine-tuning was left out by what it gives with few
labels: accuracy on 1,000 validation images, then on 12 to 14 thousand training images whose labels nobody saw, splits
100 and 101:

    labels                                40          40           100         100
    self-training on frozen features  84.8, 83.5  85.5, 85.4   86.6, 85.9  85.1, 85.1
    all of lite0, by 300 steps        80.7, 79.8  81.2, 82.4   84.4, 85.6  77.5, 79.3
    the mean of both                  83.9, 82.5  84.1, 84.6   86.6, 87.0  84.3, 84.8

With --labels 4000 and --minutes 60, seed 0, 160 px, both cores of the Xeon, cold caches: 93.0% of the test images in 59
minutes and a half.

    lite0 fine-tuned, all of it, by 1,000 steps, and asked of all images  92.3, 14 minutes
    lite0 fine-tuned, its biases, likewise                                91.4, 11 minutes
    the mean of their heads                                               93.1
    one net, which goes on from the first by 1,494 steps                  93.0, 32 minutes

Members too were measured by all test images. What that took: fine-tuned by 300 steps, on one core, all of lite0 had
91.5 and its biases 90.7; self-training on lite0's frozen features 85.9, and one net that began at lite0, and learned in
326 steps what self-training on the fine-tuned features said (91.9), 90.4, less than they. By scripts, of 2,500 training
images whose labels nobody saw: the mean of self-training (which had their features) 92.1, of heads 92.6; fine-tuning by
1,000 steps 92.2, with biases by 300 the mean of heads 92.9. From that fine-tuned net 300 steps, too few to gain
anything, leave 91.8 under strong views with the net's own say, 92.1 under weak ones without it.

--out is the one net's run, for `ssl-lab predict` and every --from; the fine-tuned members are runs in its members/. It
ends with a table of what each of them, all together and the one net recognize. Soft labels of your own:
recipes/finetune.py --method soft_labels --arguments teacher FILE, with a tensor `logits` [images, classes].
"""

from dataclasses import dataclass
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import MaybeQuantity, Quantity


@dataclass
class Settings(sl.Settings):
    nets: tuple[str, ...] = ("lite0",)
    """Pretrained nets: lite0 and the like, folders of runs, files of weights. The first one learns at last."""
    image_size: int | None = 160
    """Side in pixels to which images are resized."""
    micro_batches: int | Literal["auto"] = "auto"
    """Parts into which each step's batch is cut; auto: the fastest."""
    tuned: tuple[Literal["all", "biases", "lora"], ...] | None = None
    """What of the first net learns in each fine-tuning on the labels; without any: --tuned. By default all and biases,
    and with fewer than 10 labels for each class none. lora needs pip install "ssl_lab[peft]"."""
    tuning_steps: int | None = None
    """Of each fine-tuning; by default 300, or 8 epochs of the labels if these are more, as far as there is time."""
    own: MaybeQuantity = None
    """The one net's own say over its soft labels, from 0 to below 1; by default it grows to 0.5, and with 100 labels of
    each class there is none."""
    labeled: int = 16
    """Labeled images per step of the one net."""
    unlabeled: int = 64
    """Images with soft labels per step."""
    lr: Quantity = 0.01
    """The one net's peak learning rate, of its head."""
    backbone_rate: float = 0.2
    """Its backbone's, relative to that."""
    ema: Quantity = 0.99
    """Decay of its averaged weights, which are evaluated."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    sl.announce(pool)
    how = sl.ensemble.Ensembling(settings.nets, settings.tuned, settings.tuning_steps, settings.own, settings.labeled,
                                 settings.unlabeled, settings.lr, settings.backbone_rate, settings.ema, settings.view,
                                 settings.optimizer)
    runtime = sl.Runtime.start(settings.device, settings.precision)
    trainer = settings.trainer()
    trainer["config"].pop("net")  # which is the first of --nets
    result, table = how.fit(pool, runtime, data_dir=settings.data_dir, **trainer)
    sl.report.print_tables(table)
    print(result)


if __name__ == "__main__":
    sl.launch(main, Settings)
