"""The page: the files of podyd/web, which a browser gets at `/` and below `/web/`.

All are read, and compressed, once at the start; what is not there then is not served.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podyd.api.handler import AddressOf, JsonHandler, no_route
from podyd.people.web_sessions import page_off

# By the end of a file's name; others are not served.
MEDIA: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
INDEX = "index.html"
# What a Host header may be to be named in a header of the answer: RFC 3986, without user and "%".
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True)
class WebFile:
    """A file of the page; `compressed` is None where that saves nothing."""

    media: str
    body: bytes
    compressed: bytes | None
    digest: str


def read_page(root: Path) -> Mapping[str, WebFile]:
    """The page's files by their names below `root`."""
    return {
        str(path.relative_to(root)): _file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix in MEDIA
    }


def _file(path: Path) -> WebFile:
    body = path.read_bytes()
    compressed = gzip.compress(body, mtime=0)
    return WebFile(
        media=MEDIA[path.suffix],
        body=body,
        compressed=compressed if len(compressed) < len(body) else None,
        digest=hashlib.sha256(body).hexdigest()[:32],
    )


def page_policy(host: str) -> str:
    """The Content-Security-Policy of the page, which is asked for at this host.

    Some browsers do not count WebSockets to 'self', so their origin is named.
    """
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        f" font-src 'self'; connect-src 'self'{sockets}; form-action 'self'; base-uri 'none';"
        " object-src 'none'; frame-ancestors 'none'"
    )


class Page(JsonHandler):
    """Serves the page's files to browsers; to others `/` is no route."""

    def initialize(
        self,
        files: Mapping[str, WebFile],
        is_on: Callable[[], bool],
        suggest: Callable[[str], str],
        address_of: AddressOf,
    ) -> None:
        self.address_of = address_of
        self.suggest = suggest
        self._files = files
        self._is_on = is_on
        self._etag: str | None = None

    async def _serve_file(self, name: str | None = None) -> None:
        accepts_html = "text/html" in self.request.headers.get("Accept", "")
        file = self._files.get(INDEX if name is None else name)
        if name is None and not accepts_html:
            self.set_header("Vary", "Accept")
            await self._refuse()
        elif not self._is_on():
            self.refuse(page_off())
        elif file is None:
            await self._refuse()
        else:
            self._send(file)

    def _send(self, file: WebFile) -> None:
        headers = self.request.headers
        self.set_header("Content-Type", file.media)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Vary", "Accept, Accept-Encoding")
        self.set_header("Content-Security-Policy", page_policy(headers.get("Host", "")))
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        if file.compressed is not None and _takes_gzip(headers.get("Accept-Encoding", "")):
            self._etag = f'"{file.digest}-gzip"'
            self.set_header("Content-Encoding", "gzip")
            self.finish(file.compressed)
        else:
            self._etag = f'"{file.digest}"'
            self.finish(file.body)

    def compute_etag(self) -> str | None:
        """The hash of the file; Tornado compares it with If-None-Match."""
        return self._etag

    get: Any = _serve_file
    head: Any = _serve_file

    async def _refuse(self, name: str | None = None) -> None:
        self.refuse(no_route(self.request.path, self.suggest))

    post: Any = _refuse
    put: Any = _refuse
    patch: Any = _refuse
    delete: Any = _refuse
    options: Any = _refuse


def _takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header names gzip, and not with a quality of 0 (RFC 9110)."""
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", parameters) is None
    return False
