"""Self-supervised pretraining: features from images without labels.

    python recipes/pretrain.py --method simclr --data mnist --minutes 10 --out runs/pretrain
    python recipes/finetune.py --from runs/pretrain --data mnist --labels 250 --steps 500

The first command, and the same with byol: test accuracy (%) with 100 labels of MNIST, mean ± standard deviation over 3
splits (`recipes/features.py --labels 100 --learner knn --net tiny_16 --weights runs/pretrain/model.safetensors`), of
the same net at random init and of the pixels; one core of an AMD EPYC that had other work. Where ten other processes
shared two cores, ten minutes were 1,190 steps of simclr (recipes/evaluate.py says what these give).

              knn          linear probe
    simclr    91.9 ± 1.0   94.6 ± 1.8    4109 steps
    byol      79.8 ± 3.7   89.3 ± 0.3    2395 steps
    init      40.3 ± 3.0   48.3 ± 0.8
    pixels    78.0 ± 1.2   77.0 ± 2.6

    python recipes/pretrain.py --method simclr --data cifar10 --net tiny_48 --minutes 60 --out runs/pretrain
    python recipes/finetune.py --from runs/pretrain --data cifar10 --labels 250 --steps 500

5271 steps in 67 minutes on such a core, and 37 seconds: 56.4%, one seed; with `--method fixmatch --steps 1500` and 12
minutes 60.5%. The same net and labels from scratch, for as long on a core without other work: supervised on strong
views 49.5% in 67 minutes, FixMatch 56.4% in 81 (recipes/fixmatch.py). Frozen, by 250 and 4000 labels, 3 splits: knn
53.3 ± 1.0 and 61.7 ± 0.6%, linear probe 56.4 ± 1.1 and 66.4 ± 0.2%; at random init, by 250, 22.4 ± 1.4 and 24.6 ± 2.4%.

    python recipes/pretrain.py --method simclr --data digits --steps 500 --view simclr_kornia

Nearest neighbors with 100 labels of digits, 3 splits: 95.4 ± 1.4 and 93.6 ± 0.8% of seeds 0 and 1;
without --view 94.7 ± 1.6 and 93.2 ± 1.8%.

    python recipes/pretrain.py --method barlow_twins --data cifar10 --net resnet18 --steps 100000

From 65,536 steps on (or with --preset paper) batches, rates and heads are those of the papers and their authors' code,
for machines that carry them; before, those tried in minutes on a CPU. `ssl_lab/pretraining_presets.py` holds both.

Labels play no part in training, and there may be none. At ten points of the run it measures whether features collapse
and, with --online, how well labeled images tell the classes of others by features. `sl.net(..., weights=FILE)` loads
its model.safetensors.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import MaybeQuantity, may_run


@dataclass
class Settings(sl.Settings):
    method: str = may_run("simclr", ":")
    """Name of the method (see `ssl-lab list methods`, family pretraining), or package.module:MyMethod (not in a
    --config file), which is trained as SimCLR is; with arguments if you like, as in "simclr(temperature=0.2)"."""
    preset: Literal["auto", "paper", "short"] = "auto"
    """Where the settings below come from if they are not given, and the optimizer. auto: by the number of steps."""
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the method, in place of the preset's: NAME VALUE, as often as you like."""
    unlabeled: int | None = None
    """Images per step (default: 256 in short runs)."""
    lr: MaybeQuantity = None
    """Peak learning rate, or a schedule (default: by method and --unlabeled; in short runs of SGD, or from 1024 images
    on of LARS)."""
    online: bool = False
    """Measure nearest neighbors and a linear probe at evaluation points, by the labels that there are."""


def main(settings: Settings) -> None:
    asked = settings.preset
    kind = sl.presets.kind_for(settings.steps) if asked == "auto" else asked
    preset = sl.pretraining_presets.preset(settings.method, kind, settings.unlabeled)
    lr = preset.lr * preset.unlabeled / 256 if settings.lr is None else settings.lr
    settings = dataclasses.replace(settings, preset=kind, unlabeled=preset.unlabeled, lr=lr)
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    pool = sl.presets.noted(pool, asked, kind)
    net = sl.net(settings.net, pool.class_names or 1, pool.style, **settings.beginning())
    net = sl.prepared(net, settings.techniques, pool, settings.seed)
    method = sl.build.method(settings.method, net, pool, settings.arguments,
                             {**preset.arguments, "seed": settings.seed}).with_views(*settings.view)
    monitors = [sl.features.Health(), *([sl.features.OnlineAccuracy()] if settings.online else [])]
    optimizer = sl.optimizer(settings.optimizer, preset.optimizer(lr))
    trainer = sl.Trainer(optimizer=optimizer, monitors=monitors, **settings.trainer())
    result = trainer.fit(method, pool, unlabeled=preset.unlabeled)
    said = ("knn_accuracy", "probe_accuracy", "effective_rank")
    print(result, *(f"{name} {result.summary[name]:.4g}" for name in said if name in result.summary))


if __name__ == "__main__":
    sl.launch(main, Settings)
