"""The words of a command line as parameters of a call."""

from __future__ import annotations

import re
import sys

from podyd.client.failure import Usage
from podyd.client.login import ask

UNSEEN = "passwd"


def split(word: str) -> tuple[str, str]:
    """`key:value` or `key=value`, split at whichever comes first. Raises Usage."""
    match = re.fullmatch(r"([^:=]+)[:=](.*)", word, re.DOTALL)
    if match is None:
        raise Usage(f"{word!r} is no parameter; write key:value.")
    return match[1], utf8(match[2])


def utf8(text: str) -> str:
    """The text, which must be one: an argument may have any bytes. Raises Usage."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Usage("A parameter or the route is not valid UTF-8.") from None
    return text


def from_stdin(key: str) -> str:
    """The value of a parameter that the command line leaves empty."""
    if sys.stdin.isatty():
        if key == UNSEEN:
            return _new_password()
        print(f"{key}: type or paste its value, then end the input.", file=sys.stderr)
    try:
        text = sys.stdin.buffer.read().decode()
    except OSError as error:
        raise Usage(f"Standard input cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise Usage(f"What standard input has for {key!r} is not UTF-8.") from None
    return re.sub(r"\r?\n\Z", "", text)


def _new_password() -> str:
    """Asked for twice: nobody sees what was typed, and a slip would lock its owner out."""
    password = ask("New password: ")
    if ask("Again: ") != password:
        raise Usage("The two are not the same; nothing is changed.")
    return utf8(password)
