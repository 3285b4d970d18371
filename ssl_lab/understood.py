"""That the texts of settings are understood, before the first of several stages or runs begins."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_lab import methods
from ssl_lab.optim import described
from ssl_lab.techniques import Technique, together
from ssl_lab.views import by_name
from ssl_lab.views.naming import replaced


def check_texts(method: str | None = None, view: Sequence[str] = (), optimizer: str | None = None,
                techniques: Sequence[Technique | str] = ()) -> None:
    """UsageError for a text that names nothing known, or gives it arguments that it does not take.

    method, view, optimizer, techniques: as settings have them; views are held against those of the method, where it
    says them without arguments. Whether the method can have data, net and technique is for `Trainer.begun` to say.
    """
    views = by_name(view)
    if method is not None:
        learns = methods.get(method)
        if kinds := getattr(learns, "views", None):  # of some methods they depend on arguments
            replaced(learns.name, kinds.by_kind, views)
    if optimizer:
        described(optimizer)
    together(techniques)
