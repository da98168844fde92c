"""`pody notices`: podyd's messages to the member."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from podyd.client import daily
from podyd.client.failure import Refused
from podyd.client.server import server_of
from podyd.client.words import utf8

COLUMNS = ("time", "to", "pod", "text")


def add_words(add: daily.Add) -> None:
    """The one word."""
    made = add("notices", _notices, "Show podyd's messages to you, the newest last.")
    made.add_argument(
        "--since", metavar="TIME", help="how far back, as 2d, or from when, as 2026-11-24T08:00:00Z"
    )
    daily.add_raw(made)
    daily.add_cacert(made)


def _notices(options: argparse.Namespace) -> None:
    server = server_of(options.cacert)
    wanted = [] if options.since is None else [("since", utf8(options.since))]
    notices = server.get("user/notices", wanted).data
    # Those for admins alone stand out.
    columns = [
        key for key in COLUMNS if key != "to" or any(item["to"] != "you" for item in notices)
    ]
    daily.write_rows(options, notices, columns, [_row(item) for item in notices])
    unread = sum(not item["read"] for item in notices)
    # They are read where somebody has seen all of them, and no program has taken them.
    if unread and unread == server.unread and sys.stdout.isatty():
        sys.stdout.flush()
        # A token that only reads changes nothing.
        with contextlib.suppress(Refused):
            server.post("user/notices-read", [("id", str(notices[-1]["id"]))])


def _row(item: Mapping[str, Any]) -> Mapping[str, Any]:
    times = item["count"]
    return {**item, "text": item["text"] if times == 1 else f"{item['text']} ({times} times)"}
