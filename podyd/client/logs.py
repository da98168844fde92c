"""`pody logs`: what a pod says of itself."""

from __future__ import annotations

import argparse
import sys

from podyd.client import daily, output, show
from podyd.client.failure import Usage
from podyd.client.server import Server, server_of
from podyd.client.stream import STDERR, STDOUT, Stream
from podyd.client.words import utf8

MAX_LINE_BYTES = 64 * 1024


def add_words(add: daily.Add) -> None:
    """`logs`, with what it takes."""
    made = daily.of_pod(
        add("logs", _logs, "Show a pod's journal; of one that does not run, why it did not start.")
    )
    made.add_argument("-n", "--lines", metavar="N", help="the last so many (default: 100)")
    made.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    made.add_argument("--since", metavar="TIME", help="how far back, as 2d or 30m or 90 (seconds)")
    daily.add_raw(made)
    daily.add_cacert(made)


def _logs(options: argparse.Namespace) -> int:
    ins, server = utf8(options.ins), server_of(options.cacert)
    if options.follow:
        return _follow(server, ins, options)
    chosen = (("lines", options.lines), ("since", options.since))
    pairs = [("ins", ins), *((key, utf8(text)) for key, text in chosen if text)]
    answer = server.get("pod/logs", pairs)
    if options.raw:
        output.write_json(answer.body)
    else:
        for line in answer.data["log"].splitlines():
            sys.stdout.write(f"{show.harmless(line)}\n")
        sys.stdout.flush()
    if answer.data.get("truncated"):
        output.complain("The journal is incomplete: it is too large, or took too long to read.")
    return 0


def _follow(server: Server, ins: str, options: argparse.Namespace) -> int:
    """What the journal has, and then what comes, until Ctrl-C."""
    if options.since or options.raw:
        raise Usage("--follow cannot be used with --since or --raw.")
    if not (options.lines or "100").isdecimal():
        raise Usage(f"--lines must be a number, not {options.lines!r}.")
    words = ["journalctl", "--follow", "--quiet", "--no-pager", "--output=short-iso"]
    command = " ".join(["exec", *words, f"--lines={options.lines or 100}"])
    lines = Lines()
    try:
        return Stream(server, "pod/exec-stream", [("ins", ins)], lines).run({"cmd": command})
    finally:
        lines.end()


class Lines:
    """Takes no input, and writes lines without what a terminal would obey."""

    def __init__(self) -> None:
        self._begun = {STDOUT: b"", STDERR: b""}

    def read(self) -> bytes:
        return b""

    def write(self, channel: int, data: bytes) -> None:
        *lines, begun = (self._begun[channel] + data).split(b"\n")
        # What has no end is cut, and not held.
        if len(begun) > MAX_LINE_BYTES:
            lines, begun = [*lines, begun], b""
        self._begun[channel] = begun
        target = sys.stdout if channel == STDOUT else sys.stderr
        for line in lines:
            target.write(f"{show.harmless(line.decode(errors='replace'))}\n")
        target.flush()

    def end(self) -> None:
        """Write lines that have not ended."""
        for channel, begun in self._begun.items():
            if begun:
                self.write(channel, b"\n")
