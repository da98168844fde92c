"""What pody writes: for people on a terminal, podyd's JSON into a pipe."""

from __future__ import annotations

import os
import sys

from podyd.client import show
from podyd.client.server import Answer, Server


def complain(text: str) -> None:
    """One line for the user, beside the output."""
    print(f"pody: {show.harmless(text)}", file=sys.stderr)


def remind(server: Server) -> None:
    """One line for whoever sits at a terminal, if there are notices that they have not read."""
    if server.unread and sys.stderr.isatty():
        sys.stdout.flush()
        what = "1 new notice" if server.unread == 1 else f"{server.unread} new notices"
        complain(f"{what}: pody notices")


def answered(route: str, answer: Answer, *, raw: bool) -> None:
    """Write an answer, and what is to be remarked of it."""
    remarks = [answer.hint] if answer.hint else []
    if isinstance(answer.data, str):
        lines = answer.data.splitlines()
        sys.stdout.writelines(f"{show.harmless(line)}\n" for line in lines)
    elif raw or not sys.stdout.isatty():
        write_json(answer.body)
    else:
        sys.stdout.write(show.answer(route, answer.data, columns()))
        if show.is_output(answer.data):
            remarks += show.remarks(answer.data)
    sys.stdout.flush()
    for remark in remarks:
        complain(remark)


def write_json(body: bytes) -> None:
    """podyd's JSON as it came, in one line; in UTF-8 whatever the terminal or Windows has."""
    line = body.strip()
    if sys.stdout.isatty():
        line = show.harmless_json(line.decode()).encode()
    sys.stdout.buffer.write(line + b"\n")


def columns() -> int:
    """The width of the terminal."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80
