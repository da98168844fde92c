"""The errors of podyd, and what each one looks like from outside.

An error carries everything that a client is sent: the HTTP `status`, a stable `code` in
snake_case, one sentence in `detail` that says what is wrong, one in `advice` where the user can do
something about it, and `fields` that help a program.
Whatever a lower library raises is turned into one of these where it is met.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from podyd.base.engine_words import ENGINE


class PodydError(Exception):
    """The root of the tree; by itself it stands for a fault inside podyd."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    # Of the command that it ends.
    exit_status: ClassVar[int] = 1

    def __init__(
        self, detail: str, *, advice: str = "", code: str | None = None, **fields: Any
    ) -> None:
        super().__init__(f"{detail} {advice}".rstrip())
        self.detail = detail
        self.advice = advice
        self.code = code or self.default_code
        self.fields = fields

    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets; `advice` only where there is some."""
        advice = {"advice": self.advice} if self.advice else {}
        return {"detail": self.detail, **advice, "code": self.code, **self.fields}

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

    def __init__(
        self, detail: str, *, retry_after: float, advice: str = "", code: str | None = None
    ) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(detail, advice=advice, code=code, retry_after=self.retry_after)

    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after)}


class Unavailable(PodydError):
    """Something that podyd needs (the engine, PAM, NVML) cannot be reached or is busy;
    `retry_after` is in seconds."""

    status = 503
    default_code = "unavailable"

    def __init__(
        self,
        detail: str,
        *,
        advice: str = "",
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail, advice=advice, code=code)
        self.retry_after = retry_after

    def headers(self) -> Mapping[str, str]:
        return {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:.0f}"}


class TimedOut(PodydError):
    """The engine did not finish in time; `detail` says what became of the request."""

    status = 504
    default_code = "timed_out"


class EngineRefused(PodydError):
    """The engine answered with an error of its own; `reason` has its words.

    What podyd tells apart is a class below, each of them with a sentence for members.
    podyd/engine/refusals.py knows which of the engine's sentences is which; nobody else reads them.
    """

    status = 502
    default_code = "lxd_error"
    # The sentence for the member, and what they can do; `{reason}` stands for the engine's
    # own words, `{engine}` for its name.
    sentence: ClassVar[str] = "{engine} refused it: {reason}."
    remedy: ClassVar[str] = "Tell your admin if it stays so."

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        advice: str = "",
        code: str | None = None,
        **fields: Any,
    ) -> None:
        self.reason = reason.rstrip(".")
        super().__init__(
            detail or self.sentence.format(engine=ENGINE, reason=self.reason, **fields),
            advice=advice if detail else self.remedy.format(engine=ENGINE),
            code=code,
            **fields,
        )

    @property
    def is_telling(self) -> bool:
        """Whether its sentence is enough by itself, whatever the engine was asked for."""
        return type(self) not in (EngineRefused, Missing, KeyForbidden)


class Busy(EngineRefused):
    """The engine is at work on the instance; `operation` is its word for what it does, "" if
    unknown.

    That a file or a device is busy is another thing.
    """

    status = 409
    default_code = "pod_busy"
    sentence = "The pod is being started, stopped or changed already."
    remedy = "Try again shortly."

    def __init__(self, reason: str, *, operation: str = "") -> None:
        super().__init__(reason, operation=operation)
        self.operation = operation


class InUse(Busy):
    """The engine counts the instance's disk as mounted: it copies it, reads files, or has
    miscounted."""

    sentence = "{engine} has the pod's disk in use, to copy it or for its files."


class NotRunning(EngineRefused):
    """The instance does not run, or is frozen, so that nothing can be run in it."""

    status = 409
    default_code = "pod_not_running"
    sentence = "The pod is {status}."
    remedy = "Start it with /pod/start."

    def __init__(self, reason: str, *, status: str = "stopped") -> None:
        super().__init__(reason, status=status)


class Ending(NotRunning):
    """The instance has just ended, and the engine has not cleaned up behind it yet."""


class Running(EngineRefused):
    """The instance runs, which it must not for this, or does so already."""

    status = 409
    default_code = "pod_running"
    sentence = "The pod is running."
    remedy = "Stop it first with /pod/stop."


class NeedsStop(Running):
    """The engine changes this in an instance only while that does not run."""

    default_code = "pod_must_be_stopped"
    sentence = "{engine} changes this only in a pod that is stopped."


class DidNotShutDown(EngineRefused):
    """The instance was asked to shut down and did not in the time that it had."""

    status = 409
    default_code = "pod_did_not_shut_down"
    sentence = "The pod did not shut down in time."
    remedy = "Try again."


class Missing(EngineRefused):
    """The engine does not have what was named, or what that needs: a profile, a snapshot, a
    file."""

    status = 404
    default_code = "not_found"
    sentence = "{engine} does not have it: {reason}."
    remedy = ""


class Gone(Missing):
    """The engine does not have the instance itself."""

    default_code = "no_such_pod"
    sentence = "The pod does not exist any more."
    remedy = "See /pod/list."


class NameTaken(EngineRefused):
    """The engine has something of that name already."""

    status = 409
    default_code = "name_taken"
    sentence = "The name is taken: {reason}."
    remedy = "Take another one."


class Changed(EngineRefused):
    """What was to be changed has been changed since it was read: its ETag is another."""

    status = 409
    default_code = "pod_changed"
    sentence = "The pod was changed at the same time."
    remedy = "Try again."


class DiskFull(EngineRefused):
    """There is no room left for what the engine writes, on the instance's disk or in the whole
    pool."""

    status = 409
    default_code = "disk_full"
    sentence = "The pod's disk is full ({reason})."
    remedy = (
        "Delete files in it (/pod/file-delete works also while it is stopped), or raise 'disk' with"
        " /pod/limits; if the disk has space, the storage of all pods is full: tell your admin."
    )


class Unsettled(EngineRefused):
    """The engine does not take back the settings that an instance had before a snapshot was
    restored."""

    status = 409
    default_code = "settings_not_back"
    sentence = (
        "The pod's disk is restored, but {engine} does not accept the settings that the pod had"
        " before ({reason}), and the pod cannot be started until it does."
    )
    remedy = "Tell your admin; podyd tries again whenever something changes."


class NotNewest(EngineRefused):
    """On ZFS: something has been kept of the instance since the snapshot that is to be restored."""

    status = 409
    default_code = "snapshot_not_newest"
    sentence = (
        "On ZFS only the newest snapshot of a pod can be restored, and only if no copy of the pod"
        " was made after it."
    )
    remedy = (
        "Delete the later snapshots and copies first, or make a pod from this one with /pod/copy."
    )


class KeyForbidden(EngineRefused):
    """A project's restrictions forbid a key `volatile.*`, which the engine itself has written."""


