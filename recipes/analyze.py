r"""What is this run like? Numbers of a finished run's net, each with what it means and what it cannot tell.

    python recipes/supervised.py --data digits --labels 200 --steps 300 --net tiny_8 --out runs/plain --with head_norm
    python recipes/analyze.py --from runs/plain --out runs/analysis
    python recipes/supervised.py --data digits --labels 200 --steps 300 --net tiny_8 --out runs/wrong \
        --with "corrupt_labels(0.4)" --with head_norm
    python recipes/analyze.py --from runs/wrong --out runs/analysis-wrong

The second run learned 49% of its 73 wrong labels by heart, and told 41% right in spite of them (test accuracy 73.0%;
95.2% of the first, which has none). Its valley is steeper: sharpness 0.32 against 0.10, largest eigenvalue 222 against
62, local energy +9.2 against +5.1 points; effective depth (5.5) and the exponent of gradient noise (0.52) do not tell
the two apart. One seed of each; an analysis takes some 20 seconds of CPU time.

MNIST, one seed of each, 30 seconds an analysis: does it tell runs apart? FixMatch with 40 labels (3,000 steps, 99.0%)
and FixMatch --with sam (98.9%) hardly: sharpness 0.044 and 0.041, m-sharpness 0.095 and 0.101, largest eigenvalue 11.8
and 10.2, local energy +0.0 and -0.3. Of two supervised runs with 4,000 labels (2,000 steps), the one with 40% of its
labels wrong (97.1%, 98.6% the other) yes: loss 0.60 against 0.07, sharpness 0.126 against 0.078, local energy +2.8
against +0.9, smallest eigenvalue -1.9 against -0.9; 1% of its 1,448 wrong labels are learned by heart and 96% told
right in spite. m-sharpness (0.15, 0.18), largest eigenvalue (32, 44), effective depth (5.5 everywhere) and Hurst
exponent (0.49 to 0.54) do not tell.

It prints one table, and writes report.html. Data and labels are those of the run (--data says where they lie now). The
loss that is looked at is that of --images training images, as they are, by their classes (labels, where no more is
known). Test images play no part.
"""

from dataclasses import dataclass
from pathlib import Path

import ssl_lab as sl
from ssl_lab.config import OfARun


@dataclass
class Settings(OfARun):
    images: int = 256
    """Training images of the loss that is looked at."""
    radius: float = 0.05
    """Of sharpness: the length by which all weights together move."""
    energy: float = 0.1
    """Of local energy: the share of itself by which each weight moves."""
    draws: int = 30
    """Of local energy."""
    krylov: int = 12
    """Steps of Lanczos' method for the Hessian."""
    batches: int = 600
    """Mini-batches whose noise is measured, 120 or more; 0 leaves that out."""
    out: Path = Path("runs/analysis")
    """Folder of report.html."""


def main(settings: Settings) -> None:
    page, run = sl.report.analysis, sl.report.finished.Finished.of(settings)
    runtime = sl.Runtime.start(settings.device, "fp32")
    land = page.landscape(run, settings.images, settings.seed, runtime)
    whole = sl.analysis.spectrum(land, settings.krylov, seed=settings.seed)
    by_class = sl.analysis.spectrum_by_class(land, settings.krylov, settings.seed)
    numbers = [*page.of_the_loss(land, settings.radius, settings.energy, settings.draws, settings.seed),
               *page.of_the_hessian(whole), *page.of_the_net(run, land), *page.of_the_labels(run, runtime),
               *page.of_the_course(run), *page.of_the_noise(land, settings.batches, settings.seed)]
    sl.report.print_tables(page.table_of(run, numbers))
    print(f"The report is {page.write_analysis(run, numbers, whole, by_class, land, settings.out)}")


if __name__ == "__main__":
    sl.launch(main, Settings)
