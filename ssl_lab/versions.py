"""Versions of packages."""

from __future__ import annotations

VERSION = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """The version of this package, which need not be installed, and of others."""
    from importlib import metadata  # which takes as long as the whole of `import ssl_lab`

    found = {"ssl_lab": VERSION}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
