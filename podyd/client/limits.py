"""`pody limits`: the memory, the CPUs and the disk of a pod."""

from __future__ import annotations

import argparse
import json
import sys

from podyd.client import daily, output, show
from podyd.client.server import server_of
from podyd.client.words import utf8

SHOWN = ("memory_limit", "cpu_limit", "disk_limit")


def add_words(add: daily.Add) -> None:
    """The command."""
    what = "Show a pod's limits of memory, CPUs and disk, or change them while it runs."
    made = daily.of_pod(add("limits", _limits, what))
    made.add_argument("--memory", metavar="SIZE", help="such as 8GiB; none: that of a new pod")
    made.add_argument("--cpu", metavar="COUNT", help="a number of CPUs; none: that of a new pod")
    made.add_argument("--disk", metavar="SIZE", help="such as 100GiB; none: that of a new pod")
    daily.add_raw(made)
    daily.add_cacert(made)


def _limits(options: argparse.Namespace) -> None:
    server = server_of(options.cacert)
    named = [("ins", utf8(options.ins))]
    asked = [("memory", options.memory), ("cpu", options.cpu), ("disk", options.disk)]
    changes = [(key, utf8(value)) for key, value in asked if value is not None]
    if changes:
        answer = server.post("pod/limits", named + changes)
    else:
        answer = server.get("pod/info", named)
    limits = {key: answer.data[key] for key in SHOWN}
    if options.raw or not sys.stdout.isatty():
        output.write_json(json.dumps(limits).encode())
    else:
        sys.stdout.write(show.answer("pod/limits", limits, output.columns()))
