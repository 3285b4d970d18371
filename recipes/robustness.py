r"""How does a finished run stand attacks, corruptions and noise? Accuracy and calibration under each, on one page.

    python recipes/supervised.py --data digits --labels 200 --steps 300 --net tiny_8 --out runs/plain
    python recipes/robustness.py --from runs/plain --images 200 --out runs/robustness

Clean 97.0%, calibration error 2.4%; PGD-20 within 0.05 of a pixel 55.5%, within 0.1 4.0%; mean of 75 corruptions 71.1%
(error 17.1%), the worst of them contrast (33.2%) and fog (38.0%); Gaussian noise of 0.2 74.5%. One seed; 16 seconds of
CPU time. Trained --with "adversarial(radius=0.1, size=0.04, steps=5)": clean 95.5%, PGD-20 86.0% and 68.0%, corruptions
85.4% (9.6%), noise 90.0%.

MNIST, 4,000 labels, recipes/supervised.py --labels 4000 --steps 2000, one seed of each, 32 seconds of a page: accuracy
(%) of 500 test images, PGD-20's radius in pixels of [0, 1], corruptions' mean of 75, training's seconds on one core:

    --with                                              clean  PGD .05  .1    .2    corruptions  noise .2  trained in
    nothing                                             98.8   69.6     2.0   0.0   69.4         23.4      30 s
    noise_consistency                                   99.6   72.2     4.4   0.0   70.0         29.6      98 s
    "adversarial(radius=0.2, size=0.05, steps=7)"       98.8   98.4     97.6  92.6  87.7         84.6      138 s
    nothing, then cure in fine-tuning                   98.8   95.8     69.8   0.6   78.6         89.2      352 s more

At 0.3 all of them have 0; noise of 0.4, frost and fog break all four. The last row is the first one's run, trained on
while other programs ran:

    python recipes/finetune.py --from runs/plain --head start --data mnist --labels 4000 --steps 1000 --with cure

From random weights `cure` trains nothing with its defaults, which are for fine-tuning (11.8 everywhere).

Of --images test images, of those that the run was tested on: clean; attacked by PGD-20 (ours, and those of torchattacks
and of autoattack where they are installed: `pip install torchattacks`); under 15 common corruptions of 5 strengths
(ssl_lab/views/corruptions.py); under Gaussian noise by level. It prints tables, and writes report.html. Data are those
of the run (--data says where they lie now). Attacks are on the evaluated net itself. PGD without restarts finds fewer
errors than there are: a robust accuracy by it is an upper bound.
"""

from dataclasses import dataclass
from pathlib import Path

import ssl_lab as sl
from ssl_lab.config import OfARun


@dataclass
class Settings(OfARun):
    images: int = 500
    """Test images."""
    radii: str = ""
    """Of attacks, the largest change of a pixel in [0, 1], with commas (default: 1, 2, 4 and 8 of 255; of gray images
    0.05, 0.1, 0.2 and 0.3)."""
    attack_steps: int = 20
    """Of PGD."""
    out: Path = Path("runs/robustness")
    """Folder of report.html."""


def main(settings: Settings) -> None:
    run, page, robustness = sl.report.finished.Finished.of(settings), sl.report.robustness, sl.analysis.robustness
    radii = robustness.read_radii(settings.radii, run.pool.style)
    runtime = sl.Runtime.start(settings.device, "fp32")
    trial = robustness.Trial.of(run.net, run.pool, settings.images, settings.seed, runtime)
    found = robustness.stand(trial, radii, settings.attack_steps, settings.seed)
    for table in (page.table_of_all(found), page.table_of_kinds(found)):
        sl.report.print_tables(table)
    print(f"The report is {page.write_robustness(run, found, settings.out)}")


if __name__ == "__main__":
    sl.launch(main, Settings)
