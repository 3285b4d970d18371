"""The engine: the loop, and what it stands on (device and ranks, checkpoints, evaluation, callbacks)."""

from ssl_lab.engine import folder as folder
from ssl_lab.engine import jobs as jobs
from ssl_lab.engine.callbacks import Callback, ShowProgress
from ssl_lab.engine.evaluate import Monitor, accuracy, predict, scores
from ssl_lab.engine.feed import Feed
from ssl_lab.engine.monitors import PseudoLabels
from ssl_lab.engine.result import Result
from ssl_lab.engine.runtime import Runtime
from ssl_lab.engine.trackers import MLflow, TensorBoard, WandB
from ssl_lab.engine.trainer import Trainer

__all__ = ["Callback", "Feed", "MLflow", "Monitor", "PseudoLabels", "Result", "Runtime", "ShowProgress", "TensorBoard",
           "Trainer", "WandB", "accuracy", "predict", "scores"]
