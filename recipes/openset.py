"""Unlabeled images that are partly of no class: OpenCoS (Park et al. 2021, arXiv 2107.08943) beside FixMatch.

    python recipes/openset.py --method fixmatch --data mnist --other cifar10 --share 0.5 --labels 40 --steps 1000
    python recipes/openset.py --method opencos --data mnist --other cifar10 --share 0.5 --labels 40 --steps 1000

OpenCoS knows an image of no class by its embedding, of SimCLR as in the paper, trained here first on the same images.
On 60,000 unlabeled images, of which half are photographs, it took 22,931 and 27,051 for digits (seeds 1 and 2). Test
accuracy over seeds 0 to 2, in two minutes each: OpenCoS 96.6 ± 0.2%, FixMatch 96.6 ± 0.8%: it did not help here;
with --encoder s4l 91.8% (seed 0). On an Intel Xeon, seed 0: OpenCoS 95.0%, FixMatch 96.0%, in 163 and 73 CPU seconds.
Without --other, nothing is mixed in.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import ssl_lab as sl
from ssl_lab.at_hand import PRETRAINED
from ssl_lab.config import Quantity, may_run


@dataclass
class Settings(sl.Settings):
    method: Literal["fixmatch", "opencos"] = "fixmatch"
    """FixMatch takes all unlabeled images as they come; OpenCoS tells those of no class apart."""
    other: str | None = None
    """Data set, folder or file whose images replace some of the unlabeled ones."""
    share: float = 0.5
    """How many, as a share of the unlabeled images."""
    encoder: str = may_run("simclr", ":")
    """What embeds images for OpenCoS: a method to train (or package.module:MyMethod, not in a --config file), lite0,
    timm/<model> as published, or model.safetensors."""
    encoder_steps: int = 500
    """Of an encoder that is trained."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step."""
    lr: Quantity = 0.1
    """Peak learning rate, in the course that the recipe has; or a schedule in its place."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    if settings.other is not None:
        other = sl.load(settings.other, settings.data_dir, remote_gb=settings.remote_gb)
        pool = sl.data.openset.open_set(pool, other, settings.share, settings.seed)
    new_net = partial(sl.net, classes=pool.class_names, style=pool.style, seed=settings.seed, bn_momentum=0.02)
    net = new_net(settings.net, **settings.beginning())
    net = sl.prepared(net, settings.techniques, pool, settings.seed)
    usual = sl.SGD(lr=sl.schedule.course(settings.lr, sl.schedule.cosine_7_16))
    trainer = sl.Trainer(optimizer=sl.optimizer(settings.optimizer, usual), **settings.trainer())
    method = sl.FixMatch(net).with_views(*settings.view)
    if settings.method == "opencos":
        opencos, targets = sl.methods.consistency.opencos, pool.labels[pool.labeled]
        opencos.check_labels(targets, pool.classes)  # before an encoder is trained
        if sl.methods.is_described(settings.encoder):
            learner = sl.build.method(settings.encoder, new_net(settings.net), pool, {})
            first = sl.stages.first_stage(trainer, "encoder", settings.encoder_steps, usual, method=settings.encoder)
            encoder = first.fit(learner, pool, settings.labeled, settings.unlabeled).method.predictor()
        elif settings.encoder.startswith("timm/") or settings.encoder in PRETRAINED:
            encoder = new_net(settings.encoder, pretrained=True)
        else:
            encoder = new_net(settings.net, weights=settings.encoder)
        runtime = sl.Runtime.start(settings.device, settings.precision)
        features = sl.features.embed(encoder, pool, pool.unlabeled, runtime)
        known = pool.labels[pool.unlabeled] >= 0
        found = opencos.split_open_set(features, features[known], targets, pool.classes)
        print(f"{int(found.in_class.sum()):,} of {len(found.in_class):,} unlabeled images count as of a known class")
        method = sl.OpenCoS(net, *found.by_index(pool.unlabeled, len(pool))).with_views(*settings.view)
    print(trainer.fit(method, pool, labeled=settings.labeled, unlabeled=settings.unlabeled))


if __name__ == "__main__":
    sl.launch(main, Settings)
