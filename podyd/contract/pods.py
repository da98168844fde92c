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
    NewSnapshotName,
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
HOW_LARGE = "the limit of its disk, such as 100GiB; without it, as its profiles and the quota say"
# The protocol between a client and a command, over a WebSocket.
FRAMES = """\
Each message is binary. Its first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 end, 4
control; the rest is data, on channels 3 and 4 a JSON object. With a terminal, all output is on
channel 1. Within ten seconds the client sends a control message with what to run ({"cmd": "make",
"timeout": 60}; on /pod/shell {} is a login shell). Its later control messages are {"resize":
{"rows": 24, "cols": 80}}, {"signal": "INT"} (sent to all processes that the command started) and
{"eof": true} (the end of stdin). podyd's last message is on channel 3: {"exit_code": 0,
"timed_out": false, "oom_killed": false, "memory_limit": null}, as in the answer of /pod/exec; if
podyd ended the command or has lost output of it, `detail`, `code` and perhaps `advice` follow, as
in an error. podyd buffers 262144 bytes of stdin that the command has not read: it sends {"window":
262144} first and {"taken": N} as the command reads, N being the sum so far in bytes, and ends the
session of a client that sends more. A client whose first message has {"window": BYTES} gets at most
that many bytes of output beyond the N of the last {"taken": N} that it sent; for others, TCP's flow
control is the limit. podyd sends a ping every 20 seconds. If nothing comes from a client for 60
seconds, its connection is taken as lost, and all processes that the command started are killed."""


@dataclass(frozen=True)
class OnePod:
    ins: str = param(PodName(), "the pod's name")


@dataclass(frozen=True)
class Create:
    ins: str = param(PodName(), "a name for the new pod")
    image: str = param(Text(200), "the name of an image, from /host/images")
    gpus: CardChoice | None = param(Cards(), WHICH_CARDS, default=None)
    disk: int | None = param(Size(MIN_DISK_BYTES), HOW_LARGE, default=None)


@dataclass(frozen=True)
class NewSnapshot:
    ins: str = param(PodName(), "the pod's name")
    name: str | None = param(
        NewSnapshotName(), "a name for the snapshot; without it, the time now in UTC", default=None
    )


@dataclass(frozen=True)
class OneSnapshot:
    ins: str = param(PodName(), "the pod's name")
    name: str = param(SnapshotName(), "the name of a snapshot, from /pod/snapshots")


@dataclass(frozen=True)
class Copy:
    ins: str = param(PodName(), "the name of the pod to copy")
    to: str = param(PodName(), "a name for the copy")
    snapshot: str | None = param(
        SnapshotName(),
        "copy this snapshot of the pod; without it, the pod as it is now",
        default=None,
    )
    gpus: CardChoice | None = param(Cards(), WHICH_CARDS, default=None)
    disk: int | None = param(Size(MIN_DISK_BYTES), HOW_LARGE, default=None)


@dataclass(frozen=True)
class OnePort:
    ins: str = param(PodName(), "the pod's name")
    port: int = param(Whole(1, 65535), "a TCP port in the pod, such as 8888")


@dataclass(frozen=True)
class Commit:
    ins: str = param(PodName(), "the pod's name")
    tag: str | None = param(
        Tag(), "the image is named <user>-<tag>; without it, <user>-<the pod's name>", default=None
    )
    msg: str = param(Text(1000, minimum=0), "a description of the image", default="")


@dataclass(frozen=True)
class ChangeLimits:
    ins: str = param(PodName(), "the pod's name")
    memory: int | None = param(
        Size(MIN_MEMORY_BYTES),
        "a limit of its memory, such as 8GiB; none: that of a new pod",
        default=None,
    )
    cpu: int | None = param(
        WholeOrNone(MAX_CPUS), "how many CPUs it may use; none: that of a new pod", default=None
    )
    disk: int | None = param(
        Size(MIN_DISK_BYTES),
        "a limit of its disk, such as 100GiB; none: that of a new pod",
        default=None,
    )


