"""`pody` and `podx`: the command lines of a lab's members."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from podyd import __version__
from podyd.client import (
    daily,
    disk,
    files,
    kept,
    limits,
    logs,
    notices,
    output,
    reach,
    session,
    show,
)
from podyd.client.completion import complete
from podyd.client.failure import Failure, Refused, Usage
from podyd.client.login import proven, typed, with_token
from podyd.client.server import Server, base_of, server_of
from podyd.client.words import UNSEEN, from_stdin, split, utf8

Command = Callable[[argparse.Namespace], int | None]

EPILOG = """\
examples:
  pody login
  pody new first --image debian12
  pody exec first -- nvidia-smi -L
  pody shell first
  pody cp project first:
  pody logs first -f
  pody snapshot first before
  pody restore first before
  pody commit first torch
  pody copy-id first
  pody ssh first nvidia-smi
  pody forward first 8888
  pody port first 8888
  pody ports first
  pody ls
  pody get user/info
  pody post pod/create ins:first image:debian12
  podx pod/exec ins:first cmd:'nvidia-smi -L'
  podx pod/exec ins:first cmd: < script.sh
  pody passwd
  podx pod/

environment:
  PODY_API_BASE   podyd's address (default: http://127.0.0.1:8799)
  PODY_USERNAME   your account there (default: your local user name)
  PODY_PASSWORD   its password, or a token; without it, the token of pody login
                  is used, and if there is none, pody asks
  PODY_CA         a file with the CA by which your lab's server is trusted
  PODY_INSECURE   1: send the password over http:// to another machine too

exit status:
  0 done, 1 refused, 2 wrong usage, 3 wrong login, 4 no podyd that can be reached and trusted; of
  exec, shell and ssh the command's own, 124 if time was up, 130 after Ctrl-C, 255 if pody itself
  failed
