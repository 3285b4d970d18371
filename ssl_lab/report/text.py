"""Strings on their way to a page: those from outside are made printable and escaped, `Markup` is safe."""

from __future__ import annotations

import html
import re
from typing import NewType

Markup = NewType("Markup", str)
"""HTML or SVG that this package rendered. Any other string is escaped before it reaches a page."""

# Control characters, lone surrogates (undecodable file names) and what XML 1.0 forbids.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """`text` on one line, safe for a terminal, for XML and for UTF-8: what cannot be shown becomes U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", " ".join(text.split()))


def escape(text: str) -> Markup:
    """`text` as HTML or XML text, or as a quoted attribute."""
    return Markup(html.escape(printable(text), quote=True))
