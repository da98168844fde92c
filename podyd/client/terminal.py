"""The terminal that pody was typed at; only Unix has one as it is meant here."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator

from podyd.client.failure import Usage

# To the second screen and without a cursor, and back.
SECOND_SCREEN, FIRST_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def need(word: str) -> None:
    """Raises Usage where there is no terminal that `pody WORD` could use."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Usage(f"pody {word} needs a terminal.")
    if os.name == "nt":
        raise Usage(f"pody {word} needs a Unix terminal for now; WSL has one.")


def size() -> tuple[int, int]:
    """Rows and columns."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 24, 80
    return min(size.lines, 1000) or 24, min(size.columns, 1000) or 80


@contextlib.contextmanager
def keys(*, all_of_them: bool) -> Iterator[None]:
    """Each key at once and unseen; `all_of_them`: Ctrl-C and its like too. As it was at the end."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        (tty.setraw if all_of_them else tty.setcbreak)(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def second_screen() -> Iterator[None]:
    """Leaves what stood on the terminal as it was."""
    sys.stdout.write(SECOND_SCREEN)
    try:
        yield
    finally:
        sys.stdout.write(FIRST_SCREEN)
        sys.stdout.flush()


def show(text: str) -> None:
    """Fill the screen with a text of lines that fit."""
    sys.stdout.write("\x1b[H" + text.replace("\r\n", "\x1b[K\r\n") + "\x1b[J")
    sys.stdout.flush()


def key(seconds: float) -> str:
    """The key that is pressed within `seconds`, or nothing."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace")
