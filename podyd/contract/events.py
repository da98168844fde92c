"""The stream of what is so now, for pages that stay open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from podyd.contract.answers import Events
from podyd.contract.gpus import Waiting
from podyd.contract.host import CardHolder, GpuProcess, Intruder
from podyd.contract.operation import GET, Access, Ends, Nothing, Operation, Proof
from podyd.contract.pods import PodNow

# So often podyd sends a message at least, in seconds.
BEAT_SECONDS = 5.0
# Pods choose how many processes they have on a GPU, and their commands, and everybody who watches
# is sent all of it each second: so many processes of a GPU, and characters of a command.
MAX_PROCESSES = 64
MAX_COMMAND = 200

PROTOCOL = f"""podyd sends text messages of JSON; the client sends nothing. The first one has
`whole` and every value under its key. Each later one has what has changed: in `set` the values that
are new, whole, by their keys, and in `gone` the keys that are no more. There are at most 2 in a
second, and one each {BEAT_SECONDS:g} seconds at least, with nothing in it if nothing has changed. A
client that reads too slowly gets `whole` with everything again in place of what it has missed; one
that takes nothing for 30 seconds is disconnected (`too_slow`). A member may have 64 streams, and
where there are too many in all, who has the most loses one (`too_many_pages`)."""


@dataclass(frozen=True)
class Change:
    """What has changed since the last message; `time` is podyd's, to the millisecond."""

    time: str
    set: dict[str, Any]
    gone: list[str]


@dataclass(frozen=True)
class HostNow:
    """The host's name, and versions as in /host/spec. `problem`: a sentence while the engine does
    not answer, and what is said of cards and pods may be old; null if it does. Who has not logged
    in gets no words of the engine's own. `ends_sharers`: whether a lease ends what other pods
    compute on its GPUs, or waits for it; null before the engine answers."""

    name: str
    podyd: str
    engine: str
    lxd: str | None
    kernel: str
    nvidia_driver: str | None
    cuda: str | None
    problem: str | None
    ends_sharers: bool | None


@dataclass(frozen=True)
class CardNow:
    """A GPU as in /host/gpus, without how it is used, and with at most 64 `intruders`."""

    index: int
    uuid: str
    pci: str
    name: str
    memory_total: int | None
    power_limit: float | None
    problem: str | None
    pods: list[CardHolder]
    intruders: list[Intruder]


@dataclass(frozen=True)
class CardUse:
    """How a GPU is used: figures as in /host/gpus, processes as in /host/gpu-ps. Of all processes
    of the host itself, members see whose they are; who has not logged in sees no commands at all.
    Here are 64 processes at most, and of each command 200 characters, "?" for those that cannot be
    printed.
    """

    memory_used: int | None
    utilisation: int | None
    temperature: int | None
    power: float | None
    idle: float | None
    processes: list[GpuProcess]


@dataclass(frozen=True)
class PodLoadNow:
    """What a pod that runs uses: memory in bytes, without files that the kernel would drop first,
    and how many CPUs it keeps busy. null for what the kernel does not count."""

    memory_used: int | None
    cpu: float | None


@dataclass(frozen=True)
class PodWork:
    """A request that changes a pod and is under way: its call, since when, and whose it is."""

    operation: str
    since: str
    user: str


@dataclass(frozen=True)
class MeNow:
    """Who watches, and how many of their notices they have not read. `logins` is another number
    once their tokens or logins on the page have changed."""

    user: str
    is_admin: bool
    unread: int
    logins: int


@dataclass(frozen=True)
class AdminNow:
    """What admins can ask for anew once it has changed: `actions` is how many entries /admin/log
    has got since podyd's start, `findings` when those of /admin/doctor were written, null if there
    are none."""

    actions: int
    findings: str | None


EVENTS = Operation(
    "/events",
    GET,
    Nothing,
    Events(
        Change,
        PROTOCOL,
        values=(
            ("host", HostNow),
            ("gpu/<index>", CardNow),
            ("use/<index>", CardUse),
            ("queue", list[Waiting]),
            ("pod/<instance>", PodNow),
            ("load/<instance>", PodLoadNow),
            ("work/<instance>", PodWork),
            ("me", MeNow),
            ("admin", AdminNow),
        ),
    ),
    "What is so now, and then what changes: the host, its GPUs, the queue for them, and the"
    " caller's pods; an admin sees all pods (WebSocket).",
    access=Access.STATUS,
    proof=Proof.READS,
    ends=Ends.WITH_CALLER_OR_PODYD,
    takes_turns=False,
)
