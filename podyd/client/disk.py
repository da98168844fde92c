"""The commands for a pod's disk: snapshots, copies and images."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

from podyd.client import daily, output
from podyd.client.failure import Refused
from podyd.client.progress import waiting
from podyd.client.server import Server, server_of
from podyd.client.stream import INTERRUPTED
from podyd.client.words import utf8

SNAPSHOT_COLUMNS = ("name", "created", "size")
BEGIN_SECONDS, AGAIN_SECONDS = 3.0, 0.3


def add_words(add: daily.Add) -> None:
    """The commands, with the arguments of each."""
    taken = daily.of_pod(add("snapshot", _snapshot, "Keep a pod's disk as it is now."))
    taken.add_argument("name", nargs="?", metavar="NAME", help="default: the time, in UTC")
    listed = daily.of_pod(add("snapshots", _snapshots, "List a pod's snapshots, oldest first."))
    what = "Make a pod's disk as it was at a snapshot; what came after is lost."
    restored = _of_snapshot(add("restore", _restore, what))
    removed = _of_snapshot(add("snapshot-rm", _remove, "Delete a snapshot of a pod, for good."))
    what = "Make a new pod from a pod, or from a snapshot of it, and start it."
    copied = daily.of_pod(
        add("copy", _copy, what), "the pod as it is, or POD/SNAPSHOT: as it was then"
    )
    copied.add_argument("to", metavar="NEW", help="a name for the copy")
    daily.add_gpus(copied)
    daily.add_disk(copied)
    what = "Make an image of a pod, which only you can use; the pod continues to run."
    published = daily.of_pod(add("commit", _commit, what))
    published.add_argument("tag", metavar="TAG", help="the image is named USER-TAG")
    published.add_argument("-m", "--message", metavar="TEXT", help="a description of it")
    for made in (taken, listed, restored, removed, copied, published):
        daily.add_raw(made)
        daily.add_cacert(made)


def _of_snapshot(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    name = daily.of_pod(made).add_argument(
        "name", metavar="NAME", help="a snapshot, see pody snapshots"
    )
    names = daily.complete("pod/snapshots", itemgetter("name"), of_pod=True)
    name.completer = names  # type: ignore[attr-defined]
    daily.add_yes(made)
    return made


def _snapshot(options: argparse.Namespace) -> None:
    doing = f"Taking a snapshot of pod {options.ins}"
    daily.change(options, "pod/snapshot", [("name", options.name)], doing=doing)


def _snapshots(options: argparse.Namespace) -> None:
    answer = server_of(options.cacert).get("pod/snapshots", [("ins", utf8(options.ins))])
    daily.write_rows(options, answer.data, SNAPSHOT_COLUMNS)


def _restore(options: argparse.Namespace) -> None:
    question = f"Make pod {options.ins!r} as it was at {options.name!r}? What came after is lost."
    daily.confirm(options, question)
    doing = f"Restoring pod {options.ins}"
    more = [("name", options.name)]
    daily.change(options, "pod/restore", more, doing=doing, watched=options.ins)


def _remove(options: argparse.Namespace) -> None:
    daily.confirm(options, f"Delete snapshot {options.name!r} of pod {options.ins!r}?")
    daily.change(options, "pod/snapshot-delete", [("name", options.name)])


def _copy(options: argparse.Namespace) -> None:
    doing = f"Copying pod {options.ins} to {options.to}"
    options.ins, slash, snapshot = options.ins.partition("/")
    more = [
        ("to", options.to),
        ("snapshot", snapshot if slash else None),
        ("gpus", options.gpus),
        ("disk", options.disk),
    ]
    daily.change(options, "pod/copy", more, doing=doing, watched=options.to)


def _commit(options: argparse.Namespace) -> int:
    doing = f"Making image {options.tag} of pod {options.ins}"
    more = [("tag", options.tag), ("msg", options.message)]
    server = server_of(options.cacert)
    server.log_in()
    began = time.monotonic()
    try:
        daily.change(options, "pod/commit", more, doing=doing, server=server, watched=options.ins)
    except KeyboardInterrupt:
        cancel(server, options.ins, began)
        return INTERRUPTED
    return 0


def cancel(server: Server, ins: str, began: float) -> None:
    """End a commit, and say what came of it; `began`, of the monotonic clock, is its request."""
    # To hang up would end nothing, so Ctrl-C ends pody only when podyd knows.
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _cancel(server, ins, began, partial(_can_end, usual))
    finally:
        signal.signal(signal.SIGINT, usual)


def _can_end(usual: Any) -> None:
    if signal.getsignal(signal.SIGINT) != usual:
        output.complain("Cancelling the image; Ctrl-C again ends pody at once.")
        signal.signal(signal.SIGINT, usual)


def _cancel(server: Server, ins: str, began: float, sent: Callable[[], None]) -> None:
    pairs = [("ins", utf8(ins))]
    while True:
        try:
            with waiting("Cancelling"):
                message = server.post("pod/commit-cancel", pairs, sent).data["log"]
        except Refused as refused:
            message = str(refused)
            # podyd may not have begun with what it was just asked for.
            if refused.code == "no_commit" and time.monotonic() < began + BEGIN_SECONDS:
                time.sleep(AGAIN_SECONDS)
                continue
        output.complain(message)
        return
