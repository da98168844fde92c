"""What can go wrong, each with the exit status that tells a script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar


class Failure(Exception):
    """Its text is the one line that the user sees."""

    status: ClassVar[int] = 1


def whole_text(body: Mapping[str, Any]) -> str:
    """What podyd says of an error, and what there is to do; raises KeyError if it says nothing."""
    return f"{body['detail']} {body.get('advice', '')}".rstrip()


class Refused(Failure):
    """podyd said no; `body` is its JSON."""

    status = 1

    def __init__(self, detail: str, body: bytes) -> None:
        super().__init__(detail)
        self.body = body

    @property
    def code(self) -> str:
        """podyd's word for why."""
        return str(json.loads(self.body).get("code", ""))


class Usage(Failure):
    """The user has to write it differently."""

    status = 2


class WrongLogin(Refused):
    """podyd does not take this user with this password."""

    status = 3


class NoLogin(Failure):
    """There is no password, and nobody who could be asked for it."""

    status = 3


class Away(Failure):
    """podyd cannot be reached, or what answers is not to be trusted or no podyd."""

    status = 4
