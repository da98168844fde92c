"""The errors of podyd, and what each one looks like from outside.

An error carries everything that a client is told: the HTTP `status`, a stable `code` in
snake_case, one sentence in `detail` that a user can act on, and `fields` that help a program.
Whatever a lower library raises is turned into one of these where it is met.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar


class PodydError(Exception):
    """The root of the tree; by itself it stands for a fault inside podyd."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    # Of the command that it ends.
    exit_status: ClassVar[int] = 1

    def __init__(self, detail: str, *, code: str | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.fields = fields

    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        return {"detail": self.detail, "code": self.code, **self.fields}

    def headers(self) -> Mapping[str, str]:
        """The HTTP headers that belong to this error."""
        return {}


class BadRequest(PodydError):
    """A parameter is missing, unknown, repeated or malformed."""

    status = 400
    default_code = "bad_request"


class Unauthorized(PodydError):
    """No credentials, or wrong ones; never says which part of them was wrong."""

    status = 401
    default_code = "unauthorized"

    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": 'Basic realm="podyd", charset="UTF-8"'}


class Forbidden(PodydError):
    """Logged in, but not allowed."""

    status = 403
    default_code = "forbidden"


class NotFound(PodydError):
    """No such route, pod or image; somebody else's pod looks the same."""

    status = 404
    default_code = "not_found"


class MethodNotAllowed(PodydError):
    """The route exists, the method does not."""

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, detail: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(detail, allow=list(allow))
        self.allow = allow

    def headers(self) -> Mapping[str, str]:
        return {"Allow": ", ".join(self.allow)}


class Conflict(PodydError):
    """The state of things does not admit the request: a name taken, a pod not running."""

    status = 409
    default_code = "conflict"


class TooLarge(PodydError):
    """The request's body is over the limit."""

    status = 413
    default_code = "body_too_large"


class UpgradeRequired(PodydError):
    """The route is a WebSocket, and the request does not ask for one."""

    status = 426
    default_code = "upgrade_required"

    def headers(self) -> Mapping[str, str]:
        return {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


class TooMany(PodydError):
    """Too many failed logins or requests; `retry_after` is in seconds."""

    status = 429
    default_code = "too_many_requests"

    def __init__(self, detail: str, *, retry_after: float, code: str | None = None) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(detail, code=code, retry_after=self.retry_after)

    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after)}


class Unavailable(PodydError):
    """Something that podyd needs (LXD, PAM, NVML) cannot be reached or is busy."""

    status = 503
    default_code = "unavailable"


class TimedOut(PodydError):
    """LXD did not finish in time; `detail` says what became of the request."""

    status = 504
    default_code = "timed_out"


class LxdRefused(PodydError):
    """LXD answered with an error of its own; `lxd_status` is the one it gave."""

    default_code = "lxd_error"

    def __init__(self, detail: str, *, lxd_status: int) -> None:
        super().__init__(detail)
        self.lxd_status = lxd_status


class ConfigError(PodydError):
    """podyd.yaml cannot be used; `detail` names file, key and what was expected."""

    default_code = "config_error"
    exit_status = os.EX_CONFIG


class NotSetUp(PodydError):
    """`podyd setup` has not left what the service needs; trying again does not mend it."""

    default_code = "not_set_up"
    exit_status = os.EX_CONFIG


class StartError(PodydError):
    """Podyd cannot serve now, for a reason that may go away by itself."""

    default_code = "start_error"


class SetupError(PodydError):
    """The machine cannot be prepared; `detail` says what to type."""

    default_code = "setup_error"
