"""The commands for every day: each is one or two calls, and a line or a table as the result."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from podyd.client import output, show, stream, terminal
from podyd.client.failure import Failure, Usage
from podyd.client.progress import waiting
from podyd.client.server import Answer, Server, server_of
from podyd.client.words import utf8

Row = Mapping[str, Any]
Command = Callable[[argparse.Namespace], int | None]
REFRESH_SECONDS = 2.0
FAILED = 255


class Add(Protocol):
    """Makes the parser of a command."""

    def __call__(self, name: str, command: Command, help: str) -> argparse.ArgumentParser: ...


def add_raw(made: argparse.ArgumentParser) -> None:
    made.add_argument("--raw", action="store_true", help="podyd's JSON, on a terminal too")


def add_cacert(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--cacert",
        metavar="FILE",
        help="trust the server by this CA alone (default: $PODY_CA, else the system's)",
    )


def add_gpus(made: argparse.ArgumentParser) -> None:
    made.add_argument("--gpus", help="all, none, a number of GPUs (2), or which ones (0,1)")


def add_disk(made: argparse.ArgumentParser) -> None:
    made.add_argument("--disk", metavar="SIZE", help="the limit of its disk, such as 100GiB")


def add_yes(made: argparse.ArgumentParser) -> None:
    made.add_argument("--yes", action="store_true", help="do not ask")


def add_words(add: Add) -> None:
    """The commands, with the arguments of each."""
    listed = add("ls", _ls, "List your pods.")
    listed.add_argument("-a", "--all", action="store_true", help="those of all users, for admins")
    new = of_pod(add("new", _new, "Create a pod and start it."))
    image = new.add_argument("--image", help="needed if there are several; see pody images")
    image.completer = complete("host/images")  # type: ignore[attr-defined]
    add_gpus(new)
    add_disk(new)
    removed = of_pod(add("rm", _rm, "Delete a pod with all its data and snapshots."))
    add_yes(removed)
    changing = [
        of_pod(add(name, _set_state, f"{name.capitalize()} a pod."))
        for name in ("start", "stop", "restart")
    ]
    for made in changing:
        made.set_defaults(route=f"pod/{made.prog.split()[-1]}")
    described = of_pod(add("info", _info, "Show information on a pod."))
    simple = [
        add("ps", _ps, "List the processes on the GPUs, and the pods that they run in."),
        add("gpus", _gpus, "List the GPUs with their utilisation, and the pods that have them."),
        add("images", _images, "List the images that a pod can be created from."),
    ]
    for made in (listed, new, removed, described, *changing, *simple):
        add_raw(made)
        add_cacert(made)
    live = add("top", _top, "Watch the GPUs and the processes on them; q ends it.")
    live.set_defaults(raw=False)
    add_cacert(live)
    _add_talking(add)


def _add_talking(add: Add) -> None:
    what = "Run a command in a pod, with its output as it comes; its exit status is pody's."
    run = of_pod(add("exec", _exec, what))
    run.add_argument(
        "words",
        nargs="*",
        metavar="COMMAND",
        help="after --: one word is a line for bash (sh in a pod without it); several are a command"
        " and its arguments",
    )
    run.add_argument(
        "--timeout", metavar="SECONDS", help="kill it after this time (default: never)"
    )
    entered = of_pod(add("shell", _shell, "Open a shell in a pod, on this terminal."))
    entered.add_argument("words", nargs="*", metavar="COMMAND", help="after --: run this instead")
    for made in (run, entered):
        made.set_defaults(raw=False, failed=FAILED)
        add_cacert(made)


def of_pod(made: argparse.ArgumentParser, help: str = "the pod's name") -> argparse.ArgumentParser:
    """The same parser, with a pod's name."""
    ins = made.add_argument("ins", metavar="POD", help=help)
    ins.completer = complete("pod/list")  # type: ignore[attr-defined]
    return made


# --- Commands -----------------------------------------------------------------------------------


def _exec(options: argparse.Namespace) -> int:
    if not options.words:
        raise Usage("Name a command: pody exec POD -- COMMAND.")
    server = server_of(options.cacert)
    return stream.execute(server, utf8(options.ins), _line(options.words), options.timeout)


def _shell(options: argparse.Namespace) -> int:
    command = _line(options.words) if options.words else None
    return stream.shell(server_of(options.cacert), utf8(options.ins), command)


def _line(words: Sequence[str]) -> str:
    return utf8(words[0] if len(words) == 1 else shlex.join(words))


# --- Pods ---------------------------------------------------------------------------------------


def _ls(options: argparse.Namespace) -> None:
    server = server_of(options.cacert)
    if options.all:
        write_rows(options, server.get("pod/listall").data, ("owner", "ins", "status", "image"))
    else:
        names = server.get("pod/list").data
        pods = [server.get("pod/info", [("ins", name)]).data for name in names]
        write_rows(options, pods, ("ins", "status", "image", "disk_used", "gpu_ids", "addresses"))
    output.remind(server)


def _new(options: argparse.Namespace) -> None:
    server = server_of(options.cacert)
    image = options.image or _only_image(server)
    doing = f"Making pod {options.ins} from {image}"
    more = [("image", image), ("gpus", options.gpus), ("disk", options.disk)]
    change(options, "pod/create", more, doing=doing, server=server, watched=options.ins)


def _only_image(server: Server) -> str:
    answer = server.get("host/images")
    names = [str(name) for name in answer.data]
    if len(names) == 1:
        return names[0]
    if names:
        raise Usage(f"Name an image: --image {' or '.join(names)}.")
    raise Usage(answer.hint or "No image is offered; your admin can make one.")