@dataclass(frozen=True)
class Exec:
    ins: str = param(PodName(), "the pod's name")
    cmd: str = param(
        Text(MAX_COMMAND_BYTES),
        "a command for /bin/bash -c (/bin/sh -c in a pod without bash), run as root in the pod",
    )
    timeout: float | None = param(
        Duration(),
        "after how many seconds all processes that it started are killed; without it, podyd.yaml's"
        " exec_timeout",
        default=None,
    )


@dataclass(frozen=True)
class Shell:
    ins: str = param(PodName(), "the pod's name")
    rows: int = param(Whole(1, MAX_ROWS), "the terminal's height in rows", default=24)
    cols: int = param(Whole(1, MAX_COLUMNS), "the terminal's width in columns", default=80)


@dataclass(frozen=True)
class Start:
    """The first control message of a WebSocket: what to run. It is not in the URL, which is logged
    in many places."""

    cmd: str | None = param(
        Text(MAX_COMMAND_BYTES),
        "a command for /bin/bash, run as root in the pod (/pod/exec-stream: for /bin/sh if the pod"
        " has no bash); without it, /pod/shell runs a login shell",
        default=None,
    )
    timeout: float | None = param(
        Duration(),
        "after how many seconds all processes that it started are killed; without it, never",
        default=None,
    )
    window: int | None = param(
        Whole(1, MAX_WINDOW_BYTES),
        "how many bytes of output podyd may send before the client acknowledges some with taken;"
        " without it, podyd is limited by the connection alone",
        default=None,
    )
    term: str = param(
        Pattern(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", "a terminal's type as in $TERM", maximum=40),
        "the type of the terminal, for $TERM",
        default="xterm-256color",
    )


@dataclass(frozen=True)
class OneFile:
    ins: str = param(PodName(), "the pod's name")
    path: str = param(PodPath(), "the absolute path in the pod; symbolic links are followed")
    format: Literal["stat", "tar"] | None = param(
        Word(("stat", "tar")),
        "stat: information on it as JSON; tar: a directory with all its contents as a tar file;"
        " without it, a file's contents, or a directory's entries as JSON",
        default=None,
    )


@dataclass(frozen=True)
class PutFile:
    ins: str = param(PodName(), "the pod's name")
    path: str = param(PodPath(), "the absolute path in the pod; symbolic links are followed")
    format: Literal["tar"] | None = param(
        Word(("tar",)),
        "tar: the body is a tar file, which is unpacked into the directory at path; without it,"
        " the body is the file's contents",
        default=None,
    )
    mode: str | None = param(
        Mode(), "the file's mode; without it, that of the file it replaces, or 644", default=None
    )
    mtime: int | None = param(
        Whole(0, 2**36),
        "the file's modification time, in seconds since 1970 (UTC); without it, now",
        default=None,
    )


@dataclass(frozen=True)
class DeleteFile:
    ins: str = param(PodName(), "the pod's name")
    path: str = param(
        PodPath(), "the absolute path in the pod; of a symbolic link, the link itself is deleted"
    )
    recursive: bool = param(
        Flag(),
        "1: delete a directory with all its contents; the pod must run, and nothing may be mounted"
        " in the directory",
        default=False,
    )


@dataclass(frozen=True)
class LogsOf:
    ins: str = param(PodName(), "the pod's name")
    lines: int = param(Whole(1, MAX_LOG_LINES), "how many lines, from the end", default=100)
    since: float | None = param(
        Window(),
        "only what is not older than this, in seconds or as 2d 4h 5s; it applies to the journal, so"
        " to a pod that runs",
        default=None,
    )


@dataclass(frozen=True)
class PodNow:
    """A pod. `name` is the engine's name of the instance, `ins` the name that the owner uses.

    `image` is the name of the image that it was created from; `started` is when it was last
    started, null if it never was. `port_mapping` has `HOST:POD` for each TCP port of the host that
    is forwarded to a port of the pod. `gpu_ids` are indices as nvidia-smi shows them.
    `memory_limit` in bytes, `cpu_limit` in CPUs; -1 is no limit.

    `disk_used` in bytes as the engine reports it, on btrfs without the data that is shared with its
    image, snapshots and copies; null if the storage does not report it. `disk_limit` in bytes, -1
    if there is none; null if the storage does not support limits.
    """

    name: str
    ins: str
    owner: str
    status: Status
    image: str
    created: str
    started: str | None
    port_mapping: list[str]
    gpu_ids: list[int]
    memory_limit: int
    cpu_limit: int
    disk_used: int | None
    disk_limit: int | None
    profiles: list[str]


@dataclass(frozen=True)
class PodInfo(PodNow):
    """A pod as in /events, with what the engine has to be asked for: its IP addresses, and its
    uptime in seconds, null unless `status` is running."""

    addresses: list[str]
    uptime: float | None


@dataclass(frozen=True)
class PodSummary:
    """A pod. `name` is the engine's name of the instance, `ins` the name that the owner uses."""

    name: str
    ins: str
    owner: str
    status: Status
    image: str
    created: str


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot. `size` in bytes; null if the storage does not report it."""

    name: str
    created: str
    size: int | None


@dataclass(frozen=True)
class ListeningPort:
    """A TCP port on which a process in a pod listens, at `address`. `host_port` is the port of the
    host that is forwarded to it, null if none is. A port at a loopback address (127.0.0.1, ::1) is
    reachable only from inside the pod."""

    port: int
    address: str
    protocol: Literal["tcp"]
    host_port: int | None


@dataclass(frozen=True)
class Committed:
    """The new image. `holes`: `kept` if sparse files are sparse in the image too, `filled` if their
    holes are stored as zeros; null if the pod has less than 64 MiB of them."""

    image_name: str
    holes: Literal["kept", "filled"] | None
    log: str


@dataclass(frozen=True)
class Progress:
    """The progress of what takes long. `doing` is null if nothing of that is under way. Of
    /pod/commit it is `copying`, then `packing`, or `packing again` if the engine made a defective
    image and repeats it from the same copy; of /pod/create `unpacking` and of /pod/copy `copying`,
    then `starting`; of /pod/restore `restoring`, between `stopping` and `starting` if the pod ran.

    `percent` (0 to 100) and `bytes_per_second` are null while the engine does not report
    them. LXD 5.0 reports them of packing, as data on the pod's disk before compression, and of
    unpacking an image that is a tar archive, as those of /pod/commit are, as data of it."""

    doing: (
        Literal[
            "copying",
            "packing",
            "packing again",
            "unpacking",
            "stopping",
            "restoring",
            "starting",
        ]
        | None
    )
    percent: int | None
    bytes_per_second: int | None


@dataclass(frozen=True)
class ExecResult:
    """The result of a command. `exit_code` is -1 if it was killed at its timeout (`timed_out`),
    128 + N if signal N ended it. `seconds` is how long it ran.

    `stdout` and `stderr` are decoded as UTF-8. `log` has both in the order in which they were
    written; after 16,384 changes between the two, the rest of stdout comes before the rest of
    stderr. `truncated`: a stream had more output than podyd keeps (podyd.yaml's exec_output_max),
    and its end is missing. `oom_killed`: the kernel killed a process for lack of memory while the
    command ran, whatever `exit_code` is; `memory_limit` is then the pod's in bytes, -1 if it has
    none, and otherwise null.
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
    """How the command of a WebSocket ended; the fields are as in ExecResult. If podyd ended it or
    has lost output of it, `detail`, `code` and perhaps `advice` follow, as in Error."""

    exit_code: int = -1
    timed_out: bool = False
    oom_killed: bool = False
    memory_limit: int | None = None


FileType = Literal["file", "directory", "link", "pipe", "socket", "device"]


@dataclass(frozen=True)
class Entry:
    """An entry of a directory. `name` is without the directory, and bytes in it that are not UTF-8
    are replaced by U+FFFD. `size` in bytes, `mode` in octal, such as 0644. `modified` is null if
    its year is before 1000 or after 9999."""

    name: str
    type: FileType
    size: int
    mode: str
    modified: str | None


@dataclass(frozen=True)
class FileInfo:
    """A file or directory at a path; `size`, `mode` and `modified` are as in Entry. `entries` are
    those of a directory, null for anything else and with format=stat. `truncated`: there are more
    entries than one answer can have (10,000, or 2 MiB of names)."""

    path: str
    type: FileType
    size: int
    mode: str
    modified: str | None
    entries: list[Entry] | None
    truncated: bool


@dataclass(frozen=True)
class PodLog:
    """A pod's log. `source` is where it is from: the pod's journal, its console, or LXC's log of
    its last start, which failed. `truncated`: lines are missing, since the journal is too large or
    took too long to read.
    """

    log: LongText
    source: Literal["journal", "console", "lxc"]
    truncated: bool = False


POD_CREATE = Operation(
    "/pod/create",
    POST,
    Create,
    Json(PodInfo),
    "Create a pod and start it.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_DELETE = Operation(
    "/pod/delete",
    POST,
    OnePod,
    Json(Log),
    "Delete a pod with all its data and snapshots.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_INFO = Operation(
    "/pod/info",
    GET,
    OnePod,
    Json(PodInfo),
    "Information on a pod.",
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
    "The names of the caller's pods.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_LISTALL = Operation(
    "/pod/listall",
    GET,
    Nothing,
    Json(list[PodSummary]),
    "All pods with their owners; for admins only.",
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
    "Make a snapshot of a pod's disk.",
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
    "Restore a pod's disk from a snapshot; all later changes are lost. A pod that runs is stopped,"
    " and started again afterwards.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_SNAPSHOT_DELETE = Operation(
    "/pod/snapshot-delete",
    POST,
    OneSnapshot,
    Json(Log),
    "Delete a snapshot.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PORT = Operation(
    "/pod/port",
    POST,
    OnePort,
    Json(PodInfo),
    "Forward a TCP port of the host, which podyd chooses, to a port of a pod.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PORT_DELETE = Operation(
    "/pod/port-delete",
    POST,
    OnePort,
    Json(Log),
    "Stop forwarding a port of the host to this port of a pod.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PORTS = Operation(
    "/pod/ports",
    GET,
    OnePod,
    Json(list[ListeningPort]),
    "The TCP ports on which processes in a pod listen.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_COPY = Operation(
    "/pod/copy",
    POST,
    Copy,
    Json(PodInfo),
    "Copy a pod of the caller to a new pod, and start that.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_COMMIT = Operation(
    "/pod/commit",
    POST,
    Commit,
    Json(Committed),
    "Make an image of a pod, which only the caller can use; the pod continues to run.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_COMMIT_CANCEL = Operation(
    "/pod/commit-cancel",
    POST,
    OnePod,
    Json(Log),
    "Cancel the /pod/commit of a pod; answered when that has ended.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
POD_PROGRESS = Operation(
    "/pod/progress",
    GET,
    OnePod,
    Json(Progress),
    "The progress of the /pod/create, /pod/copy (by its new name), /pod/restore or /pod/commit of a"
    " pod.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_EXEC = Operation(
    "/pod/exec",
    POST,
    Exec,
    Json(ExecResult),
    "Run a command in a pod, and return its output when it has ended.",
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
    "Run a command in a pod, with its input and output as a stream; a WebSocket.",
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
    "Open a terminal in a pod, with a shell or another command; a WebSocket.",
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
    "Read a file or a directory of a pod that runs. Of a file, the headers X-Podyd-Size (in bytes),"
    " X-Podyd-Mode (in octal) and X-Podyd-Modified have what FileInfo has.",
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
    "Write a file, or unpack a tar file, in a pod that runs. The request's body is the file; the"
    " parameters are in the query. An upload that is cut off changes nothing.",
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
    "Delete a file or a directory in a pod. In a pod that is stopped, such as one whose disk is"
    " full, only a file or an empty directory.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
)
POD_LOGS = Operation(
    "/pod/logs",
    GET,
    LogsOf,
    Json(PodLog),
    "The journal of a pod that runs; of a stopped one, its console and why its last start failed.",
    access=Access.MEMBER,
    proof=Proof.INSIDE,
    ends=Ends.WITH_CALLER,
)
POD_LIMITS = Operation(
    "/pod/limits",
    POST,
    ChangeLimits,
    Json(PodInfo),
    "Change the limits of a pod's memory, CPUs or disk, also while it runs.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
