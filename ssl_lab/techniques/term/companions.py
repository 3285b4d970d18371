"""What techniques share that look into the net: its layers' maps of the labeled images, and classifiers on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.batch import Batch
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.distillation.hooks import Seen, channels, paths, see, stages
from ssl_lab.nets import frozen_statistics
from ssl_lab.nets.base import linear_head
from ssl_lab.seeds import seeded
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.term.labeled import full

CELLS = 4  # places per side to which a map is averaged before a companion's linear layer


class Inside(TermTechnique):
    """Passes the labeled images, under their first view, through the net once more, as it is and not compiled, and sees
    the outputs of `layers`. BatchNorm's running statistics stay those of the method's own pass."""

    layers: str | Sequence[str] | None

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies or not method.views.labeled:
            raise UsageError(f"{self.name} passes labeled images through the net, and {method.name} takes none")
        try:
            self.check_layers(method)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from error

    def check_layers(self, method: Method) -> None:
        """UsageError if the net does not have what it is to see."""

    def inside(self, batch: Batch, layers: Sequence[str]) -> Seen:
        """What the net says of the labeled images."""
        with frozen_statistics(self.net):
            return see(self.net, next(iter(batch.labeled.views.values())), layers)


class Companions(Inside):
    """A linear classifier on the map of each of `layers`, averaged to 4 x 4 places. By default these are the last
    layers of all resolutions but the coarsest, which the net's own head is on."""

    def begin(self, pool: Pool, seed: int) -> None:
        self._paths = layers_of(self.base, self.layers)
        with seeded(seed, self.name):
            self.heads = nn.ModuleList(linear_head(size * CELLS**2, self.net.classes)
                                       for size in channels(self.net, self._paths))

    def check_layers(self, method: Method) -> None:
        channels(method.net, layers_of(method, self.layers))

    def scores(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """float [B, C] of each companion, of 32 bits at least."""
        return [full(head(F.adaptive_avg_pool2d(each, CELLS).flatten(1)))
                for head, each in zip(self.heads, maps, strict=True)]

    def nothing(self) -> Tensor:
        """0, of which the companions' gradient is 0 too: ranks wait for every parameter's."""
        return torch.stack([p.sum() for p in self.heads.parameters()]).sum() * 0.0


def layers_of(method: Method, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Those that are asked for, or the last of each resolution but the coarsest. UsageError if there are none."""
    if layers is not None:
        return paths(layers)
    found = stages(method.net)
    if len(found) < 2:
        raise UsageError(f"{method.net.name} has maps of one resolution alone; name layers=")
    return found[:-1]