def _rm(options: argparse.Namespace) -> None:
    confirm(options, f"Delete pod {options.ins!r} with all its data and snapshots?")
    change(options, "pod/delete")


def confirm(options: argparse.Namespace, question: str) -> None:
    """Ask for confirmation, unless --yes is given. Raises Usage."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise Usage("There is no terminal to ask for confirmation; add --yes.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Usage("Nothing is done.")


def _set_state(options: argparse.Namespace) -> None:
    change(options, options.route)


def change(
    options: argparse.Namespace,
    route: str,
    more: Sequence[tuple[str, str | None]] = (),
    *,
    doing: str = "Waiting",
    server: Server | None = None,
    watched: str | None = None,
) -> None:
    """Call a route with the pod, and with those of `more` that are given; show the answer.

    Meanwhile a terminal shows `doing`, and how far the work on the pod `watched` is.
    """
    server = server or server_of(options.cacert)
    server.log_in()
    parameters = [(key, utf8(value)) for key, value in more if value is not None]
    with waiting(doing, partial(how_far, server, watched) if watched else None):
        answer = server.post(route, [("ins", utf8(options.ins)), *parameters])
    output.answered(route, answer, raw=options.raw)


def how_far(server: Server, ins: str) -> str:
    """How far the work on a pod is, as `packing 43 % (30 MiB/s)`; "" where podyd cannot tell."""
    with contextlib.suppress(Failure):
        progress = server.get("pod/progress", [("ins", utf8(ins))]).data
        parts = [progress["doing"] or ""]
        parts += [] if progress["percent"] is None else [f"{progress['percent']} %"]
        speed = progress["bytes_per_second"]
        parts += [] if speed is None else [f"({show.size(speed)}/s)"]
        return " ".join(parts)
    return ""


def _info(options: argparse.Namespace) -> None:
    answer = server_of(options.cacert).get("pod/info", [("ins", utf8(options.ins))])
    output.answered("pod/info", answer, raw=options.raw)


def _images(options: argparse.Namespace) -> None:
    output.answered("host/images", server_of(options.cacert).get("host/images"), raw=options.raw)


# --- GPUs ---------------------------------------------------------------------------------------

GPU_COLUMNS = ("index", "name", "utilisation", "memory_used", "memory_total", "temperature", "pods")
PROCESS_COLUMNS = ("gpu", "pid", "pod", "gpu_memory_used", "uptime", "cmd")


def _gpus(options: argparse.Namespace) -> None:
    server = server_of(options.cacert)
    answer = server.get("host/gpus")
    write_rows(options, answer.data, GPU_COLUMNS, _cards(answer))
    output.remind(server)


def _ps(options: argparse.Namespace) -> None:
    answer = server_of(options.cacert).get("host/gpu-ps")
    write_rows(options, answer.data, PROCESS_COLUMNS, _processes(answer))


def _cards(answer: Answer) -> list[Row]:
    return [{**card, "pods": [_holder(holder) for holder in card["pods"]]} for card in answer.data]


def _holder(holder: Row) -> str:
    # Older servers only name those that have it. Who has leased it has it, or gets it in a moment.
    has_it = holder.get("attached", True) or holder.get("exclusive")
    return f"{holder['pod']}{'' if has_it else ' (still on it)'}"


def _processes(answer: Answer) -> list[Row]:
    return [
        {"gpu": gpu, **process} for gpu, processes in answer.data.items() for process in processes
    ]


def _top(options: argparse.Namespace) -> None:
    terminal.need("top")
    server = server_of(options.cacert)
    text = _picture(server)  # What is refused is said on the first screen.
    with terminal.keys(all_of_them=False), terminal.second_screen():
        while True:
            terminal.show(text)
            if terminal.key(REFRESH_SECONDS) == "q":
                return
            text = _picture(server)


def _picture(server: Server) -> str:
    rows, cols = terminal.size()
    cards = show.table(_cards(server.get("host/gpus")), GPU_COLUMNS)
    processes = show.table(_processes(server.get("host/gpu-ps")), PROCESS_COLUMNS)
    lines = [f"podyd at {server.base}   {time.strftime('%H:%M:%S')}   q: end", "", *cards, ""]
    return "\r\n".join(show.cut(line, cols) for line in [*lines, *processes][:rows])


# --- Output and completion ----------------------------------------------------------------------


def write_rows(
    options: argparse.Namespace,
    data: Any,
    columns: Sequence[str],
    rows: Sequence[Row] | None = None,
) -> None:
    """Podyd's data as JSON, or their rows as a table of these columns."""
    if options.raw or not sys.stdout.isatty():
        output.write_json(json.dumps(data, ensure_ascii=False).encode())
    else:
        for line in show.table(data if rows is None else rows, columns):
            print(line)


def complete(
    route: str, name: Callable[[Any], object] = str, *, of_pod: bool = False
) -> Callable[..., list[str]]:
    """Completes with the `name` of all that a route lists, if that asks nobody and is soon there.

    With `of_pod` the route is of a pod, whose name stands before.
    """

    def names(parsed_args: argparse.Namespace | None = None, **_: object) -> list[str]:
        pairs = [("ins", parsed_args.ins)] if of_pod and parsed_args else []
        with contextlib.suppress(Failure):
            return [str(name(item)) for item in server_of(None).listed(route, pairs)]
        return []

    return names
