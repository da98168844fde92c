"""Writes the man pages and the example podyd.yaml, from what the code declares.

PYTHONPATH=. python3 docs/manual.py daemon|client DIRECTORY: the pages of one of the two Debian
packages. SOURCE_DATE_EPOCH is the pages' date. No library writes them, so that they have the same
bytes on every release of Debian and of Python; what it takes is what the code that is described
imports: for client nothing, for daemon PyYAML.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from podyd.config.loader import Key

# The sections of a page that no parser knows: a text, or terms with what they are.
PODYD: dict[str, str | dict[str, str]] = {
    "FILES": {
        "/etc/podyd/podyd.yaml": "Settings, see podyd.yaml(5).",
        "/etc/podyd/profiles/*.yaml": (
            "Profiles of the admin's own; 'podyd profiles apply' puts them into LXD or Incus."
        ),
        "/usr/share/podyd/profiles/*.yaml": "The profiles of the package.",
        "/etc/pam.d/podyd": "Who may log in, and how a password is changed.",
        "/run/podyd": "The Unix sockets of 'podyd auth', 'podyd packing' and 'podyd cards'.",
        "/run/podyd-ports": "The Unix socket of 'podyd ports'.",
        "/var/lib/podyd": (
            "podyd's certificate for LXD or Incus, the usage history, tokens and notices."
        ),
        "/var/lib/podyd-cards": "Which cards each pod may open: the last table of 'podyd cards'.",
    },
    "SIGNALS": {
        "SIGHUP": "Read the configuration again; if the new one is wrong, the old one is kept.",
        "SIGTERM": (
            "End. Running requests have ten seconds; a longer command is ended, and its caller"
            " gets the error 503."
        ),
    },
    "EXIT STATUS": {
        "0": "Done, or nothing to do. podyd doctor: no problem.",
        "1": "It failed; one sentence on standard error says why.",
        "2": "The command line is wrong.",
        "78": (
            "A retry does not help (EX_CONFIG): podyd.yaml or its TLS files cannot be used, or"
            " podyd is not set up. systemd does not start podyd again then."
        ),
    },
    "SEE ALSO": "podyd.yaml(5), pody(1), lxc(1), incus(1), /usr/share/doc/podyd/README.Debian",
}

PODY: dict[str, str | dict[str, str]] = {
    "FILES": {
        "~/.config/pody/*.json": (
            "The tokens of pody login, one for each server; $XDG_CONFIG_HOME replaces ~/.config."
        ),
        "~/.config/pody/known_hosts/*": "The ssh host keys of pods, as podyd reported them last.",
        "~/.ssh/pody.d/*.conf": (
            "The settings that pody ssh-config --write made; ~/.ssh/config includes them."
        ),
    },
    "SEE ALSO": "podx(1), ssh(1), ssh_config(5), podyd(8)",
}

# What a help text says well enough.
OBVIOUS = ("", "text", "a list")


def main(arguments: list[str]) -> int:
    """Write the pages of `daemon` or of `client` into a directory."""
    if len(arguments) != 2 or arguments[0] not in ("daemon", "client"):
        print("usage: manual.py daemon|client DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(arguments[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (daemon() if arguments[0] == "daemon" else client()).items():
        (directory / name).write_text(text, encoding="utf-8")
    return 0


def daemon() -> dict[str, str]:
    """The files of the package podyd."""
    from podyd.cli.main import parser

    return {
        "podyd.8": command_page(parser(), 8, PODYD),
        "podyd.yaml.5": settings_page(),
        "podyd.yaml": example(),
    }


def client() -> dict[str, str]:
    """The files of the package podyd-client."""
    from podyd.client.main import parser, podx_parser

    return {
        "pody.1": command_page(parser(), 1, PODY),
        "podx.1": command_page(podx_parser(), 1, {"SEE ALSO": "pody(1), podyd(8)"}),
    }


# The pages.


def command_page(
    parser: argparse.ArgumentParser, section: int, more: Mapping[str, str | dict[str, str]]
) -> str:
    """A command's page: its options, then each of its commands with theirs."""
    commands = list(_commands(parser))
    lines = [
        *_head(parser.prog, section),
        *_section("NAME", f"{parser.prog} - {_phrase(parser.description)}"),
        ".SH SYNOPSIS",
        _synopsis(parser),
        *_section("DESCRIPTION", parser.description or ""),
        ".SH OPTIONS",
        *_options(parser),
    ]
    if commands:
        lines.append(".SH COMMANDS")
    for command in commands:
        lines += [".SS " + _quoted(command.prog.partition(" ")[2])]
        lines += [_synopsis(command), ".PP", *_text(command.description or "")]
        lines += [*_options(command, help=False), *_epilog(command)]
    lines += _epilog(parser)
    for title, content in more.items():
        lines += _section(title, content)
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """The page of podyd.yaml."""
    from podyd.config.loader import keys
    from podyd.config.schema import DEFAULT_PATH

    lines = [
        *_head("podyd.yaml", 5),
        *_section("NAME", "podyd.yaml - settings of podyd"),
        *_section("SYNOPSIS", str(DEFAULT_PATH)),
        *_section(
            "DESCRIPTION",
            "A file in YAML. Every key is optional, and an empty file is valid; a key that is not"
            " known or a value that cannot be used is refused with what was expected. 'podyd check'"
            " shows that, and 'systemctl reload podyd' makes a running podyd read it again. The key"
            " auth.admin_groups is written as admin_groups below auth. All keys with their defaults"
            " are in /usr/share/doc/podyd/examples/podyd.yaml.",
        ),
        ".SH KEYS",
    ]
    for key in keys():
        lines += [".TP", f".B {_escaped(key.path)}", *_text(key.help)]
        if key.expected not in OBVIOUS:
            lines += [".br", *_text(f"Expected: {key.expected}.")]
        if key.has_default:
            lines += [".br", *_text(f"Default: {key.value}")]
    lines += _section("SEE ALSO", "podyd(8), /usr/share/doc/podyd/README.Debian")
    return "\n".join(lines) + "\n"


