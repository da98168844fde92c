"""Each word of pody once, at a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from podyd.client.main import parser
from tests.integration.harness import IMAGE, SMALL, Client, Server
from tests.integration.test_client import as_user

# What is typed, in this order, and what a terminal then shows among other things.
LINES = (
    ("version", "podyd 0."),
    ("help pod/", "post pod/create"),
    ("get user/info", "is_admin"),
    (f"post pod/create ins:one image:{IMAGE} gpus:none", "running"),
    ("fetch pod/info ins:one", "profiles"),
    (f"new two --image {SMALL} --gpus none", "running"),
    ("ls", "two"),
    ("info one", "profiles"),
    ("exec one -- echo said", "said"),
    ("restart two", "is running again"),
    ("stop two", "has stopped"),
    ("start two", "is running"),
    ("limits one", "memory"),
    ("logs one", "systemd"),
    ("cp one:/etc/hostname {here}/name", ""),
    ("file-rm one:/etc/motd", "deleted"),
    ("snapshot two before", "before"),
    ("snapshots two", "before"),
    ("restore two before --yes", "before"),
    ("snapshot-rm two before --yes", "before"),
    ("copy two three --gpus none", "three"),
    ("commit two tag", "{user}-tag"),
    ("images", "{user}-tag"),
    ("fetch image/delete image:{user}-tag", "deleted"),
    ("port one 8888", "8888"),
    ("ports one", "8888"),
    ("port-rm one 8888", "8888"),
    ("gpus", "A100"),
    ("ps", "pid"),
    ("stat cputime", "time"),
    ("notices --since 1d", "time"),
    ("rm one --yes", "deleted"),
    ("rm two --yes", "deleted"),
    ("rm three --yes", "deleted"),
)
# These talk on, or to ssh, and have tests of their own.
TALKING = {
    *("login", "logout", "passwd", "shell", "top", "forward"),
    *("ssh", "ssh-config", "connect", "copy-id"),
}


def words() -> set[str]:
    (commands,) = (
        action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return set(commands.choices)


def test_each_word_is_here() -> None:
    assert {line.split()[0] for line, _ in LINES} | TALKING == words()


@pytest.mark.usefixtures("lab_cards")
def test_each_at_a_terminal(
    gpu_server: Server, new_user: Callable[[], Client], tmp_path: Path
) -> None:
    user = new_user().user
    pody = as_user(gpu_server.client(user))
    for line, shows in LINES:
        shown = pody.shown(*line.format(user=user, here=tmp_path).split())
        assert shows.format(user=user) in shown, (line, shown)
    assert (tmp_path / "name").read_text() == f"{user}-one\n"
