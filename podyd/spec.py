"""The HTTP API as one table.

Each `Operation` says its path, methods, parameters, who may call it and what it answers. The
router, `/help`, `/openapi.json` and the tests all read this table; nothing is declared twice.
Sizes are bytes, durations seconds, times ISO 8601 in UTC; -1 is a limit that is not set.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from podyd.params import Indices, Param, Password, PodName, Seconds, Text, param, params_of

# What Linux takes as one argument of a command: MAX_ARG_STRLEN of execve(2), less the final NUL.
MAX_COMMAND_BYTES = 128 * 1024 - 1


def iso(moment: datetime) -> str:
    """A time as the API writes it: ISO 8601, in UTC, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Access(enum.Enum):
    """Who may call an operation."""

    OPEN = "everybody, without a login"
    MEMBER = "every member"
    ADMIN = "admins"


# --- Requests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nothing:
    """No parameters."""


@dataclass(frozen=True)
class HelpOf:
    path: str | None = param(Text(200), "a route, or a prefix that ends in '/'", default=None)


@dataclass(frozen=True)
class NewPassword:
    passwd: str = param(Password(), "the new password")


@dataclass(frozen=True)
class OnePod:
    ins: str = param(PodName(), "the pod's name")


@dataclass(frozen=True)
class Create:
    ins: str = param(PodName(), "a name for the pod")
    image: str = param(Text(200), "an image of /host/images")


@dataclass(frozen=True)
class Exec:
    ins: str = param(PodName(), "the pod's name")
    cmd: str = param(Text(MAX_COMMAND_BYTES), "what /bin/bash -c shall run, as root in the pod")
    timeout: float | None = param(
        Seconds(), "seconds after which all that it started is killed", default=None
    )


@dataclass(frozen=True)
class OneImage:
    image: str = param(Text(200), "an image of /host/images")


@dataclass(frozen=True)
class GpuChoice:
    id: tuple[int, ...] | None = param(
        Indices(),
        "GPU indices as nvidia-smi shows them, separated by commas",
        default=None,
        aliases=("gpu-id",),
    )


# --- Answers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HelpParam:
    name: str
    optional: bool
    help: str


@dataclass(frozen=True)
class HelpEntry:
    path: str
    methods: list[str]
    params: list[HelpParam]
    help: str


@dataclass(frozen=True)
class UserName:
    name: str
    is_admin: int


@dataclass(frozen=True)
class QuotaInfo:
    max_pods: int
    gpu_count: int
    memory_limit: int
    cpu_limit: int


@dataclass(frozen=True)
class UserInfo:
    user: UserName
    quota: QuotaInfo


@dataclass(frozen=True)
class Log:
    log: str


PodStatus = Literal["running", "stopped", "frozen", "error"]


@dataclass(frozen=True)
class PodInfo:
    """A pod; `name` is LXD's, `ins` the owner's; `uptime` is null unless it runs."""

    name: str
    ins: str
    owner: str
    status: PodStatus
    image: str
    created: str
    addresses: list[str]
    port_mapping: list[str]
    gpu_ids: list[int]
    memory_limit: int
    cpu_limit: int
    profiles: list[str]
    uptime: float | None


@dataclass(frozen=True)
class PodSummary:
    name: str
    ins: str
    owner: str
    status: PodStatus
    image: str
    created: str


@dataclass(frozen=True)
class ExecResult:
    """`exit_code` is -1 if time was up; 128 + N if signal N ended the command."""

    exit_code: int
    log: str
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool
    seconds: float


@dataclass(frozen=True)
class ImageInfo:
    name: str
    aliases: list[str]
    description: str
    size: int
    created: str
    architecture: str
    fingerprint: str


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU; `pod` is LXD's instance name, "" for a process of the host."""

    pid: int
    pod: str
    cmd: str
    uptime: float | None
    memory_used: int | None
    gpu_memory_used: int | None


@dataclass(frozen=True)
class HostSpec:
    podyd: str
    lxd: str | None
    kernel: str
    nvidia_driver: str | None
    cuda: str | None


# --- The table ----------------------------------------------------------------------------------

GET = ("GET",)
POST = ("POST",)


@dataclass(frozen=True)
class Operation:
    """One route. `methods` are all that it serves; `/help` shows `advised` alone, one per route."""

    path: str
    methods: tuple[str, ...]
    request: type
    answer: Any
    summary: str
    access: Access = Access.MEMBER
    # What the request does ends when the caller hangs up; everything else is carried through.
    ends_with_caller: bool = False

    @property
    def advised(self) -> str:
        """The method that a client should choose: POST wherever it is served, for secrets' sake."""
        return "POST" if "POST" in self.methods else self.methods[0]

    @property
    def params(self) -> tuple[Param, ...]:
        return params_of(self.request)


HELP = Operation("/help", GET, HelpOf, list[HelpEntry], "The routes and their parameters.")
VERSION = Operation("/version", GET, Nothing, list[int], "podyd's version.", access=Access.OPEN)
OPENAPI = Operation("/openapi.json", GET, Nothing, dict[str, Any], "This API as OpenAPI 3.1.")
USER_INFO = Operation("/user/info", GET, Nothing, UserInfo, "The caller and their quota.")
USER_LIST = Operation("/user/list", GET, Nothing, list[UserName], "The members of this node.")
USER_CH_PASSWD = Operation(
    "/user/ch-passwd", GET + POST, NewPassword, Log, "Change the caller's own Linux password."
)
POD_CREATE = Operation("/pod/create", POST, Create, PodInfo, "Make a pod and start it.")
POD_DELETE = Operation(
    "/pod/delete", POST, OnePod, Log, "Delete a pod and all that is in it, for good."
)
POD_INFO = Operation("/pod/info", GET, OnePod, PodInfo, "All about a pod.")
POD_INSPECT = Operation("/pod/inspect", GET, OnePod, PodInfo, "The same as /pod/info.")
POD_LIST = Operation("/pod/list", GET, Nothing, list[str], "The caller's pods.")
POD_LISTALL = Operation(
    "/pod/listall",
    GET,
    Nothing,
    list[PodSummary],
    "Every pod with its owner.",
    access=Access.ADMIN,
)
POD_START = Operation("/pod/start", POST, OnePod, Log, "Start a pod.")
POD_STOP = Operation("/pod/stop", POST, OnePod, Log, "Stop a pod.")
POD_RESTART = Operation("/pod/restart", POST, OnePod, Log, "Stop a pod and start it again.")
POD_EXEC = Operation(
    "/pod/exec", POST, Exec, ExecResult, "Run a command in a pod.", ends_with_caller=True
)
HOST_IMAGES = Operation(
    "/host/images", GET, Nothing, list[str], "The images that a pod can be made from."
)
HOST_GPU_PS = Operation(
    "/host/gpu-ps",
    GET,
    GpuChoice,
    dict[str, list[GpuProcess]],
    "Per GPU, the processes on it and the pods that they are in.",
)
HOST_SPEC = Operation(
    "/host/spec", GET, Nothing, HostSpec, "Versions of podyd and of what it stands on."
)
IMAGE_LIST = Operation("/image/list", GET, Nothing, list[str], "The same as /host/images.")
IMAGE_INSPECT = Operation("/image/inspect", GET, OneImage, ImageInfo, "All about an image.")

OPERATIONS: tuple[Operation, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Operation)
)
