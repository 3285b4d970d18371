"""What queries of a loop see of its images: by the net that was trained, or by a backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssl_lab.active.arrays import arrays_of, predicted_loss
from ssl_lab.active.queries.base import Query
from ssl_lab.active.queries.view import FloatArray
from ssl_lab.data import Pool
from ssl_lab.engine import Result, Runtime
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.seeds import seed_of


@dataclass
class Sight:
    """backbone, embeddings, seed: as of `ActiveLoop`."""

    backbone: Net | None
    embeddings: Literal["net", "backbone"]
    seed: int
    _by_backbone: FloatArray | None = field(default=None, init=False)

    def check(self, query: Query, cold: bool) -> None:
        """UsageError if what the query needs cannot be had; cold: while no net is trained."""
        backbone = cold or self.embeddings == "backbone"
        if cold and query.needs - {"embeddings"}:
            raise UsageError(f"{query.name} needs {', '.join(sorted(query.needs - {'embeddings'}))}, which cannot be "
                             "had before there are labels: label some images first, or give a query for the first "
                             "round that needs embeddings alone")
        if backbone and "embeddings" in query.needs and self.backbone is None:
            raise UsageError(f"{query.name} needs embeddings, and there is no trained net: give a backbone")
        if self.embeddings == "backbone" and {"embeddings", "head_weight"} <= query.needs:
            raise UsageError(f"{query.name} needs the head on its embeddings, and a backbone has none: take "
                             "--embeddings net (embeddings='net')")

    def arrays(self, query: Query, learner: Net | Result | None, net: Net | None, pool: Pool, number: int,
               runtime: Runtime) -> dict[str, FloatArray]:
        """What a query needs (see `ARRAYS`) of all train images, in round `number`. learner, net: what was trained, if
        anything was, and its predictor."""
        needs: set[str] = set(query.needs)
        found: dict[str, FloatArray] = {}
        if "embeddings" in needs and (net is None or self.embeddings == "backbone"):
            assert self.backbone is not None  # see `check`
            if self._by_backbone is None:
                self._by_backbone = arrays_of(self.backbone, pool, pool.train, ("embeddings",), runtime)["embeddings"]
            found["embeddings"] = self._by_backbone
        if "predicted_loss" in needs:
            found["predicted_loss"] = predicted_loss(learner, pool, pool.train, runtime)
        if needs & {"probs", "mc_probs"}:
            needs.add("embeddings")  # of the same pass: by them each pick says what it stands for
        if net is not None:
            found |= arrays_of(net, pool, pool.train, needs - found.keys(), runtime,
                               seed_of(self.seed, "arrays", number))
        return found