"""
WORDS = (
    "The first ':' or '=' separates key and value. If the last value is empty (passwd:), it is read"
    " from standard input. A ROUTE that ends in '/' lists the calls below it."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """`pody`: run one command; every error is one line and an exit status of its own."""
    return _run(parser(), arguments)


def podx(arguments: Sequence[str] | None = None) -> int:
    """`podx`: call a route, by the method that podyd advises."""
    return _run(podx_parser(), arguments)


def parser() -> argparse.ArgumentParser:
    """The command line of `pody`."""
    whole = _command_line("pody", "Your pods on the lab's GPU server.")
    whole.add_argument("--version", action="version", version=f"pody {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(command=command)
        return made

    _add_call(add("get", _get, "Make a call with GET, which only reads."))
    _add_call(add("post", _post, "Make a call with POST, which changes something."))
    _add_call(add("fetch", _fetch, "Make a call with the method that podyd advises (as podx)."))
    for made in (
        add("login", _begin, "Store a token on this machine, so that pody asks for no password."),
        add("logout", _end, "Revoke that token and delete it."),
        add("passwd", _passwd, "Change your password, which may have expired."),
    ):
        made.set_defaults(raw=False)
        daily.add_cacert(made)
    daily.add_words(add)
    disk.add_words(add)
    reach.add_words(add)
    files.add_words(add)
    logs.add_words(add)
    limits.add_words(add)
    notices.add_words(add)
    about = add("help", _help, "Show the calls of podyd and their parameters.")
    route = about.add_argument(
        "route", nargs="?", default="/", metavar="ROUTE", help="a call, or a prefix such as pod/"
    )
    route.completer = _routes  # type: ignore[attr-defined]
    daily.add_raw(about)
    daily.add_cacert(about)
    version = add("version", _version, "Show the versions of pody and of podyd.")
    version.set_defaults(raw=False)
    daily.add_cacert(version)
    return whole


def podx_parser() -> argparse.ArgumentParser:
    """The command line of `podx`."""
    whole = _command_line(
        "podx", "Make a call of podyd with the method that it advises: the same as pody fetch."
    )
    whole.set_defaults(command=_fetch)
    _add_call(whole)
    return whole


def _command_line(prog: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


_routes = daily.complete("help", lambda entry: entry["path"].lstrip("/"))


def _add_call(made: argparse.ArgumentParser) -> None:
    route = made.add_argument("route", metavar="ROUTE", help="such as user/info; see pody help")
    route.completer = _routes  # type: ignore[attr-defined]
    made.add_argument("params", nargs="*", metavar="key:value", help=WORDS)
    daily.add_raw(made)
    daily.add_cacert(made)


def parse(command_line: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; an option may stand among the parameters.

    What follows -- is a command, and nothing of it is ours.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, more = command_line.parse_known_args(arguments[:end])
    if "words" in options:
        options.words += arguments[end + 1 :]
    elif end < len(arguments):
        more += arguments[end:]
    # What comes after an option, argparse leaves over.
    if more and ("params" not in options or any(word.startswith("-") for word in more)):
        command_line.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.params += more
    return options


def _run(command_line: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    _open_streams()
    complete(command_line)
    options = parse(command_line, sys.argv[1:] if arguments is None else arguments)
    try:
        return _do(options)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        _drop_output()
        # The reader has gone, which is no error of ours; EINVAL is how Windows says it.
        if error.errno in (errno.EPIPE, errno.EINVAL):
            return 141
        output.complain(f"The answer cannot be written: {error.strerror}.")
        return Failure.status


def _do(options: argparse.Namespace) -> int:
    command: Command = options.command
    try:
        status = command(options) or 0
    except Failure as failure:
        if isinstance(failure, Refused) and options.raw:
            output.write_json(failure.body)
        output.complain(str(failure))
        # A command's own exit status is not to be mistaken for one of these.
        status = vars(options).get("failed") or failure.status
    sys.stdout.flush()
    return status


def _open_streams() -> None:
    """Those that the caller has closed are /dev/null, else a connection would take their place.

    A terminal or a pipe that is not UTF-8 gets what it can show, and no error.
    """
    nothing = Path(os.devnull)
    sys.stdin = sys.stdin or nothing.open()
    sys.stdout = sys.stdout or nothing.open("w")
    sys.stderr = sys.stderr or nothing.open("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Nobody takes our output; nothing may complain at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- Commands -----------------------------------------------------------------------------------


def _get(options: argparse.Namespace) -> None:
    _call(options, server_of(options.cacert), "GET")


def _post(options: argparse.Namespace) -> None:
    _call(options, server_of(options.cacert), "POST")


def _fetch(options: argparse.Namespace) -> None:
    _call(options, server_of(options.cacert), "")


def _help(options: argparse.Namespace) -> None:
    _show_routes(options, server_of(options.cacert))


def _version(options: argparse.Namespace) -> None:
    print(f"pody {__version__}", flush=True)
    server = server_of(options.cacert)
    print(f"podyd {server.version()} at {server.base}")


def _begin(options: argparse.Namespace) -> None:
    before = kept.load(base_of())
    server = server_of(options.cacert, typed)
    message = session.begin(server)
    if before is not None:
        # It may have ended already; the new one is kept in any case.
        with contextlib.suppress(Failure):
            session.revoke(server_of(options.cacert, lambda _: with_token(before)), before.id)
    print(message)
    output.remind(server)


def _end(options: argparse.Namespace) -> None:
    token = kept.load(base_of())
    if token is None:
        print(f"You are not logged in at {base_of()}.")
    else:
        print(session.end(server_of(options.cacert, lambda _: with_token(token)), token.id))


def _passwd(options: argparse.Namespace) -> None:
    print(session.change(server_of(options.cacert, proven)))


def _call(options: argparse.Namespace, server: Server, method: str) -> None:
    """Call a route and show the answer; without a method, by the one that podyd advises."""
    pairs = [split(word) for word in options.params]
    if options.route.endswith("/"):
        _show_routes(options, server)
        return
    route = utf8(options.route)
    method = method or server.routes(route).data[0]["methods"][0]
    if method == "GET":
        _refuse_secrets(pairs)
    elif any(key == UNSEEN and value for key, value in pairs):
        output.complain(
            "Other accounts could read the new password in the list of processes; leave it empty"
            f" ({UNSEEN}:) next time, and pody asks for it."
        )
    if pairs and not pairs[-1][1]:
        key = pairs[-1][0]
        pairs[-1] = key, from_stdin(key)
    answer = server.get(route, pairs) if method == "GET" else server.post(route, pairs)
    output.answered(options.route, answer, raw=options.raw)


def _refuse_secrets(pairs: Sequence[tuple[str, str]]) -> None:
    if any(key == UNSEEN for key, _ in pairs):
        raise Usage("With GET the password would be in a URL; use pody post.")


def _show_routes(options: argparse.Namespace, server: Server) -> None:
    """Text, also for a pager; JSON only where it is asked for."""
    answer = server.routes(utf8(options.route))
    if options.raw:
        output.write_json(answer.body)
    else:
        sys.stdout.write(show.routes(answer.data))


if __name__ == "__main__":
    sys.exit(main())
