"""The command line of `podyd`. Each command is a function of the parsed arguments."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from podyd import __version__
from podyd.base.errors import ConfigError, PodydError, SetupError
from podyd.client.completion import complete
from podyd.config.loader import load
from podyd.config.schema import DEFAULT_PATH, AuthConfig, Config

if TYPE_CHECKING:
    from podyd.engine.command import ImageCommand

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every error is one sentence and a non-zero exit status.

    The status is 78, EX_CONFIG of sysexits.h, if a retry cannot help: podyd.yaml is not valid, or
    'podyd setup' has not been run. Else it is 1.
    """
    whole = parser()
    complete(whole)
    options = whole.parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except PodydError as error:
        print(f"podyd: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has closed it; the flush at the exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    whole = argparse.ArgumentParser(
        prog="podyd", description="Pods (system containers with GPUs) for the members of a lab."
    )
    whole.add_argument("--version", action="version", version=f"podyd {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str,
        command: Command,
        help: str,
        among: argparse._SubParsersAction[argparse.ArgumentParser] = commands,
    ) -> argparse.ArgumentParser:
        made = among.add_parser(name, help=help, description=help)
        made.set_defaults(command=command)
        made.add_argument(
            "--config",
            type=Path,
            default=DEFAULT_PATH,
            metavar="FILE",
            help=f"the configuration (default: {DEFAULT_PATH})",
        )
        return made

    def group(name: str, help: str) -> argparse._SubParsersAction[argparse.ArgumentParser]:
        made = commands.add_parser(name, help=help, description=help)
        return made.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add("serve", _serve, "Serve the HTTP API in the foreground.")
    add("check", _check, "Say whether the configuration can be used.")
    setup = add("setup", _setup, "Prepare this machine and its engine; safe to run again.")
    setup.add_argument("--user", default="podyd", help="who runs 'podyd serve' (default: podyd)")
    auth = add("auth", _auth, "Ask PAM for 'podyd serve'; runs as root.")
    auth.add_argument("--user", default="podyd", help="who may ask (default: podyd)")
    auth.add_argument(
        "--pam-service", metavar="NAME", help="ask PAM as this service, and read no configuration"
    )
    packing = add(
        "packing", _packing, "Tell 'podyd serve' how large the engine's images become; as root."
    )
    packing.add_argument("--user", default="podyd", help="who may ask (default: podyd)")
    cards = add("cards", _cards, "Have the kernel refuse cards to pods that lack them; as root.")
    cards.add_argument("--user", default="podyd", help="who may ask (default: podyd)")
    add("ports", _ports, "Relay TCP into pods for 'podyd serve'; needs no rights.")
    nvml = add("nvml", _nvml, "Print what NVML says, a line of JSON a second; for podyd itself.")
    nvml.add_argument("--once", action="store_true", help="print one line and end")
    doctor = add("doctor", _doctor, "Say what is wrong on this machine, and what to type.")
    doctor.add_argument("--json", action="store_true", help="for programs: all that was looked at")
    doctor.add_argument(
        "--keep", action="store_true", help="also leave it for 'podyd serve', which shows it admins"
    )
    migrate = add("migrate", _migrate, "Move all pods from LXD to Incus on this machine.")
    migrate.add_argument("--user", default="podyd", help="who runs 'podyd serve' (default: podyd)")
    migrate.add_argument("--yes", action="store_true", help="do not ask")
    way = migrate.add_mutually_exclusive_group()
    way.add_argument("--dry-run", action="store_true", help="only say what will be done")
    way.add_argument(
        "--finish", action="store_true", help="delete what was moved from the old engine"
    )
    way.add_argument(
        "--back", action="store_true", help="use the old engine's pods again, as they were"
    )
    profiles = group("profiles", "Compare the engine's profiles with the files, or put them in.")
    for action, summary in (
        ("diff", "Show what the engine has that the files have not."),
        (
            "apply",
            "Put the files into the engine, those of /etc/podyd/profiles before podyd's own.",
        ),
        ("reset", "Put podyd's own files into the engine."),
    ):
        made = add(action, _profiles, summary, profiles)
        made.set_defaults(action=action)
        made.add_argument("name", nargs="*", help="a profile (default: all that have a file)")
    image = group("image", "Images for pods.")
    add("list", _image_list, "List the images that the engine offers to members.", image)
    build = add("build", _image_build, "Build a Debian or Ubuntu image for pods.", image)
    build.add_argument("alias", nargs="?", help="its name (default: after the release: debian12)")
    build.add_argument(
        "--suite",
        default="bookworm",
        help="the release: bookworm (the default) or trixie of Debian; jammy, noble or resolute of"
        " Ubuntu",
    )
    build.add_argument("--mirror", help="a mirror's URL (default: the distribution's own)")
    return whole


# Each command imports what it needs: `podyd check` starts without Tornado, the root helper without
# the engine's library.


def _serve(options: argparse.Namespace) -> int:
    from podyd.base import systemd
    from podyd.cli.serve import serve

    try:
        serve(options.config)
    except PodydError as error:
        systemd.failed(str(error))
        raise
    return 0


