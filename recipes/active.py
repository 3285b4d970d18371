"""The active-learning loop: train, choose images, have them labeled, again.

    python recipes/active.py --query badge --data mnist --initial 20 --budget 20 --rounds 10 --steps 300
    python recipes/active.py --query typiclust --initial-query typiclust --trainer fixmatch --data mnist --initial 10 \\
        --rounds 1 --weights simclr.safetensors --steps 1000
    python recipes/active.py --query margin --data PATH/TO/FOLDER --oracle label_studio --steps 300 --resume auto

The first gave 54.9% of the test images with 20 labels, 88.2% with 100, 93.1% with 220 (seed 0, 2 minutes on an Intel
Xeon; on an AMD EPYC 52.5, 90.5 and 95.2%).
The second is a cold start: its first labels are chosen by a backbone's embeddings. Where people answer, the command
ends when there is nothing to do without them; the same one goes on later. --steps (or --minutes) are each round's.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ssl_lab as sl
from ssl_lab.active_settings import TrainSettings
from ssl_lab.config import may_run


@dataclass
class Settings(TrainSettings):
    out: Path = Path("runs/active")
    """Folder of the loop: labels, rounds, report."""
    query: str = may_run("badge", ":")
    """Name of the query (see `ssl-lab list queries`), or package.module:Class of your own; with arguments, if any, as
    in prob_cover(delta=0.5) or prefilter(margin, k_center)."""
    trainer: str = "supervised"
    """supervised, learning_loss (which the query of that name needs), fixmatch; or finetune, finetune_fixmatch, which
    start from --weights or --pretrained."""
    initial: int = 20
    """Labels to begin with."""
    initial_query: str | None = may_run(None, ":")
    """Choose them by this query, on the embeddings of --weights or --pretrained (default: at random, by the seed)."""
    budget: int = 20
    """Labels asked for in each round."""
    rounds: int = 10
    """How often labels are asked for; a first round that chooses the initial labels counts."""
    oracle: str = may_run("truth", r"\s*command:")
    """Who answers: truth, label_studio, "command: PROGRAM ARGUMENTS" (not in a --config file), or a file (CSV, TSV or
    JSON) of id or path and label, or that Label Studio exported. Except for truth, all labels that the data have count,
    and --initial are asked for only if there are none."""
    agreement: Literal["majority", "first", "newest", "ask-again", "dawid-skene"] = "majority"
    """What counts where several people say different things of an image: what most of them say (of a tie nothing), the
    first or the newest answer, or none until they agree. A person's own correction always counts."""
    noise: float = 0.0
    """Share of wrong answers, of truth."""
    abstain: float = 0.0
    """Share of images that truth does not answer."""
    new_classes: bool = False
    """A label that names no class founds one."""


def main(settings: Settings) -> None:
    if settings.labels is not None:
        raise sl.UsageError(f"--labels {settings.labels}: active learning begins with --initial N labels")
    out = settings.folder
    if settings.resume is None and (out / "loop.json").exists():
        raise sl.UsageError(f"{out} holds the labels of a loop; go on with --resume auto, or choose another --out")
    settings = dataclasses.replace(settings, out=out)
    split = settings.split()
    if settings.oracle == "truth" and settings.split_file is None:
        split |= {"labeled": []} if settings.initial_query else {"labels": settings.initial}
    pool = sl.load(settings.data, **settings.reading()).split(**split)
    oracle = sl.active.make_oracle(settings.oracle, pool, out / "label_studio", settings.noise, settings.abstain,
                                   settings.seed, agreement=settings.agreement, data=settings.data)
    trainers, show = sl.active.trainers, sl.active.show
    fit = trainers.fitter(settings, settings.trainer, out)
    trainers.check_training(settings, settings.trainer, pool)
    names = ("trainer", *(field.name for field in dataclasses.fields(TrainSettings)))
    config = {name: value for name, value in settings.plain().items() if name in names}
    loop = sl.ActiveLoop(
        pool, fit, sl.make_query(settings.query), oracle,
        settings.budget, settings.rounds, out, settings.seed, first=sl.make_query(settings.initial_query or "random"),
        initial=settings.initial, backbone=trainers.backbone(settings, pool.style), embeddings=settings.embeddings,
        new_classes=settings.new_classes, config=config, device=settings.device, precision=settings.precision)
    loop.run()
    show.show_loop(loop, f"{settings.query}, {settings.trainer}: {settings.budget} labels a round")
    show.say_how_it_stands(loop, f"Round {loop.records[-1].round} waits for {len(loop.pending)} answers from "
                                 f"{settings.oracle}; {loop.write_asked()} lists the images. When there are some, the "
                                 "same command with --resume auto goes on" if len(loop.pending) else "")


if __name__ == "__main__":
    sl.launch(main, Settings)
