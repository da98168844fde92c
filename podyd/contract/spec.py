"""The HTTP API as one table.

Each `Operation` says its path, methods, parameters, who may call it and what it answers. The
router, `/help`, `/openapi.json` and the tests all read this table; nothing is declared twice.
Sizes are bytes, durations seconds, times ISO 8601 in UTC; -1 is a limit that is not set.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

from podyd.base.longtext import LongText
from podyd.contract.kinds import (
    CardChoice,
    Cards,
    Duration,
    Flag,
    Indices,
    Mode,
    Names,
    Param,
    Password,
    Pattern,
    PodName,
    PodPath,
    Size,
    SnapshotName,
    Tag,
    Text,
    TokenId,
    UserLogin,
    Whole,
    WholeOrNone,
    Window,
    Word,
    param,
    params_of,
)

# What Linux takes as one argument of a command: MAX_ARG_STRLEN of execve(2), less the final NUL.
MAX_COMMAND_BYTES = 128 * 1024 - 1

# A century: times beyond the year 9999 cannot be written.
MAX_HOURS = 876_600.0
MAX_DAYS = MAX_HOURS / 24
# Below that, the init of most images does not come up.
MIN_MEMORY_BYTES = 64 * 1024**2
# No image fits into less.
MIN_DISK_BYTES = 16 * 1024**2
MAX_CPUS = 4096
MAX_ROWS, MAX_COLUMNS = 1000, 1000
# What a client may be ahead of, or behind, a command that it talks to.
MAX_WINDOW_BYTES = 16 * 1024**2
MAX_LOG_LINES = 10_000
SIGNALS = ("INT", "TERM", "HUP", "QUIT", "KILL", "USR1", "USR2", "STOP", "CONT")
WHICH_CARDS = "all, none, how many (2), or which ones: indices (0,1 or 0,) or UUIDs"
HOW_LARGE = "how large its disk may become, such as 100GiB; without it, what profiles and quota say"


class Access(enum.Enum):
    """Who may call an operation."""

    OPEN = "everybody, without a login"
    MEMBER = "every member"
    ADMIN = "admins"
    SCRAPER = "admins, and the addresses of podyd.yaml's metrics.allow without a login"


class Proof(enum.Enum):
    """With what its caller must have logged in; the password serves for all."""

    READS = "a token of any scope: it tells what podyd knows, and nothing of what is in a pod"
    INSIDE = "a token of scope all: it reaches what is in a pod, also where it only looks at it"
    CHANGES = "a token of scope all: it changes something"
    ANY_TOKEN = "a token of any scope, though it changes something"  # noqa: S105 - no secret
    PASSWORD = "the password, and no token"  # noqa: S105 - no secret
    OLD_PASSWORD = "the password, also one that must be changed now, and no token"  # noqa: S105


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


TokenScope = Literal["all", "read"]


@dataclass(frozen=True)
class NewToken:
    name: str = param(Text(100), "what it is for, such as the machine that will keep it")
    days: float | None = param(
        Duration("days", MAX_DAYS), "for how long it works; without it 30", default=None
    )
    scope: TokenScope = param(
        Word(("all", "read")),
        "all that you may do, or read: what only looks, and at nothing that is in a pod",
        default="all",
    )


@dataclass(frozen=True)
class RevokeToken:
    id: str = param(TokenId(), "a token's id, or all")
    user: str | None = param(UserLogin(), "whose; somebody else's for admins", default=None)


@dataclass(frozen=True)
class OnePod:
    ins: str = param(PodName(), "the pod's name")


@dataclass(frozen=True)
class Create:
    ins: str = param(PodName(), "a name for the pod")
    image: str = param(Text(200), "an image of /host/images")
    gpus: CardChoice | None = param(Cards(), WHICH_CARDS, default=None)
    disk: int | None = param(Size(MIN_DISK_BYTES), HOW_LARGE, default=None)


@dataclass(frozen=True)
class NewSnapshot:
    ins: str = param(PodName(), "the pod's name")
    name: str | None = param(
        SnapshotName(), "a name for the snapshot; without it, the time in UTC", default=None
    )


@dataclass(frozen=True)
class OneSnapshot:
    ins: str = param(PodName(), "the pod's name")
    name: str = param(SnapshotName(), "a snapshot of /pod/snapshots")


@dataclass(frozen=True)
class Copy:
    ins: str = param(PodName(), "the pod that is copied")
    to: str = param(PodName(), "a name for the copy")
    snapshot: str | None = param(
        SnapshotName(), "the pod as it was at this snapshot; without it, as it is", default=None
    )
    gpus: CardChoice | None = param(Cards(), WHICH_CARDS, default=None)
    disk: int | None = param(Size(MIN_DISK_BYTES), HOW_LARGE, default=None)


@dataclass(frozen=True)
class OnePort:
    ins: str = param(PodName(), "the pod's name")
    port: int = param(Whole(1, 65535), "a port in the pod, such as 8888")


@dataclass(frozen=True)
class Commit:
    ins: str = param(PodName(), "the pod's name")
    tag: str | None = param(
        Tag(), "the image will be <user>-<tag>; without it, the pod's name", default=None
    )
    msg: str = param(Text(1000, minimum=0), "a description of the image", default="")


@dataclass(frozen=True)
class ChangeGpus:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice = param(Cards(), WHICH_CARDS)
    force: bool = param(Flag(), "1 takes cards away that a process of the pod uses", default=False)


@dataclass(frozen=True)
class ChangeLimits:
    ins: str = param(PodName(), "the pod's name")
    memory: int | None = param(
        Size(MIN_MEMORY_BYTES), "such as 8GiB; none: as its profiles say", default=None
    )
    cpu: int | None = param(
        WholeOrNone(MAX_CPUS), "how many CPUs; none: as its profiles say", default=None
    )
    disk: int | None = param(
        Size(MIN_DISK_BYTES), "such as 100GiB; none: what a new pod would have", default=None
    )


@dataclass(frozen=True)
class LeaseCards:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice = param(Cards(), WHICH_CARDS)
    hours: float = param(Duration("hours", MAX_HOURS), "for how long")


@dataclass(frozen=True)
class ReleaseCards:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice | None = param(
        Cards(),
        f"{WHICH_CARDS}; without it all, and the pod's place in line; none: that place alone",
        default=None,
    )
    force: bool = param(Flag(), "1 takes cards away that a process of the pod uses", default=False)


@dataclass(frozen=True)
class Exec:
    ins: str = param(PodName(), "the pod's name")
    cmd: str = param(
        Text(MAX_COMMAND_BYTES),
        "what /bin/bash -c, or /bin/sh where there is none, shall run, as root in the pod",
    )
    timeout: float | None = param(
        Duration(), "seconds after which all that it started is killed", default=None
    )


@dataclass(frozen=True)
class Shell:
    ins: str = param(PodName(), "the pod's name")
    rows: int = param(Whole(1, MAX_ROWS), "the terminal's height", default=24)
    cols: int = param(Whole(1, MAX_COLUMNS), "the terminal's width", default=80)


@dataclass(frozen=True)
class Start:
    """The first control message of a WebSocket: what shall run. It stands in no URL."""

    cmd: str | None = param(
        Text(MAX_COMMAND_BYTES),
        "what /bin/bash, or /bin/sh where there is none, shall run, as root in the pod; without it,"
        " /pod/shell is a login shell",
        default=None,
    )
    timeout: float | None = param(
        Duration(), "seconds after which all that it started is killed", default=None
    )
    window: int | None = param(
        Whole(1, MAX_WINDOW_BYTES),
        "so many bytes of output may be on their way before the client says that it took some",
        default=None,
    )
    term: str = param(
        Pattern(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", "a terminal's name, as of $TERM", maximum=40),
        "what kind of terminal a shell has",
        default="xterm-256color",
    )


@dataclass(frozen=True)
class OneFile:
    ins: str = param(PodName(), "the pod's name")
    path: str = param(PodPath(), "where it is in the pod, from / on; links are followed")
    format: Literal["stat", "tar"] | None = param(
        Word(("stat", "tar")),
        "stat: what it is; tar: a directory with all that is in it; without it, a file's bytes or"
        " what a directory has",
        default=None,
    )


@dataclass(frozen=True)
class PutFile:
    ins: str = param(PodName(), "the pod's name")
    path: str = param(PodPath(), "where it shall be in the pod, from / on; links are followed")
    format: Literal["tar"] | None = param(
        Word(("tar",)),
        "tar: the body is a tar file, and what is in it goes into the directory; without it, the"
        " body is the file",
        default=None,
    )
    mode: str | None = param(
        Mode(), "the file's; without it, that of the file before, or 644", default=None
    )
    mtime: int | None = param(
        Whole(0, 2**36), "when it was changed, in seconds since 1970; without it, now", default=None
    )


@dataclass(frozen=True)
class DeleteFile:
    ins: str = param(PodName(), "the pod's name")
    path: str = param(PodPath(), "what shall be deleted, from / on; of a link, the link itself")
    recursive: bool = param(
        Flag(),
        "1 deletes a directory with all that is in it, in a pod that runs; where something in it is"
        " mounted, nothing",
        default=False,
    )


@dataclass(frozen=True)
class LogsOf:
    ins: str = param(PodName(), "the pod's name")
    lines: int = param(Whole(1, MAX_LOG_LINES), "the last so many", default=100)
    since: float | None = param(
        Window(),
        "how far back, in seconds or as 2d 4h 5s; of a pod that runs, and without it all that it"
        " keeps",
        default=None,
    )


@dataclass(frozen=True)
class OneImage:
    image: str = param(Text(200), "an image of /host/images")


@dataclass(frozen=True)
class GpuIndices:
    id: tuple[int, ...] | None = param(
        Indices(),
        "GPU indices as nvidia-smi shows them, separated by commas",
        default=None,
        aliases=("gpu-id",),
    )


@dataclass(frozen=True)
class UsageOf:
    user: tuple[str, ...] | None = param(
        Names(), "user names, separated by commas; without it, all who have any", default=None
    )
    t: float | None = param(
        Window(),
        "how far back, in seconds or as 1y 2w 3d 4h 5s; without it, all that is kept",
        default=None,
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
    websocket: bool


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
    disk_limit: int
    disk_total: int
    max_snapshots: int
    max_ports: int
    max_images: int
    image_size: int


@dataclass(frozen=True)
class UserInfo:
    user: UserName
    quota: QuotaInfo


@dataclass(frozen=True)
class CreatedToken:
    """A new token; `token` is the secret itself, and is shown this once."""

    token: str
    id: str
    name: str
    scope: TokenScope
    created: str
    expires: str


@dataclass(frozen=True)
class TokenInfo:
    """A token without what is secret; `last_used` to the minute, null if it never was."""

    id: str
    name: str
    scope: TokenScope
    created: str
    expires: str
    last_used: str | None


@dataclass(frozen=True)
class Log:
    log: str


PodStatus = Literal["running", "stopped", "frozen", "error"]


@dataclass(frozen=True)
class PodInfo:
    """A pod; `name` is LXD's, `ins` the owner's; `uptime` is null unless it runs. `disk_used` is
    what LXD says, on btrfs without what it shares with its image, snapshots and copies; null where
    the storage cannot tell. `disk_limit` is null where the storage holds none."""

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
    disk_used: int | None
    disk_limit: int | None
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
class SnapshotInfo:
    """`size` in bytes; null where the storage cannot tell."""

    name: str
    created: str
    size: int | None


@dataclass(frozen=True)
class ListeningPort:
    """What listens in a pod; `host_port` leads there, null if none does. What listens on a loopback
    address (127.0.0.1, ::1) alone can be reached from within the pod only."""

    port: int
    address: str
    protocol: Literal["tcp"]
    host_port: int | None


@dataclass(frozen=True)
class Committed:
    """`holes` says what sparse files are in the image: as they were, or full of zeros; null where
    there are none of 64 MiB and more."""

    image_name: str
    holes: Literal["kept", "filled"] | None
    log: str


@dataclass(frozen=True)
class Progress:
    """How far an image is that is being made of a pod; null where none is, or LXD does not say.
    `percent` and `bytes_per_second` are of what is on the pod's disk, before it is compressed.
    `packing again`: LXD has slipped, and packs the same copy once more."""

    doing: Literal["copying", "packing", "packing again"] | None
    percent: int | None
    bytes_per_second: int | None


@dataclass(frozen=True)
class ExecResult:
    """`exit_code` is -1 if time was up; 128 + N if signal N ended the command.

    `log` has both streams as they came; after 16,384 changes from one to the other, first all the
    rest of stdout. `truncated` if there was more on a stream than is kept. `oom_killed` if the
    kernel has killed something for memory meanwhile, whatever the exit code; `memory_limit` is then
    the pod's, in bytes, -1 if it has none.
    """

    exit_code: int
    log: LongText
    stdout: LongText
    stderr: LongText
    timed_out: bool
    truncated: bool
    seconds: float
    oom_killed: bool
    memory_limit: int | None


@dataclass(frozen=True)
class Ended:
    """How a command that was talked to ended; the figures are those of ExecResult."""

    exit_code: int = -1
    timed_out: bool = False
    oom_killed: bool = False
    memory_limit: int | None = None


FileType = Literal["file", "directory", "link", "pipe", "socket", "device"]


@dataclass(frozen=True)
class Entry:
    """What a directory has; `name` is a name alone, with what is not UTF-8 replaced. `modified` is
    null for a time that no calendar has."""

    name: str
    type: FileType
    size: int
    mode: str
    modified: str | None


@dataclass(frozen=True)
class FileInfo:
    """What there is at a path; `mode` is octal, `modified` as in Entry. `entries` are those of a
    directory that was asked for as it is, else null; `truncated` if there were too many."""

    path: str
    type: FileType
    size: int
    mode: str
    modified: str | None
    entries: list[Entry] | None
    truncated: bool


@dataclass(frozen=True)
class PodLog:
    """`source` is the pod's own journal, its console, or LXC's log of its last start.

    `truncated` if the journal is not all here, as it is too large, or took too long to read.
    """

    log: LongText
    source: Literal["journal", "console", "lxc"]
    truncated: bool = False


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
    """A process on a GPU; `pod` is LXD's instance name, "" for a process of the host, and
    `<project>/<name>` for an instance that is no pod. `cmd` is `[<name>]` where there is no command
    line, or the process hangs so that it cannot be read."""

    pid: int
    pod: str
    cmd: str
    uptime: float | None
    memory_used: int | None
    gpu_memory_used: int | None
    idle: float | None


@dataclass(frozen=True)
class CardHolder:
    """A pod that has a card. `since` and `until` are those of its lease, null where it shares."""

    pod: str
    owner: str
    exclusive: bool
    since: str | None
    until: str | None


@dataclass(frozen=True)
class GpuInfo:
    """A card; null where it does not support the figure. Memory in bytes, utilisation in percent,
    temperature in degrees Celsius, power in watts; `idle`: for so many seconds nobody who holds it
    has used it, null where nobody holds it or where that cannot be known."""

    index: int
    uuid: str
    pci: str
    name: str
    driver: str | None
    memory_total: int | None
    memory_used: int | None
    utilisation: int | None
    temperature: int | None
    power: float | None
    power_limit: float | None
    idle: float | None
    problem: str | None
    pods: list[CardHolder]


@dataclass(frozen=True)
class LeasedCard:
    index: int
    uuid: str
    since: str
    until: str


@dataclass(frozen=True)
class LeaseResult:
    """`place` in line, from 1; 0 if the cards are attached."""

    log: str
    place: int
    leases: list[LeasedCard]


@dataclass(frozen=True)
class Waiting:
    """A pod in line for cards; `hours` is for how long it will have them."""

    place: int
    pod: str
    owner: str
    gpus: str
    hours: float
    since: str


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
# How a client talks to a command, over a WebSocket.
FRAMES = """\
Each message is binary, and its first byte says what the rest is: 0 stdin, 1 stdout, 2 stderr, 3
the end, 4 control; 3 and 4 are JSON. With a terminal all output is stdout. The client begins with
a control message that says what shall run ({"cmd": "make", "timeout": 60}, or {} for a shell),
within ten seconds; others are {"resize": {"rows": 24, "cols": 80}}, {"signal": "INT"} (to all
that the command started) and {"eof": true}. podyd's last message is 3 {"exit_code": 0,
"timed_out": false, "oom_killed": false, "memory_limit": null}, as of /pod/exec; if it was not the
command's own end, `detail` and `code` say why. podyd holds 262144 bytes of stdin that the command
has not read; it says {"taken": N}, the sum so far, as it goes on, and cuts a client off that sends
more. A client that has said {"window": BYTES} at first is sent no more than that ahead of its own
{"taken": N}; for others the connection itself is held back. podyd pings every 20 seconds; a client
that is silent for a minute has vanished, and all that the command started is killed."""


# What asks LXD or the database.
_BEHIND = ("/pod/", "/gpu/", "/host/", "/image/", "/stat/", "/metrics")


@dataclass(frozen=True)
class Operation:
    """One route. `methods` are all that it serves; `/help` shows `advised` alone, one per route."""

    path: str
    methods: tuple[str, ...]
    request: type
    answer: Any
    summary: str
    # What it takes is never taken for granted: a GET may well be a shell.
    proof: Proof = field(kw_only=True)
    access: Access = Access.MEMBER
    # What the request does ends when the caller hangs up; everything else is carried through.
    ends_with_caller: bool = False
    media: str = "application/json"
    # The first message of a WebSocket; `answer` is its last one, in between is FRAMES.
    first: type | None = None
    # Beside JSON, its answer may be, or its body is, a file or a tar file of any size.
    streamed: Literal["answer", "body"] | None = None
    # Nobody needs a shell's end: a podyd that stops does not wait for it.
    ends_with_podyd: bool = False

    @property
    def websocket(self) -> bool:
        """Whether it is talked to as long as it lasts."""
        return self.first is not None

    @property
    def holds_others_up(self) -> bool:
        """Whether others wait behind it, for LXD, a lock or the database.

        What goes on for long has a limit of its own, and so has the helper that knows the users.
        """
        goes_on = self.first is not None or self.streamed is not None or self.path == "/pod/exec"
        return not goes_on and self.path.startswith(_BEHIND)

    @property
    def advised(self) -> str:
        """The method that a client should choose: POST wherever it is served, for secrets' sake."""
        return "POST" if "POST" in self.methods else self.methods[0]

    def accepts(self, scope: TokenScope) -> bool:
        """Whether a token of this scope will do."""
        if self.proof in (Proof.INSIDE, Proof.CHANGES):
            return scope == "all"
        return self.proof not in (Proof.PASSWORD, Proof.OLD_PASSWORD)

    @property
    def params(self) -> tuple[Param, ...]:
        return params_of(self.request)


