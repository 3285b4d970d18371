"""The labeling page's HTTP: on this machine alone, for those who have its address.

The address holds a random token, without which nothing is answered. Requests by another name than this machine's (DNS
rebinding) or from another page are refused, and images are asked for by row: no path reaches the disk.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from ssl_lab.active.queries.view import IGNORED
from ssl_lab.errors import UsageError
from ssl_lab.label.session import Session

HOST = "127.0.0.1"
AHEAD = 4
"""Images that a page holds ready."""
GUESSES = 9
"""Classes that a page is told, the likeliest first."""
LONGEST = 2**20
"""Bytes of a request's body."""
POLICY = ("default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
          "script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


class Server(ThreadingHTTPServer):
    """Serves a session. port: if another program has it, the next free one is taken. token: by default a new one."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, session: Session, port: int, token: str | None = None) -> None:
        self.session, self.token = session, token or secrets.token_urlsafe(16)
        super().__init__((HOST, free_port(port)), Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that goes away in the middle of an answer is no news."""


def free_port(wanted: int) -> int:
    """`wanted`, or the first free port after it. UsageError if none of fifty is."""
    for port in range(wanted, min(wanted + 50, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise UsageError(f"ports {wanted} to {min(wanted + 49, 65535)} are all taken; give another with --port")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        parts = self._parts()
        if parts is None:
            return
        if not parts:
            self._page()
        elif parts == ["state"]:
            query = parse_qs(urlsplit(self.path).query)
            have = [int(row) for row in query.get("have", [""])[0].split(",") if row.isdigit()]
            self._send_json(self._news(query.get("me", [""])[0], have))
        elif len(parts) == 2 and parts[0] == "image" and parts[1].isdigit():
            self._image(int(parts[1]))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        parts = self._parts()
        if parts is None:
            return
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            return self._refuse(HTTPStatus.FORBIDDEN, "labels are taken from this page alone")
        if self.headers.get_content_type() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected up to {LONGEST} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
            self._send_json(self._act(parts, body))
        except UsageError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"not a request of this page: {error!r}")

    def _act(self, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        """Does what a page asks for; returns what is new then."""
        session, me = self.server.session, _name(body["me"])
        have = [int(row) for row in body.get("have", [])]
        news: dict[str, Any] = {}
        if parts == ["answer"]:
            label = body["label"]
            rows = [int(row) for row in body["rows"]]
            if not (isinstance(label, str) or label == IGNORED) or not rows:
                raise ValueError("label")
            session.answer(me, rows, label, retry=bool(body.get("retry")))
        elif parts == ["skip"]:
            session.skip(me, int(body["row"]))
        elif parts == ["undo"]:
            undone = session.undo(me)
            news["undone"] = [self._item(row) for row in undone[:1]]
            have = [*undone[:1], *have]
        else:
            raise KeyError("/".join(parts))
        return self._news(me, have) | news

    def _news(self, me: str, have: list[int]) -> dict[str, Any]:
        """Where things stand, and the images that come after those that the page has."""
        session = self.server.session
        rows = session.next(me, max(0, AHEAD - len(have)), have) if me else []
        return {"progress": session.progress(me), "items": [self._item(row) for row in rows],
                "first": self._item(have[0]) if have else None, "said": session.said(me, have)}

    def _item(self, row: int) -> dict[str, Any]:
        session = self.server.session
        files_ = session.pool.files
        return {"row": row, "file": files_[row].encode("utf-8", "replace").decode() if files_ else f"image {row}",
                "guess": [[name, round(p, 4)] for name, p in session.guess(row)[:GUESSES]],
                "similar": session.similar(row)}

    def _image(self, row: int) -> None:
        pool = self.server.session.pool
        if row >= len(pool):
            return self._refuse(HTTPStatus.NOT_FOUND, "there is no such image")
        pixels = pool.images.take(np.array([row]))[0].permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "png", compress_level=1)
        self._send(file.getvalue(), "image/png", {"Cache-Control": "private, max-age=3600"})

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(12)
        page = files("ssl_lab.label").joinpath("page.html").read_text(encoding="utf-8").replace("NONCE", nonce)
        self._send(page.encode(), "text/html; charset=utf-8",
                   {"Content-Security-Policy": POLICY.format(nonce=nonce), "Cache-Control": "no-store"})

    def _parts(self) -> list[str] | None:
        """The path behind the token, in parts. None if the request was refused."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine alone")
            return None
        _, token, *parts = [*urlsplit(self.path).path.split("/"), ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "the address is not whole: copy it from the terminal")
            return None
        return [part for part in parts if part]

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), "application/json", {"Cache-Control": "no-store"})

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # what is left of its body is not read
        self._send(json.dumps({"error": why}).encode(), "application/json", {}, status)

    def _send(self, content: bytes, kind: str, headers: dict[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        common = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Content-Type-Options": "nosniff",
                  "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
        for key, value in (common | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for people."""

    def version_string(self) -> str:
        return "ssl_lab"


def _name(me: Any) -> str:
    """A labeler's name, as the ledger has it."""
    name = " ".join(str(me).split())[:60]
    if not name or name == "split" or name.endswith("(undo)"):
        raise UsageError(f"{me!r} is no name for a person who labels")
    return name
