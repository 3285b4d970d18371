"""A smaller net from a finished run: it learns to answer as the run does, on every image, labeled or not.

    python recipes/fixmatch.py --data mnist --labels 40 --net tiny_16 --steps 1000 --out runs/fixmatch
    python recipes/compress.py --from runs/fixmatch --how "taylor(ratio=0.5)" --data mnist --labels 40 --steps 1000
    python recipes/compress.py --from runs/fixmatch --how "rigl(density=0.1)" --how "lottery(rounds=4)" --int8 \\
        --data mnist --labels 40 --steps 1000 --resume auto

The run is its own teacher: that is what makes compression work where labels are few. Each --how is a technique, or
several joined by +, which trains and edits a copy of the run's net, and is a run in a folder of its own in --out, which
`ssl-lab predict` opens. Killed at whatever moment, the same command goes on with --resume auto; with another --how it
adds what is missing. Ways that are meant for it: taylor and slimming take channels out, so that the net is really
smaller; lottery, rigl and scl set weights to zero, which makes a file compress better, and no dense kernel faster; qnn,
saq, noise_tempering, csq and bitat train in few bits, symreg and satnl for rounding afterwards: for all of them see the
rows of --int8; linearize takes nonlinearities out, channel by channel.

One table: parameters, nonzero ones, FLOPs, effective depth, bytes of the ONNX export (and gzipped), images/s by
onnxruntime, accuracy and agreement with the run on test images, of the run and of each way; with --int8 also of each in
8 bits.

MNIST, 40 labels, the run of the first line with tiny_16 and tiny_32, one seed, one core of an Intel Xeon that others
shared, 47 to 234 s a way with tiny_16 (tests/benchmarks/README.md has all 15): accuracy (%), KB gzipped, images/s as a
multiple of 21,478 and 6,857; in 8 bits:

    --how                  tiny_16               int8                 tiny_32               int8
    the run                97.7   293 KB  1.0    97.8  83 KB  1.4     98.3  1147 KB  1.0    98.3  298 KB  2.3
    "taylor(ratio=0.5)"    97.7    66 KB  1.1    97.7  25 KB  1.2     98.3   232 KB  1.2    98.3   69 KB  2.8
    "taylor(ratio=0.75)"   96.2    20 KB  2.6    96.2  11 KB  1.5     97.9    50 KB  3.9    97.9   20 KB  3.6
    "rigl(density=0.1)"    97.8    45 KB  1.0    97.7  25 KB  1.5     98.4   162 KB  1.0    98.4   70 KB  2.3
    "qnn(weights=1)"       97.7    38 KB  0.4    97.7  25 KB  1.5     98.3   100 KB  0.5    98.3   65 KB  2.3

The best point is a wide net, cut: tiny_32 by taylor(ratio=0.75) is faster than tiny_16 and as accurate.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

import ssl_lab as sl
from ssl_lab import texts
from ssl_lab.config import Quantity, Texts, may_run


@dataclass
class Settings(sl.Settings):
    start: Annotated[Path, tyro.conf.arg(aliases=("--from",))] = Path("runs/latest")
    """The folder of the finished run."""
    how: Texts = may_run((), ":")  # noqa: RUF009
    """A way to make it smaller, or several joined by + (see `ssl-lab list techniques`), as often as you like."""
    method: str = may_run("kd", ":")
    """The distillation method by which it learns from the run (see `ssl-lab list methods`)."""
    out: Path = Path("runs/compress")
    """Folder of all ways, a run's folder each."""
    int8: bool = False
    """Also each net in 8 bits."""
    labeled: int = 32
    """Labeled images per step."""
    unlabeled: int = 128
    """Unlabeled images per step."""
    lr: Quantity = 0.03
    """Peak learning rate, in the course that the recipe has; or a schedule in its place."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    teacher = sl.methods.load_teacher(str(settings.start), pool.class_names, pool.style, "", None, len(pool),
                                      pool.reading)
    new = partial(sl.nets.start.start_net, str(settings.start), pool.class_names, pool.style, seed=settings.seed)
    ways = {way: [sl.techniques.technique(text).text for text in texts.split(way, "+")] for way in settings.how}
    if not ways:
        raise sl.UsageError('which way? Give one or more, as in --how "taylor(ratio=0.5)"')
    first = new()
    nets = {"the run": first}
    for way, techniques in ways.items():
        given = tuple(dict.fromkeys(sl.techniques.technique(text).text for text in (*settings.techniques, *techniques)))
        own = replace(settings, how=(way,), out=settings.folder / texts.as_file_name(way), net=first.name,
                      resume=settings.resume and "auto", int8=False)  # which no run depends on
        net = sl.prepared(new(), given, pool, settings.seed)
        arguments = {"teacher": teacher, "ema": 0.99}
        method = sl.build.method(settings.method, net, pool, {}, arguments).with_views(*settings.view)
        usual = sl.SGD(lr=sl.schedule.course(settings.lr, sl.schedule.cosine_7_16))
        optimizer = sl.optimizer(settings.optimizer, usual)
        trainer = sl.Trainer(optimizer=optimizer, **own.trainer() | {"techniques": given})
        result = trainer.fit(method, pool, labeled=settings.labeled, unlabeled=settings.unlabeled)
        print(result)
        nets[way] = result.method.predictor()
    found = []
    for name, net in nets.items():
        found.append(sl.compress.candidate_of(name, net, pool))
        found += [sl.compress.as_int8(found[-1], net, pool)] if settings.int8 else []
    sl.report.print_tables(sl.compress.compared(found, pool))


if __name__ == "__main__":
    sl.launch(main, Settings)
