"""What the Tab key does in real shells, with the files that the package installs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.harness import IMAGE, ROOT, Client
from tests.integration.test_client import Pody, as_user

PROMPT = "ready> "
# Without the user's own settings: how each is started, and what is typed first.
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "bind 'set enable-bracketed-paste off'; . {share}/bash-completion/completions/pody;"
        " PS1='ready''> '",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "fpath=({share}/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -D;"
        " PS1='ready''> '",
    ),
    "fish": (
        ["fish", "--no-config", "-i"],
        "set -g fish_complete_path {share}/fish/vendor_completions.d;"
        " set -g fish_autosuggestion_enabled 0;"
        " function fish_prompt; echo -n 'ready''> '; end",
    ),
}


@dataclass(frozen=True)
class Shell(Pody):
    """A shell at a terminal, with the environment of one user."""

    words: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return list(self.words)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with pody and its completion."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run([ROOT / "debian/completion/install", "pody", root], check=True)
    pody = root / "pody"
    pody.write_text(f'#!/bin/sh\nexec {sys.executable} -m podyd.client "$@"\n')
    pody.chmod(0o755)
    return root


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("keys", "shows"),
    [
        ("pody inf\tsha\t\r", "profiles"),
        (f"pody new x --image {IMAGE[:-3]}\t", IMAGE),
        ("pody get user/inf\t\r", "is_admin"),
    ],
    ids=["word and pod", "image", "route"],
)
def test_words_and_pods(
    alice: Client, pod: str, installed: Path, tmp_path: Path, shell: str, keys: str, shows: str
) -> None:
    pody = as_user(alice)
    words, setup = SHELLS[shell]
    environment = {"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "vt100"}
    at = Shell(pody.base, pody.user, environment=environment, words=tuple(words))
    with at.at_terminal() as terminal:
        terminal.type(setup.format(share=installed / "usr/share") + "\r")
        terminal.wait_for(PROMPT)
        terminal.type(keys)
        terminal.wait_for(shows)
        terminal.type("\x15exit\r")
        terminal.end()