HELP = Operation(
    "/help", GET, HelpOf, list[HelpEntry], "The routes and their parameters.", proof=Proof.READS
)
VERSION = Operation(
    "/version", GET, Nothing, list[int], "podyd's version.", access=Access.OPEN, proof=Proof.READS
)
OPENAPI = Operation(
    "/openapi.json", GET, Nothing, dict[str, Any], "This API as OpenAPI 3.1.", proof=Proof.READS
)
USER_INFO = Operation(
    "/user/info", GET, Nothing, UserInfo, "The caller and their quota.", proof=Proof.READS
)
USER_LIST = Operation(
    "/user/list", GET, Nothing, list[UserName], "The members of this node.", proof=Proof.READS
)
USER_CH_PASSWD = Operation(
    "/user/ch-passwd",
    GET + POST,
    NewPassword,
    Log,
    "Change the caller's own Linux password, also one that has expired, and revoke their tokens.",
    proof=Proof.OLD_PASSWORD,
)
USER_TOKEN = Operation(
    "/user/token",
    POST,
    NewToken,
    CreatedToken,
    "Make a token, which a program can have instead of the password.",
    proof=Proof.PASSWORD,
)
USER_TOKENS = Operation(
    "/user/tokens", GET, Nothing, list[TokenInfo], "The caller's tokens.", proof=Proof.READS
)
USER_TOKEN_REVOKE = Operation(
    "/user/token-revoke",
    POST,
    RevokeToken,
    Log,
    "Revoke a token, or all; with a token none but itself.",
    proof=Proof.ANY_TOKEN,
)
POD_CREATE = Operation(
    "/pod/create", POST, Create, PodInfo, "Make a pod and start it.", proof=Proof.CHANGES
)
POD_DELETE = Operation(
    "/pod/delete",
    POST,
    OnePod,
    Log,
    "Delete a pod and all that is in it, for good.",
    proof=Proof.CHANGES,
)
POD_INFO = Operation("/pod/info", GET, OnePod, PodInfo, "All about a pod.", proof=Proof.READS)
POD_INSPECT = Operation(
    "/pod/inspect", GET, OnePod, PodInfo, "The same as /pod/info.", proof=Proof.READS
)
POD_LIST = Operation("/pod/list", GET, Nothing, list[str], "The caller's pods.", proof=Proof.READS)
POD_LISTALL = Operation(
    "/pod/listall",
    GET,
    Nothing,
    list[PodSummary],
    "Every pod with its owner.",
    access=Access.ADMIN,
    proof=Proof.READS,
)
POD_START = Operation("/pod/start", POST, OnePod, Log, "Start a pod.", proof=Proof.CHANGES)
POD_STOP = Operation("/pod/stop", POST, OnePod, Log, "Stop a pod.", proof=Proof.CHANGES)
POD_RESTART = Operation(
    "/pod/restart", POST, OnePod, Log, "Stop a pod and start it again.", proof=Proof.CHANGES
)
POD_SNAPSHOT = Operation(
    "/pod/snapshot",
    POST,
    NewSnapshot,
    SnapshotInfo,
    "Keep a pod's disk as it is now.",
    proof=Proof.CHANGES,
)
POD_SNAPSHOTS = Operation(
    "/pod/snapshots",
    GET,
    OnePod,
    list[SnapshotInfo],
    "A pod's snapshots, the oldest first.",
    proof=Proof.READS,
)
POD_RESTORE = Operation(
    "/pod/restore",
    POST,
    OneSnapshot,
    Log,
    "Make a pod's disk as it was; what came after is lost. A pod that runs is stopped for it.",
    proof=Proof.CHANGES,
)
POD_SNAPSHOT_DELETE = Operation(
    "/pod/snapshot-delete",
    POST,
    OneSnapshot,
    Log,
    "Delete a snapshot for good.",
    proof=Proof.CHANGES,
)
POD_PORT = Operation(
    "/pod/port",
    POST,
    OnePort,
    PodInfo,
    "Lead a port of the host, which podyd chooses, to a port of a pod.",
    proof=Proof.CHANGES,
)
POD_PORT_DELETE = Operation(
    "/pod/port-delete",
    POST,
    OnePort,
    Log,
    "Lead no port of the host to this port any longer.",
    proof=Proof.CHANGES,
)
POD_PORTS = Operation(
    "/pod/ports",
    GET,
    OnePod,
    list[ListeningPort],
    "What listens for TCP in a pod.",
    proof=Proof.READS,
)
POD_COPY = Operation(
    "/pod/copy",
    POST,
    Copy,
    PodInfo,
    "Make a new pod from a pod of the caller's, and start it.",
    proof=Proof.CHANGES,
)
POD_COMMIT = Operation(
    "/pod/commit",
    POST,
    Commit,
    Committed,
    "Make an image of the caller's own from a pod, which goes on running.",
    proof=Proof.CHANGES,
)
POD_COMMIT_CANCEL = Operation(
    "/pod/commit-cancel",
    POST,
    OnePod,
    Log,
    "End a /pod/commit that goes on; answered when that is over.",
    proof=Proof.CHANGES,
)
POD_PROGRESS = Operation(
    "/pod/progress",
    GET,
    OnePod,
    Progress,
    "How far /pod/commit is with a pod, while it goes on.",
    proof=Proof.READS,
)
POD_EXEC = Operation(
    "/pod/exec",
    POST,
    Exec,
    ExecResult,
    "Run a command in a pod.",
    ends_with_caller=True,
    proof=Proof.INSIDE,
)
POD_EXEC_STREAM = Operation(
    "/pod/exec-stream",
    GET,
    OnePod,
    Ended,
    "Run a command in a pod and talk to it meanwhile; a WebSocket.",
    ends_with_caller=True,
    first=Start,
    proof=Proof.INSIDE,
)
POD_SHELL = Operation(
    "/pod/shell",
    GET,
    Shell,
    Ended,
    "A terminal in a pod, with a shell or another command; a WebSocket.",
    ends_with_caller=True,
    first=Start,
    ends_with_podyd=True,
    proof=Proof.INSIDE,
)
POD_FILE = Operation(
    "/pod/file",
    GET,
    OneFile,
    FileInfo,
    "A file of a pod that runs, or what a directory has; headers X-Podyd-Size, -Mode and"
    " -Modified describe a file.",
    ends_with_caller=True,
    streamed="answer",
    proof=Proof.INSIDE,
)
POD_FILE_PUT = Operation(
    "/pod/file-put",
    POST,
    PutFile,
    Log,
    "Put a file, or a tar file's content, into a pod that runs: all of it, or nothing. The body is"
    " what it shall be; the parameters stand in the query.",
    ends_with_caller=True,
    streamed="body",
    proof=Proof.INSIDE,
)
POD_FILE_DELETE = Operation(
    "/pod/file-delete",
    POST,
    DeleteFile,
    Log,
    "Delete a file or a directory in a pod, also in one that is stopped, whose disk may be full.",
    ends_with_caller=True,
    proof=Proof.INSIDE,
)
POD_LOGS = Operation(
    "/pod/logs",
    GET,
    LogsOf,
    PodLog,
    "A pod's journal while it runs, its console and why it did not start while it is stopped.",
    ends_with_caller=True,
    proof=Proof.INSIDE,
)
POD_GPUS = Operation(
    "/pod/gpus",
    POST,
    ChangeGpus,
    PodInfo,
    "Change a pod's GPUs, also while it runs.",
    proof=Proof.CHANGES,
)
POD_LIMITS = Operation(
    "/pod/limits",
    POST,
    ChangeLimits,
    PodInfo,
    "Change a pod's memory, CPUs and disk while it runs.",
    proof=Proof.CHANGES,
)
GPU_LEASE = Operation(
    "/gpu/lease",
    POST,
    LeaseCards,
    LeaseResult,
    "Have GPUs for one pod alone, for a time.",
    proof=Proof.CHANGES,
)
GPU_QUEUE = Operation(
    "/gpu/queue",
    POST,
    LeaseCards,
    LeaseResult,
    "The same, in line where none is free now.",
    proof=Proof.CHANGES,
)
GPU_LINE = Operation(
    "/gpu/line", GET, Nothing, list[Waiting], "Who is in line for GPUs.", proof=Proof.READS
)
GPU_RELEASE = Operation(
    "/gpu/release",
    POST,
    ReleaseCards,
    LeaseResult,
    "Give leased GPUs back, or leave the line.",
    proof=Proof.CHANGES,
)
HOST_IMAGES = Operation(
    "/host/images",
    GET,
    Nothing,
    list[str],
    "The images that a pod can be made from; if none, header X-Podyd-Hint says how to get one.",
    proof=Proof.READS,
)
HOST_GPU_PS = Operation(
    "/host/gpu-ps",
    GET,
    GpuIndices,
    dict[str, list[GpuProcess]],
    "Per GPU, the processes on it and the pods that they are in.",
    proof=Proof.READS,
)
HOST_GPUS = Operation(
    "/host/gpus",
    GET,
    Nothing,
    list[GpuInfo],
    "The GPUs, what they do and which pods have them.",
    proof=Proof.READS,
)
HOST_SPEC = Operation(
    "/host/spec",
    GET,
    Nothing,
    HostSpec,
    "Versions of podyd and of what it stands on.",
    proof=Proof.READS,
)
METRICS = Operation(
    "/metrics",
    GET,
    Nothing,
    str,
    "podyd's figures for Prometheus.",
    access=Access.SCRAPER,
    media="text/plain; version=0.0.4; charset=utf-8",
    proof=Proof.READS,
)
IMAGE_LIST = Operation(
    "/image/list", GET, Nothing, list[str], "The same as /host/images.", proof=Proof.READS
)
IMAGE_INSPECT = Operation(
    "/image/inspect", GET, OneImage, ImageInfo, "All about an image.", proof=Proof.READS
)
IMAGE_DELETE = Operation(
    "/image/delete",
    POST,
    OneImage,
    Log,
    "Delete an image that the caller has committed.",
    proof=Proof.CHANGES,
)
STAT_CPUTIME = Operation(
    "/stat/cputime",
    GET,
    UsageOf,
    dict[str, float],
    "Per user, CPU seconds of their pods.",
    proof=Proof.READS,
)
STAT_GPUTIME = Operation(
    "/stat/gputime",
    GET,
    UsageOf,
    dict[str, float],
    "Per user, seconds for which processes of their pods held a GPU, added up over the GPUs.",
    proof=Proof.READS,
)

OPERATIONS: tuple[Operation, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Operation)
)
