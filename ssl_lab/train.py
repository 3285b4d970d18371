"""`ssl-lab train`: the best classifier that these labels allow, in so many minutes, as a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ssl_lab.advise import (
    CHOOSING,
    ROUNDS_FIRST,
    Advice,
    backbone,
    compared,
    ensemble,
    fine_tuned,
    in_rounds,
    smaller,
    taught,
    worth_tuning,
)
from ssl_lab.at_hand import PRETRAINED, here
from ssl_lab.begun import Begun
from ssl_lab.calibration import FEWEST
from ssl_lab.config import AS_USUAL, ReadingSettings, Texts, plain
from ssl_lab.data import IntArray, Pool, announce, load
from ssl_lab.data.files import data_folder
from ssl_lab.engine import Runtime, checkpoint
from ssl_lab.engine.card import Card
from ssl_lab.engine.folder import make_way
from ssl_lab.ensemble import NOTE
from ssl_lab.errors import UsageError
from ssl_lab.features import LEARNERS, FeatureStore
from ssl_lab.features.run import save_run
from ssl_lab.learners import best_learner
from ssl_lab.methods import LabeledSimCLR, get
from ssl_lab.pace import PLAN
from ssl_lab.presets import net_for
from ssl_lab.rapid import Rapid
from ssl_lab.refits import calibrate_by_refits, dealt
from ssl_lab.ways import FRESH, Plan, Recipe, Way


def train(data: Annotated[str, tyro.conf.Positional], labels: int | float | None = None, minutes: float = 10.0,
          out: Path = Path("runs/latest"), recipe: Recipe | None = None, net: str | None = None,
          method: str | None = None, view: Texts = (), weights: Path | None = None, pretrained: bool = False,
          valid: float | None = None, split_file: Path | None = None,
          calibrate: int | None = None,
          read: Annotated[ReadingSettings, tyro.conf.OmitArgPrefixes] = AS_USUAL, seed: int = 0,
          device: str = "auto", resume: Literal["auto"] | None = None) -> Path:
    """Trains a classifier on images of which few have labels, and leaves a run for `ssl-lab predict`.

    The way is chosen by cross-validation on the labels, as `ssl-lab advise` does, among learners on the frozen features
    of the pretrained nets that are here (`ssl-lab fetch lite0` brings one), fine-tuning, and training from scratch with
    the unlabeled images; without a pretrained net, images of which most have no label, unless they are gray and as
    plain as digits, are trained on in short rounds. What --recipe, --net and --method say is not chosen. Returns the
    folder of the run.

    Args:
        data: data set (see `ssl-lab list data`), folder of images, CSV of path,label, or package.module:Mine.
        labels: how many are given, or which fraction, as many of each class (default: all).
        minutes: for choosing and training together.
        out: folder of the run.
        recipe: features (a learner on frozen features), finetune (of a pretrained net), ensemble (what all pretrained
            nets and fine-tunings say of images teaches one net), scratch, or rapid (that in short rounds).
        net: lite0 and the like, the folder of a run, or another net (see `ssl-lab list nets`).
        method: how to train (see `ssl-lab list methods`; package.module:MyMethod too), or a learner on features: knn,
            prototype, probe, propagation, self_training, anchored.
        view: with --method, another view in place of one of its views, as often as you like: strong=simclr,
            strong=mypackage.views:Mine (see `ssl-lab list views`).
        weights: a file with weights of the net.
        pretrained: take the published weights of a timm net.
        valid: validation images taken from the training set, a fraction or a count; they cost labels, and calibrate.
        split_file: in place of --labels, a file of the rows to label, or the split.json or labels of another run.
        calibrate: tells how sure a net that was trained may be, without validation images: 5 takes five further
            trainings, each without a fifth of the labels, which share the minutes.
        read: how images are listed and read.
        seed: of the draw of labels, the folds, initial weights and training.
        device: cpu, cuda, or auto.
        resume: auto goes on with the training in --out that was stopped; --calibrate may come later.
    """
    end = time.perf_counter() + 60 * minutes
    if minutes <= 0:
        raise UsageError(f"minutes={minutes:g}: expected a positive number")
    if view and (method is None or method in LEARNERS):
        raise UsageError(f"--view {view[0]}: views are those of a method that trains a net; name it too, as in "
                         "--method fixmatch --view strong=simclr")
    if resume is None:
        make_way(out, PLAN, NOTE)
    how: dict[str, Any] = {"labels": labels, "valid": valid, "seed": seed, "labeled": split_file}
    settings = {"data": data, "labels": labels, "valid": valid, "split_file": split_file, "seed": seed}
    given = {"recipe": recipe, "net": net, "method": method, "view": list(view), "weights": weights,
             "pretrained": pretrained}
    begun = Begun.read(out, settings | read.plain(), given) if resume else None
    pool = load(data, **read.reading()).split(**how)
    announce(pool)
    if not len(pool.labeled):
        raise UsageError(f"{data}: no image has a label, and nothing tells classes apart without. Label some by "
                         f"`ssl-lab label {data}`, or sort some into a folder for each class")
    runtime = Runtime.start(device)
    if begun is None:
        groups, trainings = _allowed(pool, recipe, net, method, weights, pretrained, read.image_size, minutes, runtime)
        trainings = [replace(plan, view=view) for plan in trainings]
    else:  # by what was decided, whatever time would allow now
        groups, trainings = [], [begun.plan] if begun.plan.recipe != "features" else []
    folds = dealt(pool, calibrate, seed) if calibrate is not None and trainings and len(pool.valid) < FEWEST else None
    plan = begun.plan if begun is not None else _chosen(
        pool, groups, trainings, (end - time.perf_counter()) * CHOOSING, seed, runtime, recipe is not None,
        read.image_size)
    if plan.image_size not in (None, pool.images.shape[1]):
        read = replace(read, image_size=plan.image_size)
        pool = load(data, **read.reading()).split(**how)
    config = plain(settings | read.plain() | {"minutes": minutes, "calibrate": calibrate} | plan.settings())
    if plan.recipe == "features":
        if calibrate:
            print("--calibrate is for nets that are trained: a learner on features is calibrated by labels held "
                 "out in turn anyway", flush=True)
        summary = begun.summary(pool) if begun is not None else _learn(plan, pool, method, config, out, end, seed,
                                                                       runtime, read.data_dir)
    else:
        summary = _trained(plan, pool, folds, end, runtime, seed, out=out, resume=resume, config=config)
    print(f"probabilities: {Card.read(out).calibration.said}")
    said = [f"{100 * summary[f'{part}_accuracy']:.1f}% of {len(rows):,} {part} images right" for part, rows in
            (("valid", pool.valid), ("test", pool.test)) if summary.get(f"{part}_accuracy") is not None]
    print(f"{'; '.join(said) or 'no test images to measure it by'}. The run is {out}; new images: "
          f"ssl-lab predict {out} IMAGES")
    return out


def _trained(plan: Plan, pool: Pool, folds: IntArray | None, end: float, runtime: Runtime, seed: int, out: Path,
             config: Mapping[str, Any], **trainer: Any) -> dict[str, Any]:
    """Trains the net until `end`, and leaves a run, calibrated by `folds` of its labels if there are any."""
    left = max(end - time.perf_counter(), 3.0) / 60
    if config["calibrate"] and folds is None:
        print(f"--calibrate trains nothing more: the {len(pool.valid)} validation images calibrate", flush=True)
    if folds is None:
        return dict(plan.fit(pool, runtime, seed, minutes=left, out=out, config=config, **trainer)[1])
    count, labels = int(folds.max()) + 1, len(pool.labeled)
    if checkpoint.exists(out / "checkpoint.pt") or (out / "summary.json").exists():  # rounds leave no checkpoint there
        print(f"--calibrate {count}: {count} more trainings of as many steps as the run has", flush=True)
    else:
        left /= count + 1
        print(f"--calibrate {count}: {count + 1} trainings of {left:.1f} minutes each; the first has all {labels} "
              f"labels, each other one leaves out 1/{count} of them, to tell how sure the first may be", flush=True)
    _, summary = plan.fit(pool, runtime, seed, minutes=left, out=out, config=config, **trainer)
    fit = partial(plan.fit, runtime=runtime, seed=seed, config={**config, "calibrate": None})
    calibrate_by_refits(out, pool, folds, fit, runtime, summary["steps"])
    return dict(summary)


def _allowed(pool: Pool, recipe: Recipe | None, net: str | None, method: str | None, weights: Path | None,
             pretrained: bool, image_size: int | None, minutes: float,
             runtime: Runtime) -> tuple[list[list[Plan]], list[Plan]]:
    """The ways that nobody ruled out: learners on features, those of one net together, and trainings."""
    learner = method in LEARNERS
    if method is not None and not learner:
        get(method)  # which says what is wrong with it
    begins = {"rapid": "begins from scratch", "ensemble": "takes lite0 and the like or the folder of a run"}
    if recipe in begins and (method is not None or weights is not None or pretrained):
        raise UsageError(f"--recipe {recipe} has a method of its own, and {begins[recipe]}; leave out --method, "
                         "--weights and --pretrained")
    if learner and recipe in ("finetune", "scratch"):
        raise UsageError(f"{method} is a learner on features; --recipe {recipe} takes one of `ssl-lab list methods`")
    if method is not None and not learner and recipe == "features":
        raise UsageError(f"{method} is no learner on features; these are {', '.join(LEARNERS)}")
    if net is None:
        known = [each.name for each in here()]
    else:
        known = [net] if Plan("features", net, "probe", None, weights, pretrained).known else []
    if recipe == "rapid" and net is not None and known:
        raise UsageError(f"--recipe rapid begins from scratch; {net} has learned before: leave out --net, or name "
                         f"another one (see `ssl-lab list nets`)")
    if recipe in ("finetune", "ensemble") and not known:
        raise UsageError(f"--recipe {recipe} needs a pretrained net: --net lite0 (ssl-lab fetch lite0 brings it), or "
                         "the folder of a run")
    looked = [backbone(name, pool, minutes, runtime, "tiny_16", image_size, weights, pretrained)
              for name in known if recipe not in FRESH]  # which have no use for them, and looking takes seconds
    small = smaller(pool, image_size)
    others = [Plan("features", net or "pixels", "knn", small)] if net is None or not known else []
    groups = [[replace(plan, method=each) for each in ([str(method)] if learner else ["knn", "probe"][:1 + plan.known])]
              for plan in [*others, *looked]]
    tuned = [fine_tuned(looked[0], method or "supervised", image_size)] if looked and not learner else []
    methods = [method] if method is not None else ["supervised", "fixmatch"][len(known) > 0:]
    scratch = [] if learner or net == "pixels" else [
        Plan("scratch", net if net is not None and not known else net_for(get(each), pool), each, small)
        for each in methods]
    if recipe == "ensemble":
        return [], [taught(looked[0], image_size)]
    if recipe == "rapid":
        return [], [Plan("rapid", net or Rapid.net, LabeledSimCLR.name, small)]
    if recipe is not None:
        return {"features": (groups, []), "finetune": ([], tuned), "scratch": ([], scratch)}[recipe]
    if learner or net == "pixels":
        return groups, []
    if method is not None:
        return [], tuned if net is not None and known else [*tuned, *scratch]
    if net is not None and not known:
        return [], scratch
    if not known and (rounds := in_rounds(pool, minutes, runtime, image_size)):
        return [], [rounds]
    tuned = [plan for plan in tuned if worth_tuning(plan, pool, minutes, runtime)]
    return groups, tuned if net is not None else [*tuned, *scratch]


def _chosen(pool: Pool, groups: Sequence[Sequence[Plan]], trainings: Sequence[Plan], seconds: float, seed: int,
            runtime: Runtime, asked: bool, image_size: int | None) -> Plan:
    """The best way by cross-validation, with a word on why. asked: somebody named a recipe. image_size: that somebody
    said."""
    otherwise = "--recipe, --net and --method choose otherwise"
    if not here():
        fetch = PRETRAINED["lite0"]
        otherwise += f"; no pretrained net is here, which often helps: {fetch.fetched_by} ({fetch.megabytes} MB)"
    known = next((plans[0] for plans in groups if plans[0].known), None)
    if known is not None and trainings and ensemble(known, pool, seconds / CHOOSING / 60, runtime, image_size):
        otherwise += (f"; --recipe ensemble has one net learn what all pretrained nets say of the "
                      f"{len(pool.train) - len(pool.labeled):,} images without a label, as far as time goes")
    ways = [*(plans[0] for plans in groups), *trainings]
    if len(ways) == 1:
        why = f", {ROUNDS_FIRST}; {otherwise}" if ways[0].recipe == "rapid" and not asked else ""
        print(f"{ways[0].recipe}: {ways[0].name}{why}", flush=True)
        return ways[0]
    try:
        advice = compared(pool, groups, trainings, seconds, seed, runtime)
    except UsageError as error:
        if "no class with two" not in str(error):
            raise
        plan = known or next((plan for plan in trainings if plan.method == "fixmatch"), ways[-1])
        print(f"{plan.name}: no class has two labels, so that nothing can be held out to compare by; {otherwise}",
              flush=True)
        return plan
    assert advice.best.plan is not None
    print(f"{_reason(advice)}; {otherwise}", flush=True)
    return advice.best.plan


def _reason(advice: Advice) -> str:
    best = advice.best
    mean, error = advice.accuracy(best)
    others = sorted((way for way in advice.ways if _kind(way) != _kind(best)), key=lambda way: -advice.accuracy(way)[0])
    text = f"{best.name}: right on {100 * mean:.0f} ± {100 * error:.0f}% of {len(advice.folds)} labels held out in turn"
    if others:
        text += f", {others[0].name} on {100 * advice.accuracy(others[0])[0]:.0f}%"
        text += " (within noise)" if others[0] in advice.rivals else ""
    return text


def _kind(way: Way) -> tuple[str, str]:
    return (way.plan.recipe, way.plan.net) if way.plan else ("", way.name)


def _learn(plan: Plan, pool: Pool, method: str | None, config: dict[str, Any], out: Path, end: float, seed: int,
           runtime: Runtime, data_dir: Path | None) -> dict[str, Any]:
    """Embeds all images, takes the learner that predicts labels best that it has not seen, and leaves a run."""
    eye = plan.build(pool, seed)
    store = FeatureStore.build(eye, pool, data_folder(data_dir) / "features", runtime)
    learner = method or best_learner(store.features, pool, end, seed)
    own = {"method": learner, "backbone": plan.net}
    return save_run(out, learner, [eye], [store.features], pool, LEARNERS, config | own, runtime)
