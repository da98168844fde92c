"""The commands that connect a member's machine to a pod: its ports, and ssh."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from operator import itemgetter

from podyd.client import forward, hostkeys, output, publickeys, ssh, usage
from podyd.client.daily import (
    FAILED,
    Add,
    add_cacert,
    add_raw,
    change,
    complete,
    of_pod,
    write_rows,
)
from podyd.client.failure import Failure, Refused, Usage
from podyd.client.forward import Ports
from podyd.client.server import Server, server_of
from podyd.client.words import utf8

PORT_COLUMNS = ("port", "protocol", "address", "host_port")
USED = ("cputime", "gputime")


def add_words(add: Add) -> None:
    """The commands, with the arguments of each."""
    _add_ports(add)
    _add_forward(add)
    _add_ssh(add)
    keyed = of_pod(add("copy-id", _copy_id, "Add your public ssh key to a pod."))
    keyed.add_argument(
        "file",
        nargs="?",
        metavar="KEYFILE",
        help="a public key (default: the first that ssh offers)",
    )
    used = add("stat", _stat, "Show how much GPU or CPU time each user has used.")
    used.add_argument("what", choices=USED, help="GPU time, or CPU time")
    used.add_argument(
        "time", nargs="?", metavar="TIME", help="the period up to now: 1y 1w 1d 1h, or seconds"
    )
    keyed.set_defaults(raw=False)
    add_raw(used)
    for made in (keyed, used):
        add_cacert(made)


def _add_ports(add: Add) -> None:
    what = "List the ports on which a pod listens, and the host's ports that are forwarded to it."
    listed = of_pod(add("ports", _ports, what))
    led = of_pod(add("port", _port, "Forward a port of the host, open to all, to a port of a pod."))
    ended = of_pod(add("port-rm", _port, "Stop forwarding a port of the host to this port."))
    heard = complete("pod/ports", itemgetter("port"), of_pod=True)
    for made, route in ((led, "pod/port"), (ended, "pod/port-delete")):
        port = made.add_argument("port", metavar="PORT", help="the pod's, such as 8888")
        port.completer = heard  # type: ignore[attr-defined]
        made.set_defaults(route=route)
    for made in (listed, led, ended):
        add_raw(made)
        add_cacert(made)


def _add_forward(add: Add) -> None:
    what = "Forward ports of this machine to a pod; without a port, list those that listen there."
    led = of_pod(add("forward", _forward, what))
    led.add_argument(
        "ports",
        nargs="*",
        metavar="[LOCAL:]PORT",
        help="the pod's port, and before it this machine's if that is another (0: any free one)",
    )
    led.add_argument("--stdio", action="store_true", help="forward standard input and output")
    led.add_argument(
        "--host-keys", action="store_true", help="first store the pod's host keys for ssh"
    )
    led.add_argument("--server", metavar="URL", help="instead of $PODY_API_BASE")
    led.add_argument("--user", metavar="NAME", help="instead of $PODY_USERNAME")
    add_raw(led)
    add_cacert(led)


def _add_ssh(add: Add) -> None:
    entered = [
        of_pod(add("ssh", _ssh, "Run ssh to a pod, as root, through podyd.")),
        of_pod(add("connect", _ssh, "The same as ssh.")),
    ]
    for made in entered:
        made.add_argument(
            "words",
            nargs=argparse.REMAINDER,
            metavar="WORD",
            help="options of ssh, and a command; options of pody go before POD",
        )
        made.set_defaults(raw=False, failed=FAILED)
    what = "Show the settings with which ssh, scp, rsync and VS Code reach your pods as pod-NAME."
    shown = add("ssh-config", _ssh_config, what)
    shown.add_argument("--write", action="store_true", help="write them to ~/.ssh")
    shown.set_defaults(raw=False)
    for made in (*entered, shown):
        add_cacert(made)


# --- Ports --------------------------------------------------------------------------------------


def _ports(options: argparse.Namespace) -> None:
    server, named = server_of(options.cacert), [("ins", utf8(options.ins))]
    info = server.get("pod/info", named).data
    listens = info["status"] in ("running", "frozen")
    listening = server.get("pod/ports", named).data if listens else []
    heard = {row["port"] for row in listening}
    pairs = [re.fullmatch(r"(\d+):(\d+)", pair) for pair in info["port_mapping"]]
    led = [(int(pair[2]), int(pair[1])) for pair in pairs if pair is not None]
    silent = [
        {"port": inner, "address": None, "protocol": "tcp", "host_port": host}
        for inner, host in led
        if inner not in heard
    ]
    rows = sorted([*listening, *silent], key=lambda row: row["port"])
    write_rows(options, rows, PORT_COLUMNS)
    if sys.stdout.isatty() and not options.raw:
        here, host = (f"pody {word} {options.ins} PORT" for word in ("forward", "port"))
        output.complain(f"To have one on this machine: {here}; on the host, for all: {host}.")


def _port(options: argparse.Namespace) -> None:
    change(options, options.route, [("port", options.port)])


def _forward(options: argparse.Namespace) -> None:
    # As ssh calls us, perhaps without the environment of the shell that its config was made in.
    if options.server is not None:
        os.environ["PODY_API_BASE"] = options.server
    if options.user is not None:
        os.environ["PODY_USERNAME"] = options.user
    ins = utf8(options.ins)
    ports = [Ports.of(word) for word in options.ports]
    server = server_of(options.cacert)
    if options.stdio and (len(ports) != 1 or ":" in options.ports[0]):
        raise Usage("With --stdio there is one port, the pod's: pody forward POD PORT --stdio.")
    if not ports:
        _list_ports(options, server, ins)
        return
    if options.host_keys:
        hostkeys.keep(server, ins)
    if options.stdio:
        forward.lead_standard(server, ins, ports[0].inside)
    else:
        _need_running(server, ins)
        forward.forward(server, ins, ports)


def _list_ports(options: argparse.Namespace, server: Server, ins: str) -> None:
    try:
        answer = server.get("pod/ports", [("ins", ins)])
    except Refused as refused:
        if refused.code != "no_such_route":
            raise
        raise Failure(
            f"This podyd cannot list a pod's ports; name one: pody forward {ins} 8888."
        ) from None
    write_rows(options, answer.data, PORT_COLUMNS)
    if sys.stdout.isatty() and not options.raw:
        output.complain(f"Name the ports to forward: pody forward {ins} PORT.")


def _need_running(server: Server, ins: str) -> None:
    status = server.get("pod/info", [("ins", ins)]).data["status"]
    if status != "running":
        raise Failure(f"Pod {ins} is {status}; start it: pody start {ins}")


# --- ssh ----------------------------------------------------------------------------------------


def _ssh(options: argparse.Namespace) -> int:
    cacert = _cacert(options)
    return ssh.run(server_of(cacert), utf8(options.ins), options.words, cacert)


def _ssh_config(options: argparse.Namespace) -> None:
    cacert = _cacert(options)
    server = server_of(cacert)
    names = _names(server)
    text = ssh.config(server, names, cacert)
    if not options.write:
        print(text, end="")
        return
    path = ssh.write(server, text)
    hosts = ", ".join(ssh.host(ins) for ins in names) or "none yet; create a pod, and repeat this"
    print(f"ssh now knows your pods ({path}): {hosts}.")


def _names(server: Server) -> Sequence[str]:
    names = server.get("pod/list").data
    # They go into a file that ssh takes commands from.
    if not all(isinstance(name, str) and re.fullmatch("[A-Za-z0-9_-]+", name) for name in names):
        raise server.no_podyd("its /pod/list is not podyd's")
    return list(names)


def _cacert(options: argparse.Namespace) -> str | None:
    return options.cacert or os.environ.get("PODY_CA") or None


def _copy_id(options: argparse.Namespace) -> None:
    ins = utf8(options.ins)
    key = publickeys.choose(options.file)
    publickeys.copy(server_of(options.cacert), ins, key)
    print(f"The key {key.source} can now log in to pod {ins}: pody ssh {ins}")


# --- Usage --------------------------------------------------------------------------------------


def _stat(options: argparse.Namespace) -> None:
    since = [("t", utf8(options.time))] if options.time else []
    answer = server_of(options.cacert).get(f"stat/{options.what}", since)
    if options.raw or not sys.stdout.isatty():
        output.write_json(answer.body)
    else:
        for line in usage.chart(answer.data):
            print(line)
