r"""How does a finished run stand attacks, corruptions and noise? Accuracy and calibration under each, on one page.

    python recipes/supervised.py --data digits --labels 200 --steps 300 --net tiny_8 --out runs/plain
    python recipes/robustness.py --from runs/plain --images 200 --out runs/robustness

Clean 97.0%, calibration error 2.4%; PGD-20 within 0.05 of a pixel 55.5%, within 0.1 4.0%; mean of 75 corruptions 71.1%
(error 17.1%), the worst of them contrast (33.2%) and fog (38.0%); Gaussian noise of 0.2 74.5%. One seed; 16 seconds of
CPU time. Trained --with "adversarial(radius=0.1, size=0.04, steps=5)": clean 95.5%, PGD-20 86.0% and 68.0%, corruptions
85.4% (9.6%), noise 90.0%.

Of --images test images, of those that the run was tested on: clean; attacked by PGD-20 (ours, and those of torchattacks
and of autoattack where they are installed: `pip install torchattacks`); under 15 common corruptions of 5 strengths
(ssl_lab/views/corruptions.py); under Gaussian noise by level. It prints tables, and writes report.html. Data are those
of the run (--data says where they lie now). Attacks are on the evaluated net itself. PGD without restarts finds fewer
errors than there are: a robust accuracy by it is an upper bound.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import ssl_lab as sl
from ssl_lab.batch import generator
from ssl_lab.engine.evaluate import rates, tallies
from ssl_lab.errors import UsageError
from ssl_lab.finished import Finished, OfARun
from ssl_lab.intervals import wilson
from ssl_lab.report import Band, Column, Report, Table, curves
from ssl_lab.techniques.attack import pgd
from ssl_lab.techniques.images import some
from ssl_lab.views.corruptions import KINDS, corrupt

ROWS = 128  # images that pass at a time
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)  # standard deviations of Gaussian noise, of pixels in [0, 1]


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


class Score(NamedTuple):
    accuracy: float
    ece: float


@dataclass
class Trial:
    """A net, and the images that it is tried on: x uint8 [n, C, H, W], y int64 [n]."""

    net: sl.Net
    x: Tensor
    y: Tensor

    def score(self, pixels: Tensor) -> Score:
        """Of images as they have become, float [n, C, H, W] in [0, 1]."""
        with torch.inference_mode():
            logits = torch.cat([self.net(part.to(self.y.device)).logits for part in pixels.split(ROWS)])
        found = rates(tallies(logits.double().softmax(dim=1).cpu().numpy(), self.y.cpu().numpy()))
        return Score(found["accuracy"], found["ece"])

    def attacked(self, attack: Callable[[Tensor, Tensor], Tensor]) -> Score:
        clean = self.x / 255
        return self.score(torch.cat([attack(x, y) for x, y in zip(clean.split(ROWS), self.y.split(ROWS), strict=True)]))


def main(settings: Settings) -> None:
    run = settings.finished()
    pool, runtime = run.pool, sl.Runtime.start(settings.device, "fp32")
    rows = pool.test if (pool.truth[pool.test] >= 0).any() else pool.valid
    rows = np.sort(some(rows[pool.truth[rows] >= 0], settings.images, settings.seed, "robustness"))
    if not len(rows):
        raise UsageError(f"{pool.name} has no test image whose class is known, and the run no validation images")
    trial = Trial(run.net.eval().to(runtime.device), pool.images.take(rows).to(runtime.device),
                  torch.from_numpy(pool.truth[rows]).to(runtime.device))

    clean = trial.score(trial.x / 255)
    attacks = under_attack(trial, radii_of(settings, pool), clean, settings)
    corrupted = {kind: [clean, *(trial.score(corrupt(trial.x, kind, strength, settings.seed)) for strength in
                                 range(1, 6))] for kind in KINDS}
    noisy = [trial.score(noise(trial.x, level, settings.seed)) for level in LEVELS]
    tables = [table_of_all(clean, attacks, corrupted, noisy, len(rows)), table_of_kinds(corrupted)]
    for table in tables:
        Console().print(table)
    write_report(run, clean, attacks, corrupted, noisy, tables, len(rows), settings)
    print(f"The report is {settings.out / 'report.html'}")


def radii_of(settings: Settings, pool: sl.Pool) -> list[float]:
    if not settings.radii:
        return [0.05, 0.1, 0.2, 0.3] if pool.style.channels == 1 else [each / 255 for each in (1, 2, 4, 8)]
    try:
        found = [float(part) for part in settings.radii.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= each <= 1 for each in found):
        raise UsageError(f"--radii {settings.radii}: expected numbers from 0 to 1 with commas, as in 0.01,0.03")
    return found


def under_attack(trial: Trial, radii: list[float], clean: Score, settings: Settings) -> dict[str, dict[float, Score]]:
    """Name of each attack -> radius -> score; of attacks of packages, those that are installed."""
    def ours(radius: float) -> Callable[[Tensor, Tensor], Tensor]:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            draw = torch.rand(x.shape, generator=generator(settings.seed, "pgd")).to(x.device)
            return pgd(trial.net, x, y, radius, settings.attack_steps, noise=2 * draw - 1)
        return attack

    makers = {f"PGD-{settings.attack_steps}": ours} | foreign(trial.net, settings.attack_steps)
    return {name: {0.0: clean} | {radius: trial.attacked(make(radius)) for radius in radii if radius}
            for name, make in makers.items()}


def foreign(net: sl.Net, steps: int) -> dict[str, Callable[[float], Callable[[Tensor, Tensor], Tensor]]]:
    """Attacks of other packages, by name, as far as they are installed."""
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).logits

    found = {}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        found[f"torchattacks PGD-{steps}"] = lambda radius: torchattacks.PGD(
            Logits().eval(), eps=radius, alpha=2.5 * radius / steps, steps=steps)
    if importlib.util.find_spec("autoattack"):
        import autoattack

        found["AutoAttack"] = lambda radius: lambda x, y: autoattack.AutoAttack(
            Logits().eval(), norm="Linf", eps=radius, device=str(x.device),
            verbose=False).run_standard_evaluation(x, y, bs=len(x))
    return found


def noise(images: Tensor, level: float, seed: int) -> Tensor:
    """float [n, C, H, W]: with Gaussian noise of this standard deviation, the same draw for each level."""
    draw = torch.randn(images.shape, generator=generator(seed, "noise")).to(images.device)
    return (images / 255 + level * draw).clamp(0, 1)


def table_of_all(clean: Score, attacks: dict[str, dict[float, Score]], corrupted: dict[str, list[Score]],
                 noisy: list[Score], count: int) -> Table:
    low, high = wilson(round(clean.accuracy * count), count)
    every = [score for scores in corrupted.values() for score in scores[1:]]
    rows = [[f"clean (95%: {100 * low:.1f} to {100 * high:.1f})", *clean],
            *([f"{name}, radius {255 * radius:.3g}/255", *score] for name, scores in attacks.items()
              for radius, score in scores.items() if radius),
            ["corruptions, mean of 75", *np.mean(every, axis=0).tolist()],
            *([f"Gaussian noise {level:g}", *score] for level, score in zip(LEVELS[1:], noisy[1:], strict=True))]
    return Table(f"{count} test images", [Column("under"), Column("accuracy", "right", ".1%"),
                                          Column("calibration error", "right", ".1%")], rows)


def table_of_kinds(corrupted: dict[str, list[Score]]) -> Table:
    rows = [[kind, *(score.accuracy for score in scores[1:]), float(np.mean([s.accuracy for s in scores[1:]])),
             float(np.mean([s.ece for s in scores[1:]]))] for kind, scores in corrupted.items()]
    return Table("Accuracy by corruption and strength", [
        Column("corruption"), *(Column(str(strength), "right", ".1%") for strength in range(1, 6)),
        Column("mean", "right", ".1%"), Column("calibration error", "right", ".1%")], rows)


def write_report(run: Finished, clean: Score, attacks: dict[str, dict[float, Score]],
                 corrupted: dict[str, list[Score]], noisy: list[Score], tables: list[Table], count: int,
                 settings: Settings) -> None:
    report = Report("How robust this run is", f"{settings.start}, by recipes/robustness.py")
    report.table(tables[0])
    trained = ", ".join(run.techniques)
    report.text(f"{run.stored.summary['method']} on {run.stored.summary['data']}"
                + (f", with {trained}" if trained else "") + ". Calibration error (ECE): the mean distance of "
                f"confidence and accuracy over 15 bins; of {count} images it is about "
                f"{0.5 / count**0.5:.0%} even where confidence is right. None of these images chose anything.")
    report.section("Attacks")
    report.figure(curves({name: band({255 * radius: score.accuracy for radius, score in scores.items()})
                          for name, scores in attacks.items()}, "accuracy", "change of a pixel, in levels of 255",
                         percent=True),
                  "The worst image that each attack finds within the radius. The truth is at most that: another attack "
                  "may find more.")
    report.section("Common corruptions")
    for family in dict.fromkeys(family for family, _, _ in KINDS.values()):
        lines = {kind.replace("_", " "): band({s: score.accuracy for s, score in enumerate(corrupted[kind])})
                 for kind in KINDS if KINDS[kind][0] == family}
        report.figure(curves(lines, f"accuracy under {family}", "strength", percent=True), "Strength 0: clean.")
    report.table(tables[1])
    report.section("Gaussian noise by level")
    by_level = {name: band({255 * level: score[place] for level, score in zip(LEVELS, noisy, strict=True)})
                for place, name in enumerate(("accuracy", "calibration error"))}
    report.figure(curves(by_level, "share", "standard deviation of noise, in levels of 255", percent=True),
                  "The same draw at each level, clipped to black and white.")
    report.section("Calibration")
    steps = {s: float(np.mean([scores[s].ece for scores in corrupted.values()])) for s in range(6)}
    report.figure(curves({"mean of 15 corruptions": band(steps)}, "calibration error", "strength", percent=True),
                  "Nets that do not know that an image is bad stay confident: the error then rises with strength.")
    report.write(settings.out / "report.html")


def band(points: dict[float, float]) -> Band:
    x, y = np.array([*points.keys()], np.float64), np.array([*points.values()])
    return Band(x, y, np.zeros_like(x))


if __name__ == "__main__":
    sl.launch(main, Settings)
