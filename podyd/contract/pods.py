"""Calls about pods: their lifecycle, snapshots, ports, files, logs and commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from podyd.base.longtext import LongText
from podyd.contract.answers import FileIn, FileOut, Json, WebSocket
from podyd.contract.kinds import (
    WHICH_CARDS,
    Cards,
    Duration,
    Flag,
    Mode,
    Pattern,
    PodName,
    PodPath,
    Size,
    SnapshotName,
    Tag,
    Text,
    Whole,
    WholeOrNone,
    Window,
    Word,
    param,
)
from podyd.contract.operation import GET, POST, Access, Ends, Log, Nothing, Operation, Proof
from podyd.engine.types import Status
from podyd.model.gpu import CardChoice

# Linux's limit of one argument of a command: MAX_ARG_STRLEN of execve(2), less the final NUL.
MAX_COMMAND_BYTES = 128 * 1024 - 1
# With less, the init of most images does not start.
MIN_MEMORY_BYTES = 64 * 1024**2
# No image fits in less.
MIN_DISK_BYTES = 16 * 1024**2
MAX_CPUS = 4096
MAX_ROWS, MAX_COLUMNS = 1000, 1000
# Limit of what is buffered in each direction between a client and its command.
MAX_WINDOW_BYTES = 16 * 1024**2
MAX_LOG_LINES = 10_000
SIGNALS = ("INT", "TERM", "HUP", "QUIT", "KILL", "USR1", "USR2", "STOP", "CONT")
HOW_LARGE = "how large its disk may become, such as 100GiB; without it, what profiles and quota say"
# The protocol between a client and a command, over a WebSocket.
FRAMES = """\
Each message is binary, and its first byte says what the rest is: 0 stdin, 1 stdout, 2 stderr, 3
the end, 4 control; 3 and 4 are JSON. With a terminal all output is stdout. The client begins with
a control message that says what shall run ({"cmd": "make", "timeout": 60}, or {} for a shell),
within ten seconds; others are {"resize": {"rows": 24, "cols": 80}}, {"signal": "INT"} (to all
that the command started) and {"eof": true}. podyd's last message is 3 {"exit_code": 0,
"timed_out": false, "oom_killed": false, "memory_limit": null}, as of /pod/exec; if it was not the
command's own end, `detail`, `advice` (if there is any) and `code` say why. podyd holds 262144 bytes
of stdin that the command has not read; it says {"taken": N}, the sum so far, as it goes on, and
cuts a client off that sends more. A client that has said {"window": BYTES} at first is sent no more
than that ahead of its own {"taken": N}; for others the connection itself is held back. podyd pings
every 20 seconds; a client that is silent for a minute has vanished, and all that the command
started is killed."""


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
class PodInfo:
    """A pod; `name` is LXD's, `ins` the owner's; `uptime` is null unless it runs. `disk_used` is
    what LXD says, on btrfs without what it shares with its image, snapshots and copies; null where
    the storage cannot tell. `disk_limit` is null where the storage holds none."""

    name: str
    ins: str
    owner: str
    status: Status
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
    status: Status
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


POD_CREATE = Operation(
    "/pod/create",
    POST,
    Create,
    Json(PodInfo),
    "Make a pod and start it.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_DELETE = Operation(
    "/pod/delete",
    POST,
    OnePod,
    Json(Log),
    "Delete a pod and all that is in it, for good.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_INFO = Operation(
    "/pod/info",
    GET,
    OnePod,
    Json(PodInfo),
    "All about a pod.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_INSPECT = Operation(
    "/pod/inspect",
    GET,
    OnePod,
    Json(PodInfo),
    "The same as /pod/info.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_LIST = Operation(
    "/pod/list",
    GET,
    Nothing,
    Json(list[str]),
    "The caller's pods.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_LISTALL = Operation(
    "/pod/listall",
    GET,
    Nothing,
    Json(list[PodSummary]),
    "Every pod with its owner.",
    access=Access.ADMIN,
    proof=Proof.READS,
)
POD_START = Operation(
    "/pod/start",
    POST,
    OnePod,
    Json(Log),
    "Start a pod.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_STOP = Operation(
    "/pod/stop",
    POST,
    OnePod,
    Json(Log),
    "Stop a pod.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_RESTART = Operation(
    "/pod/restart",
    POST,
    OnePod,
    Json(Log),
    "Stop a pod and start it again.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_SNAPSHOT = Operation(
    "/pod/snapshot",
    POST,
    NewSnapshot,
    Json(SnapshotInfo),
    "Keep a pod's disk as it is now.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_SNAPSHOTS = Operation(
    "/pod/snapshots",
    GET,
    OnePod,
    Json(list[SnapshotInfo]),
    "A pod's snapshots, the oldest first.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_RESTORE = Operation(
    "/pod/restore",
    POST,
    OneSnapshot,
    Json(Log),
    "Make a pod's disk as it was; what came after is lost. A pod that runs is stopped for it.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_SNAPSHOT_DELETE = Operation(
    "/pod/snapshot-delete",
    POST,
    OneSnapshot,
    Json(Log),
    "Delete a snapshot for good.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PORT = Operation(
    "/pod/port",
    POST,
    OnePort,
    Json(PodInfo),
    "Lead a port of the host, which podyd chooses, to a port of a pod.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PORT_DELETE = Operation(
    "/pod/port-delete",
    POST,
    OnePort,
    Json(Log),
    "Lead no port of the host to this port any longer.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PORTS = Operation(
    "/pod/ports",
    GET,
    OnePod,
    Json(list[ListeningPort]),
    "What listens for TCP in a pod.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_COPY = Operation(
    "/pod/copy",
    POST,
    Copy,
    Json(PodInfo),
    "Make a new pod from a pod of the caller's, and start it.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_COMMIT = Operation(
    "/pod/commit",
    POST,
    Commit,
    Json(Committed),
    "Make an image of the caller's own from a pod, which goes on running.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_COMMIT_CANCEL = Operation(
    "/pod/commit-cancel",
    POST,
    OnePod,
    Json(Log),
    "End a /pod/commit that goes on; answered when that is over.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PROGRESS = Operation(
    "/pod/progress",
    GET,
    OnePod,
    Json(Progress),
    "How far /pod/commit is with a pod, while it goes on.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_EXEC = Operation(
    "/pod/exec",
    POST,
    Exec,
    Json(ExecResult),
    "Run a command in a pod.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
    takes_turns=False,
)
POD_EXEC_STREAM = Operation(
    "/pod/exec-stream",
    GET,
    OnePod,
    WebSocket(Start, Ended, FRAMES),
    "Run a command in a pod and talk to it meanwhile; a WebSocket.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
    takes_turns=False,
)
POD_SHELL = Operation(
    "/pod/shell",
    GET,
    Shell,
    WebSocket(Start, Ended, FRAMES),
    "A terminal in a pod, with a shell or another command; a WebSocket.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER_OR_PODYD,
    takes_turns=False,
)
POD_FILE = Operation(
    "/pod/file",
    GET,
    OneFile,
    FileOut(FileInfo),
    "A file of a pod that runs, or what a directory has; headers X-Podyd-Size, -Mode and"
    " -Modified describe a file.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
    takes_turns=False,
)
POD_FILE_PUT = Operation(
    "/pod/file-put",
    POST,
    PutFile,
    FileIn(Log),
    "Put a file, or a tar file's content, into a pod that runs: all of it, or nothing. The body is"
    " what it shall be; the parameters stand in the query.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
    takes_turns=False,
)
POD_FILE_DELETE = Operation(
    "/pod/file-delete",
    POST,
    DeleteFile,
    Json(Log),
    "Delete a file or a directory in a pod, also in one that is stopped, whose disk may be full.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
)
POD_LOGS = Operation(
    "/pod/logs",
    GET,
    LogsOf,
    Json(PodLog),
    "A pod's journal while it runs, its console and why it did not start while it is stopped.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
)
POD_LIMITS = Operation(
    "/pod/limits",
    POST,
    ChangeLimits,
    Json(PodInfo),
    "Change a pod's memory, CPUs and disk while it runs.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