def _check(options: argparse.Namespace) -> int:
    from podyd.api import tls

    config = _configuration(options)
    if config.tls:
        tls.load(config.tls)
    print(f"{options.config} can be used; podyd would listen on {config.listen}.")
    return 0


def _setup(options: argparse.Namespace) -> int:
    from podyd.admin.setup import leave_reason, prepare

    config = _configuration(options)
    done: list[str] = []

    def say(text: str) -> None:
        done.append(text)
        print(text, flush=True)

    try:
        prepare(config, options.user, say)
    except SetupError as error:
        leave_reason(config.setup_error, str(error))
        raise
    # If there is none, its directory may be read-only.
    if config.setup_error.exists():
        config.setup_error.unlink()
    print("Set up." if done else "Nothing to do: all is set up.")
    return 0


def _auth(options: argparse.Namespace) -> int:
    from podyd.auth.server import serve

    # Started by a login, it must not depend on a file that may be half edited.
    settings = (
        AuthConfig(options.pam_service) if options.pam_service else _configuration(options).auth
    )
    account = _asking(options)
    try:
        serve(
            Path(settings.socket),
            allowed_uids=frozenset({account.pw_uid}),
            service=settings.pam_service,
            socket_owner=account.pw_uid,
            socket_group=account.pw_gid,
        )
    except (OSError, RuntimeError) as error:
        raise SetupError(f"'podyd auth' cannot serve {settings.socket}: {error}.") from error
    return 0


def _packing(options: argparse.Namespace) -> int:
    from podyd.engine.packing import serve

    def path_of() -> Path:
        return _configuration(options).packing_socket

    account = _asking(options)
    try:
        serve(path_of, uid=account.pw_uid, gid=account.pw_gid)
    except OSError as error:
        raise SetupError(f"'podyd packing' cannot serve its socket: {error}.") from error
    return 0


def _cards(options: argparse.Namespace) -> int:
    from podyd.node.card_server import kept_project, serve

    def path_of() -> Path:
        return _configuration(options).cards_socket

    directory, name = os.environ.get("STATE_DIRECTORY"), "permit.json"
    try:
        config = _configuration(options)
    except ConfigError as error:
        # Pods start all the same, and shall not have every card until the file is mended.
        project = kept_project(Path(directory, name)) if directory else ""
        if directory is None or not project:
            raise
        print(f"podyd cards: {error} What was kept counts.", file=sys.stderr)
    else:
        # Not below `state_dir`, which is podyd's own.
        directory = directory or f"{config.state_dir}-cards"
        project = config.lxd.project
    account = _asking(options)
    try:
        serve(
            path_of,
            Path(directory, name),
            project=project,
            uid=account.pw_uid,
            gid=account.pw_gid,
        )
    except OSError as error:
        raise SetupError(f"'podyd cards' cannot serve its socket: {error}.") from error
    return 0


def _asking(options: argparse.Namespace) -> pwd.struct_passwd:
    """The account that may use a helper."""
    try:
        return pwd.getpwnam(options.user)
    except KeyError:
        raise SetupError(
            f"There is no account {options.user!r} to ask.",
            advice="Run 'podyd setup' first.",
        ) from None


def _ports(options: argparse.Namespace) -> int:
    path = _configuration(options).ports.socket
    program = str(Path(__file__).parents[1] / "node" / "relay.py")
    # It replaces this process, whose modules it would otherwise keep in memory for months.
    os.execv(sys.executable, [sys.executable, "-IS", program, path, __version__])  # noqa: S606


def _nvml(options: argparse.Namespace) -> int:
    from podyd.node.nvml_process import run

    return run(lambda line: print(line, flush=True), once=options.once)


def _doctor(options: argparse.Namespace) -> int:
    from podyd.cli.doctor import run

    return run(options.config, as_json=options.json, keep=options.keep)


def _migrate(options: argparse.Namespace) -> int:
    from podyd.cli.migrate import run

    return run(options, _configuration(options))


def _profiles(options: argparse.Namespace) -> int:
    from podyd.cli.profiles import run

    return run(options.action, options.name, _configuration(options))


def _image_list(options: argparse.Namespace) -> int:
    from podyd.admin import base_image

    for alias in sorted(base_image.aliases(_images(options))):
        print(alias)
    return 0


def _images(options: argparse.Namespace) -> ImageCommand:
    from podyd.engine.command import ImageCommand
    from podyd.engine.dialect import chosen, place_of

    config = _configuration(options)
    dialect = chosen(config.engine, Path(config.state_dir))
    dialect.speak()
    return ImageCommand(dialect, place_of(dialect), config.lxd.project)


def _image_build(options: argparse.Namespace) -> int:
    from podyd.admin import base_image

    release = base_image.release(options.suite)
    alias = options.alias or release.alias
    base_image.build(
        alias,
        release,
        mirror=options.mirror,
        images=_images(options),
        progress=lambda text: print(text, flush=True),
    )
    print(f"Members can now make pods from {alias}.")
    return 0


def _configuration(options: argparse.Namespace) -> Config:
    """The configuration; a file that was named must exist, the default one need not."""
    if options.config != DEFAULT_PATH and not options.config.exists():
        raise SetupError(f"There is no file {options.config}.")
    return load(options.config)


if __name__ == "__main__":
    sys.exit(main())
