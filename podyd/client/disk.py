"""The words that keep what is on a pod's disk: snapshots, copies and images."""

from __future__ import annotations

import argparse
import contextlib
from operator import itemgetter

from podyd.client import daily, show
from podyd.client.failure import Failure
from podyd.client.server import Server, server_of
from podyd.client.words import utf8

SNAPSHOT_COLUMNS = ("name", "created", "size")


def add_words(add: daily.Add) -> None:
    """The words, with what each of them takes."""
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
    what = "Make an image of your own from a pod, which goes on running."
    published = daily.of_pod(add("commit", _commit, what))
    published.add_argument("tag", metavar="TAG", help="the image is called USER-TAG")
    published.add_argument("-m", "--message", metavar="TEXT", help="a description of it")
    for made in (taken, listed, restored, removed, copied, published):
        daily.add_raw(made)
        daily.add_cacert(made)


def _of_snapshot(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    name = daily.of_pod(made).add_argument("name", metavar="NAME", help="one of pody snapshots")
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
    daily.change(options, "pod/restore", [("name", options.name)], doing=doing)


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
    daily.change(options, "pod/copy", more, doing=doing)


def _commit(options: argparse.Namespace) -> None:
    doing = f"Making image {options.tag} of pod {options.ins}"
    more = [("tag", options.tag), ("msg", options.message)]
    daily.change(options, "pod/commit", more, doing=doing, how_far=how_far)


def how_far(server: Server, ins: str) -> str:
    """How far an image is, as `packing 43 % (30 MiB/s)`; "" where podyd cannot tell."""
    with contextlib.suppress(Failure):
        found = server.get("pod/progress", [("ins", ins)]).data
        parts = [found["doing"] or ""]
        parts += [] if found["percent"] is None else [f"{found['percent']} %"]
        speed = found["bytes_per_second"]
        parts += [] if speed is None else [f"({show.size(speed)}/s)"]
        return " ".join(parts)
    return ""
