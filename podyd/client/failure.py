"""What can go wrong, each with the exit status that tells a script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar


class Failure(Exception):
    """Its text is the one line that the user sees."""

    status: ClassVar[int] = 1


def whole_text(body: Mapping[str, Any]) -> str:
    """The error's sentence and its advice; raises KeyError if there is none."""
    return f"{body['detail']} {body.get('advice', '')}".rstrip()


class Refused(Failure):
    """podyd refused the request; `body` is its JSON."""

    status = 1

    def __init__(self, detail: str, body: bytes) -> None:
        super().__init__(detail)
        self.body = body

    @property
    def code(self) -> str:
        """The code of the error."""
        return str(json.loads(self.body).get("code", ""))


class Usage(Failure):
    """The command line is wrong."""

    status = 2


class WrongLogin(Refused):
    """podyd refused this user with this password."""

    status = 3


class NoLogin(Failure):
    """There is no password, and no terminal to ask for it."""

    status = 3


class Away(Failure):
    """podyd cannot be reached, or what answers is not trusted or not podyd."""

    status = 4