def example() -> str:
    """A podyd.yaml that sets nothing: each key with its default, behind a #."""
    from podyd.config.loader import keys

    lines = [
        "# All keys of /etc/podyd/podyd.yaml with their defaults; see podyd.yaml(5). Copy what",
        "# you need, with the section above it, without the # at the start of the line.",
    ]
    for key in keys():
        lines += _example_of(key)
    return "\n".join(lines) + "\n"


def _example_of(key: Key) -> Iterator[str]:
    depth = key.path.count(".")
    margin = "#" + "  " * depth
    before = f"{margin}# " if depth else "# "
    if depth == 0:
        yield ""
    says = key.help
    if key.expected not in OBVIOUS:
        says += f" Expected: {key.expected}."
    yield from textwrap.wrap(
        says, 80, initial_indent=before, subsequent_indent=before, break_on_hyphens=False
    )
    name = key.path.rpartition(".")[2]
    yield f"{margin}{name}:" if key.value is None else f"{margin}{name}: {key.value}"


# roff.


def _head(name: str, section: int) -> list[str]:
    from podyd import __version__

    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    date = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).date()
    return [
        r".\" Written by docs/manual.py.",
        f'.TH {name.upper()} {section} "{date}" "podyd {__version__}"',
        # No justified lines, no hyphens in the middle of words.
        ".nh",
        ".ad l",
    ]


def _section(title: str, content: str | dict[str, str]) -> list[str]:
    if isinstance(content, str):
        return [f".SH {title}", *_text(content)]
    lines = [f".SH {title}"]
    for term, text in content.items():
        lines += [".TP", f".B {_escaped(term)}", *_text(text)]
    return lines


def _epilog(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Its paragraphs; what stands indented under `a title:` is a section, line by line."""
    for paragraph in (parser.epilog or "").strip("\n").split("\n\n"):
        title, _, body = paragraph.partition("\n")
        if title.endswith(":") and body:
            lines = textwrap.dedent(body).splitlines()
            yield from (".SH " + title.rstrip(":").upper(), ".nf", *map(_escaped, lines), ".fi")
        elif paragraph:
            yield from (".PP", *_text(paragraph))


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, those of groups (`image build`) too, in their order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            seen: list[argparse.ArgumentParser] = []
            for command in action.choices.values():
                if command in seen:
                    continue  # another name of it
                seen.append(command)
                below = list(_commands(command))
                yield from below or [command]


def _synopsis(parser: argparse.ArgumentParser) -> str:
    words = [f"\\fB{_escaped(parser.prog)}\\fR"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            words.append("\\fICOMMAND\\fR ...")
        elif action.help == argparse.SUPPRESS:
            continue
        elif action.option_strings:
            word = _option(action, action.option_strings[-1])
            words.append(word if action.required else f"[{word}]")
        else:
            words.append(_operand(action))
    return " ".join(words)


def _operand(action: argparse.Action) -> str:
    name = f"\\fI{_escaped(_metavar(action))}\\fR"
    match action.nargs:
        case "?":
            return f"[{name}]"
        case "*" | argparse.REMAINDER:
            return f"[{name} ...]"
        case "+":
            return f"{name} ..."
    return name


def _option(action: argparse.Action, name: str) -> str:
    word = f"\\fB{_escaped(name)}\\fR"
    return word if action.nargs == 0 else f"{word} \\fI{_escaped(_metavar(action))}\\fR"


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return action.dest.upper()


def _options(parser: argparse.ArgumentParser, *, help: bool = True) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._HelpAction) and not help:
            continue
        if action.option_strings:
            term = ", ".join(_option(action, name) for name in action.option_strings)
        else:
            term = _operand(action)
        yield from (".TP", term, *_text(_help(parser, action)))


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction):
        return "Show the options and end."
    if isinstance(action, argparse._VersionAction):
        return "Show the version and end."
    values = {**vars(action), "prog": parser.prog}
    return (action.help or "") % values


def _phrase(text: str | None) -> str:
    """The first sentence without its full stop, as whatis(1) shows it."""
    first = (text or "").strip().partition(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:] if first[1:2].islower() else first


def _text(text: str) -> list[str]:
    """Paragraphs, which an empty line parts."""
    lines: list[str] = []
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        lines += [".PP"] if number else []
        lines += [_escaped(" ".join(paragraph.split()))]
    return lines


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', r"\(dq") + '"'


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