class NotRestorable(EngineRefused):
    """A project's restrictions let the engine restore no snapshot with what it has itself noted of
    the instance then."""

    status = 409
    default_code = "snapshot_not_restorable"
    sentence = (
        "{engine} refuses to restore this snapshot, as the pod was running at it, or has been"
        " restored since ({reason})."
    )
    remedy = (
        "Make a pod from it with /pod/copy; README.md tells your admin which {engine} restores it."
    )


class HalfRestored(EngineRefused):
    """A snapshot was being copied over its instance, and that has ended in the middle, or without
    word of its end."""

    default_code = "half_restored"
    sentence = (
        "The snapshot was restored only in part ({reason}), so the pod's disk has files of now and"
        " of then, and the pod was not started."
    )
    remedy = (
        "Restore it again; if that fails too, make a pod from it with /pod/copy, and tell your"
        " admin."
    )


class Slipped(EngineRefused):
    """The engine has failed with a transient error, so it can be tried again.

    While it starts an instance, LXD closes a file descriptor twice, which may meanwhile be that of
    a file which it needs elsewhere (canonical/lxd#15955, in LXD 5.0.2 too). And it does not copy a
    pod in which a directory has just gone.
    """

    status = 503
    default_code = "lxd_slipped"
    sentence = "{engine} had a transient error ({reason})."
    remedy = "Try again."


class OutputLost(PodydError):
    """A command has ended, and not all that it wrote has come from the engine.

    It is none that can be tried again (503): what the command has done, it would do once more.
    """

    status = 502
    default_code = "output_lost"


class NotLimited(EngineRefused):
    """The kernel does not let the engine limit the instance, as its cgroup has no controller for
    it."""

    status = 502
    default_code = "limits_unavailable"
    sentence = "This host does not limit the pod's memory, CPUs or processes ({reason})."
    remedy = "Tell your admin: 'podyd doctor' says what {engine} lacks for it."


class Lacks(EngineRefused):
    """The host has no such program, or the engine does not see it."""

    status = 502
    default_code = "lxd_lacks_program"


@contextlib.contextmanager
def engine_could_not(what: str, *, code: str | None = None) -> Iterator[None]:
    """Say what the engine was to do, where its refusal does not say by itself what is wrong."""
    try:
        yield
    except EngineRefused as error:
        if error.is_telling:
            raise
        detail = f"{ENGINE} could not {what}: {error.reason}."
        raise type(error)(error.reason, detail, code=code) from error


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
