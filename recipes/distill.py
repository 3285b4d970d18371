"""Distillation: from the net that the labels allowed to the net that ships, on every image of the pool, labeled or not.

    python recipes/fixmatch.py --data mnist --labels 40 --net tiny_16 --steps 1000 --out runs/teacher
    python recipes/distill.py --teacher runs/teacher --net tiny_5 --method kd --data mnist --labels 40 --steps 2000
    python recipes/distill.py --teacher runs/finetune --net wrn_16_2 --method kd --data cifar10 --labels 250 --steps 750

Prints the student's accuracy, its agreement with the teacher on test images, and the cost of both. The teacher may also
be a file of weights (of --teacher-net) or of stored `logits` (with --view eval), timm/<model> for methods that compare
features, or the name of a method that is trained first, for --teacher-steps. With --view eval, images are as they are,
and a teacher of which logits are read is asked once about each: its answers are kept in the data folder.

MNIST, 40 labels, students tiny_5 of 2000 steps, a tenth of the teacher (tiny_16, 1000 steps of FixMatch);
mean ± standard deviation over seeds 0, 1, 2, on one core of an AMD EPYC that had other work:

    student's method               test accuracy  agrees  KL to teacher  ECE   training
    (the teacher)                  97.9 ± 0.2                            0.6%   68 to 84 s
    supervised, --view strong      87.8 ± 1.2                                   29 to 40 s
    kd --images labeled            84.9 ± 3.4     85.4%   0.504          8.0%   71 to 82 s
    fixmatch                       96.4 ± 0.1                                   90 to 102 s
    kd, on all images              97.6 ± 0.1     98.4%   0.025          0.7%   63 to 76 s

The features of any teacher go to a small net without labels by `--method "seed(labeled=0)"` (or cc, crd, rkd and others
that read features), on a pool none of whose images has a label too: the head stays as it was, and recipes/features.py
`--net NAME --weights runs/latest/model.safetensors` or recipes/finetune.py go on from there.
On digits, a tiny_8 that 200 labels trained (93.2%) taught a tiny_4 in 200 steps of 64 images by "seed(labeled=0,
queue=512)": a linear probe of 40 labels on its features has 78.4 ± 2.1% over 3 splits, on the untrained ones 41.3 ±
5.4, on the teacher's 94.2 ± 0.8; one run.

Seed 0 with --view eval, the teacher's logits stored: 97.9%, 43 seconds in all on both cores, idle. The first two
commands on an Intel Xeon, seed 0: teacher 97.7%, kd 97.7%, agreeing on 98.6%, KL 0.022, ECE 0.6%, in 83 CPU seconds.
7,915 parameters for 77,754; 37,000 images/s for 23,000; 84 KB of ONNX for 363 KB.

CIFAR-10, 250 labels, students wrn_16_2, on one busy core each; the teacher is an EfficientNet-Lite0 at
128 px by recipes/finetune.py, with 81.5%; one seed:

    student's method                      test accuracy  agrees   training
    supervised, --view strong --lr 0.1    45.5                    1500 steps, 9 min
    fixmatch, --lr 0.03                   36.4                    750 steps, 18 min
    kd                                    71.2           73.6%    750 steps, 19 min
    dkd                                   64.5           67.7%    750 steps, 27 min (more crowded)
    dist                                  48.3           50.8%    750 steps, 20 min
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import ssl_lab as sl
from ssl_lab.config import Quantity, may_run
from ssl_lab.files import data_folder


@dataclass
class Settings(sl.Settings):
    net: str = "tiny_8"
    """The student."""
    method: str = may_run("kd", ":")
    """Name of a distillation method (see `ssl-lab list methods`), or package.module:MyMethod (not in a --config file);
    with arguments if you like, as in "kd(temperature=2)"."""
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the method: NAME VALUE, as often as you like."""
    teacher: str = may_run("fixmatch", ":")
    """A run's folder, a file, timm/<model>, or a method (as --method has it) to train first."""
    teacher_net: str = ""
    """Its net, where no run's config.yaml names it."""
    teacher_size: int | None = None
    """Side of its images, where not the data's or its run's."""
    teacher_steps: int = 200
    """Of a teacher that is trained first."""
    images: Literal["all", "labeled"] = "all"
    """What the student learns from: all images, or those with a label alone."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step."""
    lr: Quantity = 0.1
    """Peak learning rate, in the course that the recipe has; or a schedule in its place."""


def main(settings: Settings) -> None:
    views = sl.views.by_name(settings.view)
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    classes = pool.class_names or 1  # of images none of which has a label, features are learned
    new = partial(sl.net, classes=classes, style=pool.style, seed=settings.seed, bn_momentum=0.02)
    usual = sl.SGD(lr=sl.schedule.course(settings.lr, sl.schedule.cosine_7_16))
    trainer = sl.Trainer(optimizer=sl.optimizer(settings.optimizer, usual), **settings.trainer())
    by_logits = getattr(sl.methods.get(settings.method), "reads", "") == "logits"
    plain = by_logits and set(views.values()) == {sl.Eval}

    def around(net: sl.Net, taught: object) -> sl.methods.Method:
        arguments = {"teacher": taught, **({"view": sl.Eval} if plain else {}), **settings.arguments}
        free = {} if pool.class_names else {"labeled": 0.0}
        return sl.build.method(settings.method, net, pool, arguments, free).with_views(*settings.view)

    def check(teacher: sl.methods.Teacher) -> None:  # before anything trains or is embedded
        trainer.begun(around(new(settings.net), teacher), pool)

    if sl.methods.is_described(settings.teacher):
        known = settings.teacher_net or "tiny_16"
        first = sl.stages.first_stage(trainer, "teacher", settings.teacher_steps, usual, method=settings.teacher,
                                      net=known)
        teacher = sl.stages.trained_teacher(settings.teacher, new(known), pool, first, settings.labeled,
                                            settings.unlabeled, check)
    else:
        teacher = sl.methods.load_teacher(settings.teacher, pool.class_names, pool.style, settings.teacher_net,
                                          settings.teacher_size, len(pool), pool.reading)
        check(teacher)
    runtime, taught = sl.Runtime.start(settings.device, settings.precision), teacher
    if plain and not teacher.fixed:
        taught = sl.features.stored_logits(teacher, pool, data_folder(settings.data_dir) / "features", runtime)
    pool = replace(pool, train=pool.labeled) if settings.images == "labeled" else pool
    net = sl.prepared(new(settings.net, **settings.beginning()), settings.techniques, pool, settings.seed)
    result = trainer.fit(around(net, taught), pool, labeled=settings.labeled, unlabeled=settings.unlabeled)
    print(result)
    print(sl.features.compared_to_teacher(result.method.predictor(), teacher, pool, runtime, result.method.classifies))


if __name__ == "__main__":
    sl.launch(main, Settings)
