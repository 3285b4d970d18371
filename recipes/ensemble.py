r"""Few labels, pretrained nets, an hour: several nets label all images softly, and one net learns that.

    ssl-lab fetch cifar10 lite0 lite1 lite2
    python recipes/ensemble.py --data cifar10 --labels 250 --nets lite0 lite1 lite2 --minutes 60 --out runs/ensemble

The first member is self-training on the features of all these nets, side by side. Others are fine-tunings of the first
net on the labels (--tuned: what of it learns). The mean of what they say of each image is soft_labels.safetensors, and
the first net learns it under strong views (Zhang et al. 2025, arXiv 2503.09707); its own say over these labels grows
(--own). Half of the --minutes at most go into labeling the images: members for which that does not suffice are left
out, with a word. Killed at whatever moment, the same command goes on with --resume auto.

Why several nets: on 12,000 of CIFAR-10's training images at 128 px, self-training on the features of lite0 alone has
77.3% of 3,000 validation images with 40 labels and 78.7% with 250; of lite2 alone 79.1 and 80.6; of lite0, lite1 and
lite2 side by side 81.2 and 83.3, the mean of what it says on each by itself 80.2 and 82.5 (one split).

CIFAR-10, test accuracy (%) of one seed: --data cifar10 --labels 250 --nets lite0 lite1 lite2 --minutes 105, on one core
of an Intel Xeon whose other core was busy, in place of an hour of both:

                                                  accuracy  seconds
    self-training on frozen features of three nets    83.6      162  (and 982 for embedding)
    lite0 fine-tuned, all of it                       85.1      908
    lite0 fine-tuned, its biases                      83.6      663
    the mean of the three                             86.4
    one net, lite0, that learned it in 903 steps      88.2     3513

A step of it took 3.9 seconds then; gradients of depthwise convolutions have come to take half as long since.

With --labels 40 and --minutes 60, seed 0, on two cores of an AMD EPYC without bf16, on which there is time for lite0's
features alone: self-training on them has 72.9%, and the one net, which learned that in the 777 steps that the minutes
gave it, 79.8%. Its training took 79 minutes in place of 48, as other programs ran beside it and once held it up; it was
stopped and resumed.

--out is the one net's run, for `ssl-lab predict` and every --from; the fine-tuned members are runs in its members/. It
ends with a table of what each of them, all together and the one net recognize. Soft labels of your own:
recipes/finetune.py --method soft_labels --arguments teacher FILE, with a tensor `logits` [images, classes].
"""

from dataclasses import dataclass
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import Quantity


@dataclass
class Settings(sl.Settings):
    nets: tuple[str, ...] = ("lite0",)
    """Pretrained nets: lite0 and the like, folders of runs, files of weights. The first one learns at last."""
    image_size: int | None = 128
    """Side in pixels to which images are resized."""
    micro_batches: int | Literal["auto"] = "auto"
    """Parts into which each step's batch is cut; auto: the fastest."""
    tuned: tuple[Literal["all", "biases", "lora"], ...] = ("all", "biases")
    """What of the first net learns in each fine-tuning on the labels; without any: --tuned. lora needs
    pip install "ssl_lab[peft]"."""
    tuning_steps: int = 300
    """Of each fine-tuning."""
    own: Quantity = sl.schedule.linear(0.0, 0.5)
    """The one net's own say over its soft labels, from 0 to below 1."""
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
