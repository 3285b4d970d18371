"""What a run records: its settings, its checkpoints, and at its end what it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ssl_lab.data import announce
from ssl_lab.data.inventory import inventory, write_inventory
from ssl_lab.data.remarks import loaded
from ssl_lab.engine import evaluate, weights
from ssl_lab.engine.card import card_of
from ssl_lab.engine.folder import check_same, check_same_split
from ssl_lab.engine.result import Result, arguments
from ssl_lab.errors import NonFiniteLossError
from ssl_lab.notes import once
from ssl_lab.optim import adam_remark
from ssl_lab.schedule import plain

if TYPE_CHECKING:
    from ssl_lab.engine.trainer import Run

SELECTION = "weights of the last step, averaged by the method's EMA; fixed before the run"


def config_of(run: Run, labeled: int, unlabeled: int) -> dict[str, Any]:
    """The settings as they were resolved: the same ones repeat the run."""
    trainer = run.trainer
    own = {"method": run.plain.name, **arguments(run.plain), "views": run.method.views.texts, "seed": trainer.seed,
           "labeled": labeled, "unlabeled": unlabeled, "forward": trainer.forward, "optimizer": repr(trainer.optimizer),
           "clip": None if trainer.clip is None else plain(trainer.clip), "batch": plain(trainer.batch),
           "shard": trainer.shard}
    return {**(own if trainer.config is None else trainer.config), "steps": run.steps, "minutes": None,
            "precision": run.runtime.precision, "out": str(run.folder.path), "resume": None,
            "micro_batches": run.micro_batches, "compile": run.compile, "techniques": run.techniques.texts}


def begin(run: Run) -> None:
    """Writes what is known when a run begins, and says what a person should know then."""
    run.folder.begin(run.config, run.manifest, run.start)
    if run.runtime.main:
        write_inventory(run.folder.path, inventory(run.pool))
        announce(run.pool)
        once(run.feed.said)
        if remark := adam_remark(run.trainer.optimizer):
            once(f"note: {remark}")


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Puts the run where a checkpoint was saved. UsageError where it is of another run."""
    now = run.config | {"steps": run.trainer.steps or run.steps, "class_names": list(run.learned)}
    before = saved["config"] | {"class_names": saved.get("class_names", now["class_names"])}
    check_same(before, now, run.folder.path)
    check_same_split(saved["split"], run.manifest, run.pool, run.folder.path)
    weights.restore(saved, run.folder.path, run.method, run.optimizer)
    if run.scale is not None:
        run.scale.load_state_dict(saved["scale"])
    mine = saved["meter"][run.runtime.rank :: run.runtime.world]
    run.meter.load([row for rows in mine for row in rows])
    run.start, run.seconds = int(saved["step"]), float(saved["seconds"])
    run.folder.rows = saved["rows"]


def save(run: Run, done: int) -> None:
    """A checkpoint after `done` steps. NonFiniteLossError in place of one that nothing could go on from."""
    meter = run.runtime.of_all(run.meter.state())  # stops here if a loss was not finite
    if not torch.stack([p.isfinite().all() for p in run.method.parameters()]).all():
        raise NonFiniteLossError(f"the weights are not finite after step {done - 1}")
    folder = run.folder.path / f"sharded-{done}"
    state = weights.save(run.method, run.optimizer, folder if run.runtime.shard else None)
    scaled = {} if run.scale is None else {"scale": run.scale.state_dict()}
    run.folder.save({**state, **scaled, "meter": meter, "step": done, "steps": run.steps, "seconds": run.seconds,
                     "precision": run.runtime.precision, "config": run.config, "split": run.manifest["hash"],
                     "class_names": list(run.learned)})
    run.runtime.wait()


def finish(run: Run) -> Result:
    """Tests the predictor once, and writes what the run leaves: weights, predictions, summary, card."""
    pool, predictor = run.pool, run.method.predictor()
    predicted: dict[str, evaluate.Predictions] = {}
    measured = evaluate.measure(run.method, pool, run.runtime, {"valid": pool.valid, "test": pool.test},
                                run.trainer.monitors, predicted)
    if remark := _lagging(measured, len(pool.valid)):
        once(f"note: {remark}")
    summary = _summary(run, measured) | run.method.account(run.steps)
    card = card_of(predictor, run.method.classifies, pool, predicted.get("valid"))
    run.folder.finish(weights.whole_state(predictor), summary, predicted, card)
    run.runtime.wait()
    run.method.net.origin = predictor.origin = str(run.folder.path)
    return Result(summary, run.method, run.folder.path)


def _lagging(measured: Mapping[str, float], images: int) -> str:
    """A word where the averaged weights, which are kept, know less of so many validation images than the last ones,
    beyond three standard errors."""
    kept, last = (measured.get(f"valid_accuracy{which}", math.nan) for which in ("", "_plain"))
    if not images or not last - kept > 3 * math.sqrt((kept * (1 - kept) + last * (1 - last)) / images):
        return ""
    return (f"the averaged weights, which are kept, have {kept:.1%} of the validation images right, the last ones "
            f"{last:.1%}: a smaller decay of the averages (--ema of recipes), or a learning rate that ends at 0, "
            "brings them together")


def _summary(run: Run, measured: Mapping[str, float]) -> dict[str, Any]:
    """What summary.json holds: what the run was, what it took, and what was measured at its end."""
    pool, runtime, techniques = run.pool, run.runtime, run.techniques.texts
    nothing = dict.fromkeys(("valid_accuracy", "valid_accuracy_plain", "test_accuracy", "test_accuracy_plain"))
    with_them = {"techniques": techniques} if techniques else {}
    return {"method": run.plain.name, **with_them, "data": pool.name, "labels": len(pool.labeled),
            "valid_images": len(pool.valid), "seed": run.trainer.seed, "steps": run.steps,
            "seconds": round(run.seconds, 2),
            "images_per_second": round(run.feed.images_per_step * run.steps / run.seconds, 1),
            "peak_memory_bytes": runtime.peak_memory_bytes(), **nothing, **measured,
            "selection": SELECTION, "precision": runtime.precision,
            "device": str(runtime.device), "ranks": runtime.world, "split": run.manifest["hash"],
            "class_names": list(run.learned), "loaded": [*loaded(pool), run.feed.said]}
