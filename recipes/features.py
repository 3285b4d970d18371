r"""Few labels on the features of a frozen pretrained net: minutes on a CPU to embed once, then seconds per learner.

    ssl-lab fetch cifar10 lite0
    python recipes/features.py --data cifar10 --labels 250 --image-size 128 --net lite0

It prints, for each learner, mean and standard deviation of the test accuracy over 3 splits, and seconds per split; the
first split of propagation brings the graph, which the others share (with --valid, each has training images of its own).
Features are kept in the data folder: the next run starts at once. `--learner probe` runs one alone. `--net resnet18
--weights runs/simclr/model.safetensors` takes the features of a net of yours, `--net pixels` the images themselves.

--out is a finished run afterwards, which `ssl-lab predict` and every --from take: the learner that was asked for (of
all, self_training; with --also, the ensemble), fitted to the labels of the first split.

The command above and the same with 10, 40 and 4000 labels: test accuracy (%), and seconds per split on one busy core of
an AMD EPYC, which embeds some 200 images of 128 px per second; the probe later, on a core of an Intel Xeon that ten
other processes shared; what is marked, CPU seconds of such a core.

    labels        10                  40                  250                 4000
    knn           48.0 ± 6.6   0.1 s* 59.8 ± 2.6   0.1 s  74.7 ± 0.9   0.2 s  82.0 ± 0.3   1.6 s
    prototype     48.0 ± 6.6   0.1 s* 61.2 ± 3.3   0.0 s  77.1 ± 0.8   0.0 s  79.8 ± 0.3   0.1 s
    probe         49.6 ± 5.0   0.1 s* 62.6 ± 3.0   0.7 s  77.6 ± 0.2   3.5 s  84.2 ± 0.2  38.9 s
    anchored      62.4 ± 8.3   3.7 s* 71.2 ± 4.0   4.0 s* 74.3 ± 1.3   4.6 s* 76.3 ± 0.1  17.6 s*
    propagation   55.2 ± 8.4  27.7 s* 68.4 ± 1.8  39.1 s  78.0 ± 0.7  40.5 s  78.7 ± 0.5  41.7 s
    self_training 64.4 ± 9.7  66.8 s* 74.6 ± 1.4  25.7 s  79.9 ± 0.5  27.2 s  83.7 ± 0.1  48.2 s

Anchored transduction asks for no share of each class, and so is for unlabeled images in which classes are missing;
where all are there in equal number, as here, it is ahead of the probe with 10 and 40 labels, and behind it with more.

What did not help: LP++ (Huang et al. 2024, arXiv 2404.02285) without its texts. With the labels' prototypes t_k in
their place, logits x (w_k + a_k t_k), and 300 full steps of w and a by turns, each as long as a Lipschitz bound allows:
43.8, 61.5 and 77.3% with 10, 40 and 250 labels, from w of class means and a = 10; 43.8, 61.5 and 76.4% from the
authors' larger a with their steps. The probe has 44.3, 61.7 and 77.3%, and 44.4, 61.7 and 77.4% with a strength of 0.3
that nothing chose, in the time of one fit: t_k lies among what w can say, so that a adds a start, no knowledge. Splits
of seeds 100 to 102, of 250 labels the first two.

Of 250 labels, with --also and two runs of recipes/finetune.py on the same labels (all of the net, and --learn lora) and
--splits 1: self_training 80.2%, ensemble 84.7% in 68 seconds; each run is embedded first, 4 minutes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import Untrained
from ssl_lab.files import data_folder
from ssl_lab.notes import tell


@dataclass
class Settings(Untrained):
    learner: Literal["all", "knn", "prototype", "probe", "propagation", "self_training", "anchored"] = "all"
    """Which learner to run."""
    also: tuple[str, ...] = ()
    """Other backbones, e.g. fine-tuned variants: runs, files of weights of --net, timm/MODEL --pretrained. All of them
    together are one more learner, the ensemble."""
    splits: int = 3
    """Draws of the labels, of seeds --seed, --seed + 1, ..."""


def main(settings: Settings) -> None:
    if settings.resume is None:
        sl.engine.folder.make_way(settings.out)
    pool = sl.load(settings.data, **settings.reading())
    if settings.resume is not None:
        sl.begun.check_same_learner(settings.out, settings.plain(), pool.split(**settings.split()))
    sl.announce(pool)
    nets = [sl.net(settings.net, pool.class_names, pool.style, **settings.beginning())]
    nets += [sl.nets.start.start_net(start, pool.class_names, pool.style, settings.net,
                                     pretrained=settings.pretrained and start.startswith("timm/"))
             for start in settings.also]
    runtime = sl.Runtime.start(settings.device, settings.precision)
    stores = [sl.features.FeatureStore.build(net, pool, data_folder(settings.data_dir) / "features", runtime)
              for net in nets]
    for net, store in zip(nets, stores, strict=True):
        print(f"{pool.name}: {len(store)} images embedded by {net.name} in {store.seconds:.0f} s, in {store.folder}")
    features = [store.features for store in stores]

    ensemble = sl.features.side_by_side.ENSEMBLE
    learners = sl.features.LEARNERS | {"propagation": partial(sl.features.label_propagation, kept={})}
    names = [*(learners if settings.learner == "all" else [settings.learner]), *([ensemble] if settings.also else [])]
    seeds = range(settings.seed, settings.seed + settings.splits)
    pools = [pool.split(**settings.split() | {"seed": seed}) for seed in seeds]
    tell([f"note: seed {seed}: {remark}" for seed, few in zip(seeds, pools, strict=True)
          for remark in sl.data.remarks.remarks(few) if remark not in pool.notes])
    found = sl.features.side_by_side.compared(names, learners, features, pools)
    print(f"{len(pools[-1].labeled)} labels, {settings.splits} splits", *found, sep="\n")
    kept = settings.learner if settings.learner != "all" and not settings.also else "self_training"
    sl.features.run.save_run(settings.out, kept, nets, features, pool.split(**settings.split()), learners,
                             settings.plain() | {"backbone": settings.net}, runtime)
    print(f"{ensemble if settings.also else kept} of seed {settings.seed} is in {settings.out}, for `ssl-lab predict "
          f"{settings.out} IMAGES`")


if __name__ == "__main__":
    sl.launch(main, Settings)
