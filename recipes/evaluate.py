r"""What are a net's features worth? With labels and without, by number of labels, layer by layer, and as a map.

    python recipes/evaluate.py --from runs/pretrain --against init --data mnist --labels 1000 --out runs/evaluation
    python recipes/evaluate.py --from lite0 --data cifar10 --image-size 128

The first command, after ten minutes of SimCLR (4,109 steps): kNN 95.6%, linear probe 97.0%, with 40 labels 86.3 ± 2.6%.
27 seconds on one core of an AMD EPYC that had other work, images embedded before. With ten other processes on two cores
of an Intel Xeon, ten minutes were 1,190 steps: 90.1, 94.2 and 78.2 ± 4.2%; at random init 64.4, 65.2 and 35.8 ±
3.4%. That took 102 seconds of CPU time, with embedding.

--from and --against take the folder of a run, a .safetensors file (of --net), lite0 and the like, or timm/MODEL with
--pretrained or --weights FILE; `--against init` is the same net at random init (`--from init` that of --net), `pixels`
the images themselves. It prints one table and writes report.html, with a map of test images on which each shows itself
under the pointer. Labels are those of --labels (default: all that are known); test labels are only counted. Without any
labels it measures health alone. Images are embedded once and kept in the data folder: the next evaluation starts at
once.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

import ssl_lab as sl
from ssl_lab.config import Untrained
from ssl_lab.files import data_folder


@dataclass
class Settings(Untrained):
    start: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "runs/pretrain"
    """What to evaluate: a run, a file of weights, timm/MODEL, init or pixels."""
    against: str | None = None
    """What to compare it with: another such, init or pixels."""
    splits: int = 5
    """Draws of the labels in the few-label curve, of seeds --seed, --seed + 1, ..."""
    learner: Literal["knn", "prototype", "probe"] = "probe"
    """Of the few-label curve."""
    layout: Literal["pca", "umap"] = "pca"
    """Of the map; umap: pip install "ssl_lab[umap]"."""
    shown: int = 400
    """Test images on the map."""
    compared: int = 256
    """Images by which layers are compared."""
    out: Path = Path("runs/evaluation")
    """Folder of report.html."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    sl.announce(pool)
    worth, page = sl.features.worth, sl.report.features
    queries = worth.images_to_ask_about(pool)
    runtime = sl.Runtime.start(settings.device, settings.precision)
    beginning = partial(worth.net_of, beside=settings.start, classes=pool.class_names or 1, style=pool.style,
                        name=settings.net, **settings.beginning())
    nets = {name: beginning(name) for name in (settings.start, settings.against) if name is not None}

    found, kept = [], data_folder(settings.data_dir) / "features"
    for name, net in nets.items():
        found.append(worth.Worth.of(name, net, pool, kept, runtime))
        found[-1].by_labels(pool, queries, {settings.learner: sl.features.LEARNERS[settings.learner]},
                            range(settings.seed, settings.seed + settings.splits))
    layers = worth.compare(*found, pool, settings.compared, runtime) if len(found) == 2 else None
    sl.report.print_tables(page.table_of(found, pool, queries))
    file = page.write_features(found, layers, pool, queries, settings.learner, settings.layout, settings.shown,
                               settings.seed, settings.out)
    print(f"The report is {file}")


if __name__ == "__main__":
    sl.launch(main, Settings)
