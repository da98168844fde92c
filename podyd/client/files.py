"""`pody cp` and `file-rm`: files and folders, into a pod and out of it, and deleted in it."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from podyd.client import daily, output
from podyd.client.body import PIECE_BYTES, Sent
from podyd.client.failure import Failure, Refused, Usage
from podyd.client.pack import pack
from podyd.client.progress import Progress, waiting
from podyd.client.server import Coming, Server, server_of
from podyd.client.unpack import unpack
from podyd.client.words import utf8

STREAM = "-"
HOME = "/root"


@dataclass(frozen=True)
class Remote:
    """A place in a pod; a relative path is one of root's home."""

    ins: str
    path: str

    @classmethod
    def of(cls, word: str) -> Remote | None:
        """What POD:PATH names; None for a path of this machine."""
        ins, colon, path = word.partition(":")
        is_drive = os.name == "nt" and len(ins) == 1
        if not colon or is_drive or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", ins):
            return None
        return cls(ins, utf8(path if path.startswith("/") else f"{HOME}/{path}".rstrip("/")))

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    def below(self, name: str) -> Remote:
        return Remote(self.ins, f"{self.path.rstrip('/')}/{name}")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [("ins", self.ins), ("path", self.path)]


def add_words(add: daily.Add) -> None:
    """The words, with what each of them takes."""
    made = add("cp", _cp, "Copy files and folders into a pod, or out of it.")
    places = made.add_argument(
        "words",
        nargs="+",
        metavar="FROM… TO",
        help="POD:PATH is in a pod, where PATH begins at / or in root's home; - is standard input"
        " or output; what goes to a folder that is there, goes into it",
    )
    places.completer = _places  # type: ignore[attr-defined]
    made.set_defaults(raw=False)
    daily.add_cacert(made)
    what = "Delete a file or a folder in a pod, also in one that is stopped."
    removed = add("file-rm", _file_rm, what)
    place = removed.add_argument(
        "place", metavar="POD:PATH", help="where PATH begins at / or in root's home"
    )
    place.completer = daily.complete("pod/list", "{}:".format)  # type: ignore[attr-defined]
    whole = "a folder with all that is in it, in a pod that runs"
    removed.add_argument("-r", "--recursive", action="store_true", help=whole)
    daily.add_raw(removed)
    daily.add_cacert(removed)


def _file_rm(options: argparse.Namespace) -> None:
    place = Remote.of(options.place)
    if place is None:
        raise Usage("Name a file of a pod: pody file-rm POD:PATH.")
    more = [("recursive", "1")] if options.recursive else []
    server = server_of(options.cacert)
    with waiting(f"Deleting {place.path} in pod {place.ins}"):
        answer = server.post("pod/file-delete", [*place.pairs, *more])
    output.answered("pod/file-delete", answer, raw=options.raw)


def _places(prefix: str, **_: object) -> list[str]:
    """Pods, and what is here."""
    folder = prefix[: prefix.rfind("/") + 1]
    here: list[str] = []
    with suppress(OSError):
        paths = Path(folder or ".").iterdir()
        here = [f"{folder}{path.name}{'/' if path.is_dir() else ''}" for path in paths]
    return [f"{name}:" for name in daily.complete("pod/list")()] + here


def _cp(options: argparse.Namespace) -> int:
    *sources, target = options.words
    if not sources:
        raise Usage("Name a source and a target: pody cp FROM… TO, one of them POD:PATH.")
    copier = _Copier(server_of(options.cacert))
    far = [Remote.of(source) for source in sources]
    to = Remote.of(target)
    if to is None and all(source is not None for source in far):
        copier.fetch([source for source in far if source is not None], target)
    elif to is not None and not any(far):
        copier.put(sources, to)
    else:
        raise Usage(
            "One side must be in a pod (POD:PATH) and the other on this machine; copy from pod to"
            " pod through this machine, or a whole pod with pody copy."
        )
    return 1 if copier.left else 0


