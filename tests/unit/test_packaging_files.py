"""What can be said about the Debian packages without building them."""

from __future__ import annotations

import argparse
import ast
import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from docs import manual
from podyd import __version__
from podyd.base.errors import PodydError
from podyd.cli.main import parser
from podyd.config.loader import Key, keys, parse
from podyd.config.schema import Config

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "debian"


def read(name: str) -> str:
    return (DEBIAN / name).read_text(encoding="utf-8")


def test_the_package_has_podyds_version() -> None:
    match = re.match(r"podyd \(([^)]+)\) ", read("changelog"))
    assert match is not None
    assert match[1] == __version__


def test_the_pinned_wheels_are_those_that_the_copyright_names() -> None:
    pinned = re.findall(r"^([\w-]+)==([\w.]+) ", read("vendor.txt"), re.MULTILINE)
    assert len(pinned) == 3
    for name, version in pinned:
        assert f"{name} {version}" in read("copyright")
        assert name in read("py3dist-overrides").split()


def test_a_conffile_says_nothing() -> None:
    # A changed default in it would stop an unattended upgrade, where an admin has edited it.
    assert parse(read("podyd.yaml")) == Config()


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: str(key.path))
def test_every_key_is_in_the_manual(key: Key) -> None:
    assert key.help.endswith("."), f"give {key.path} a help in podyd/config/schema.py"
    assert f".B {key.path}\n" in manual.settings_page()


def test_the_example_shows_the_defaults() -> None:
    lines = manual.example().splitlines()
    # A comment at the start of a line has a single space.
    active = [re.sub(r"^#(?! \S)", "", line) for line in lines]
    assert replace(parse("\n".join(active)), tls=None) == Config()


def test_the_example_as_it_is_says_nothing() -> None:
    assert parse(manual.example()) == Config()


def test_every_command_and_option_is_in_the_manual() -> None:
    page = manual.daemon()["podyd.8"]
    for words, option in options(parser()):
        assert f'.SS "{words}"' in page
        assert option.replace("-", r"\-") in page


def test_every_exit_status_of_an_error_is_in_the_manual() -> None:
    section = manual.PODYD["EXIT STATUS"]
    assert {str(kind.exit_status) for kind in errors(PodydError)} <= set(section)


def errors(kind: type[PodydError]) -> Iterator[type[PodydError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from errors(below)


def options(whole: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for command in manual._commands(whole):
        for action in command._actions:
            for name in action.option_strings:
                yield command.prog.partition(" ")[2], name


def test_roff_is_escaped() -> None:
    assert manual._text(".so it's a\\b --x\n\nnext") == [r"\&.so it's a\eb \-\-x", ".PP", "next"]


def client_parts() -> list[str]:
    match = re.search(r"^CLIENT := (.+)$", read("rules"), re.MULTILINE)
    assert match is not None
    return match[1].split()


def test_the_client_needs_nothing_but_its_own_package(tmp_path: Path) -> None:
    for name in client_parts():
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    # -S: nor anything that is installed.
    code = (
        "import importlib, pkgutil, sys; sys.path.insert(0, sys.argv[1]); import podyd.client\n"
        "for module in pkgutil.walk_packages(podyd.client.__path__, 'podyd.client.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "from podyd.client.main import main, podx\n"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def libraries() -> Iterator[str]:
    """What podyd imports that Python does not have, but for what it can do without."""
    for path in (ROOT / "podyd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_pip_installs_every_library_that_is_imported() -> None:
    named = configparser.ConfigParser()
    named.read(ROOT / "setup.cfg")
    lines = [named["options"]["install_requires"], named["options.extras_require"]["server"]]
    asked = {re.split(r"[^\w.-]", line)[0] for line in "".join(lines).split("\n")}
    known = packages_distributions()
    imported = set(libraries()) - sys.stdlib_module_names - {"podyd", "argcomplete"}
    assert "tornado" in imported
    # Debian's packages of some list no modules; these have the module's name.
    names = {
        module: {name.lower().replace("_", "-") for name in known.get(module, [module])}
        for module in imported
    }
    assert not [module for module in imported if not names[module] & asked]


@pytest.mark.parametrize("path", sorted(DEBIAN.iterdir()), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    assert path.exists()


def test_every_unit_is_packaged() -> None:
    units = {path.name for path in ROOT.glob("systemd/*")}
    linked = {path.readlink().name for path in DEBIAN.iterdir() if path.is_symlink()}
    assert units <= linked


@pytest.mark.parametrize(
    ("typed", "answers"),
    [
        ("podyd pro", ["profiles"]),
        ("podyd image b", ["build"]),
        ("podyd profiles apply --con", ["--config"]),
    ],
)
def test_bash_completes(tmp_path: Path, typed: str, answers: list[str]) -> None:
    pytest.importorskip("argcomplete", reason="python3-argcomplete is not installed")
    program = tmp_path / "podyd"
    program.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -B -m podyd "$@"\n')
    program.chmod(0o755)
    completion = read("completion/bash").replace("@COMMAND@", "podyd")
    script = (
        f"{completion}\nCOMP_LINE='{typed}' COMP_POINT={len(typed)} COMP_TYPE=9\n"
        "_podyd\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == answers