class _Copier:
    def __init__(self, server: Server) -> None:
        self._server = server
        self.left = 0

    def _leave(self, text: str) -> None:
        self.left += 1
        output.complain(text)

    def _about(self, place: Remote) -> Mapping[str, Any] | None:
        try:
            about: Mapping[str, Any] = self._server.get(
                "pod/file", [*place.pairs, ("format", "stat")]
            ).data
        except Refused as refused:
            if refused.code != "no_such_file":
                raise
            return None
        return about

    # --- Out of a pod ----------------------------------------------------------------------------

    def fetch(self, sources: Sequence[Remote], word: str) -> None:
        target = Path(word)
        is_folder = word != STREAM and target.is_dir()
        if len(sources) > 1 and not is_folder:
            raise Usage(f"Several files need a folder as the target, and {word!r} is none.")
        for source in sources:
            about = self._about(source)
            if about is None:
                raise Usage(f"There is no {source.path!r} in pod {source.ins!r}.")
            if word == STREAM:
                self._fetch_stream(source)
                continue
            place = target / source.name if is_folder and source.name else target
            if about["type"] == "directory":
                self._fetch_folder(source, place)
            else:
                self._fetch_file(source, about, place)

    def _fetch_stream(self, source: Remote) -> None:
        def take(coming: Coming) -> None:
            while data := coming.read():
                sys.stdout.buffer.write(data)

        self._server.download("pod/file", source.pairs, take)

    def _fetch_folder(self, source: Remote, place: Path) -> None:
        if os.path.lexists(place) and not place.is_dir():
            raise Usage(f"{place} exists and is not a folder.")

        def take(coming: Coming) -> None:
            with Progress(source.name or source.path, None) as progress:
                unpack(_Watched(coming, progress), place, self._leave)

        self._server.download("pod/file", [*source.pairs, ("format", "tar")], take)

    def _fetch_file(self, source: Remote, about: Mapping[str, Any], place: Path) -> None:
        if place.is_dir():
            raise Usage(f"{place} is a folder.")
        # Where a link of this machine leads, its owner has said.
        place = Path(os.path.realpath(place))

        def take(coming: Coming) -> None:
            with Progress(source.name, coming.size) as progress:
                _keep(_Watched(coming, progress), place, about)

        self._server.download("pod/file", source.pairs, take)

    # --- Into a pod ------------------------------------------------------------------------------

    def put(self, words: Sequence[str], target: Remote) -> None:
        about = self._about(target)
        is_folder = about is not None and about["type"] == "directory"
        if len(words) > 1 and not is_folder:
            raise Usage(f"Several files need a folder as the target, and {target.path!r} is none.")
        for word in words:
            if word == STREAM:
                if is_folder:
                    raise Usage("Standard input has no name; name the target file.")
                self._put_stream(target)
                continue
            path = Path(word)
            # The name that was typed, also of a link; `.` and `..` have none.
            name = utf8(path.name if path.name not in ("", "..") else path.resolve().name)
            place = target.below(name) if is_folder and name else target
            if path.is_dir():
                self._put_folder(path.resolve(), place)
            else:
                self._put_file(path, place)

    def _put_stream(self, target: Remote) -> None:
        def give(body: Sent) -> None:
            with Progress("standard input", None) as progress:
                _pour(sys.stdin.buffer, "Standard input", body, progress)

        self._server.upload("pod/file-put", target.pairs, give)

    def _put_file(self, path: Path, place: Remote) -> None:
        try:
            file = path.open("rb")
        except OSError as error:
            raise Usage(f"{path} cannot be read: {error.strerror}.") from error
        with file:
            status = os.fstat(file.fileno())
            is_plain = path.is_file()

            def give(body: Sent) -> None:
                with Progress(path.name, status.st_size if is_plain else None) as progress:
                    _pour(file, str(path), body, progress)

            about = [
                ("mode", f"{status.st_mode & 0o777:03o}"),
                ("mtime", str(int(status.st_mtime))),
            ]
            pairs = [*place.pairs, *(about if is_plain and os.name != "nt" else [])]
            # A file that grows or shrinks meanwhile has no size that could be said.
            self._server.upload("pod/file-put", pairs, give)

    def _put_folder(self, folder: Path, place: Remote) -> None:
        def give(body: Sent) -> None:
            with Progress(folder.name, None) as progress:
                pack(folder, _Counted(body, progress), self._leave)

        self._server.upload("pod/file-put", [*place.pairs, ("format", "tar")], give)


class _Watched:
    """What comes, with its progress shown."""

    def __init__(self, coming: Coming, progress: Progress) -> None:
        self._coming = coming
        self._progress = progress

    def read(self, count: int = PIECE_BYTES) -> bytes:
        data = self._coming.read(count)
        self._progress.add(len(data))
        return data


class _Counted:
    """What goes, with its progress shown."""

    def __init__(self, body: Sent, progress: Progress) -> None:
        self._body = body
        self._progress = progress

    def write(self, data: bytes) -> int:
        self._progress.add(len(data))
        return self._body.write(data)


def _pour(file: BinaryIO, name: str, body: Sent, progress: Progress) -> None:
    while data := _read(file, name):
        body.write(data)
        progress.add(len(data))


def _read(file: BinaryIO, name: str) -> bytes:
    try:
        return file.read(PIECE_BYTES)
    except OSError as error:
        raise Usage(f"{name} cannot be read: {error.strerror}.") from error


def _keep(source: _Watched, place: Path, about: Mapping[str, Any]) -> None:
    """Write a file: all of it, or nothing."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".pody-", dir=place.parent)
    except OSError as error:
        raise Failure(f"{place} cannot be made: {error.strerror}.") from error
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            while data := source.read():
                file.write(data)
        draft.chmod(int(str(about["mode"]), 8) & 0o777 | 0o400)
        if about["modified"] is not None:
            os.utime(draft, (time.time(), _seconds(str(about["modified"]))))
        draft.replace(place)
    except OSError as error:
        raise Failure(f"{place} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()
