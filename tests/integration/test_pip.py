"""`pip install podyd`: the members' client, on a machine that has nothing of the server's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import websocket

from tests.integration.harness import PASSWORD, ROOT, Client

SERVERS = ("cryptography", "pam", "prometheus_client", "pylxd", "pynvml", "pyroute2", "tornado")


def run(*words: str | Path, environment: dict[str, str] | None = None) -> Sequence[str]:
    done = subprocess.run(words, env=environment or {}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment with podyd's wheel and the one library it asks for."""
    directory = tmp_path_factory.mktemp("pip")
    # A wheel is built in the tree, and leaves things there.
    shutil.copytree(ROOT / "podyd", directory / "tree/podyd")
    shutil.copytree(ROOT / "profiles", directory / "tree/profiles")
    for name in ("pyproject.toml", "setup.cfg", "README.md"):
        shutil.copy(ROOT / name, directory / "tree")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    wheels = directory / "wheels"
    run(sys.executable, "-m", "pip", "wheel", *offline, "-w", wheels, directory / "tree")
    run("/usr/bin/python3", "-m", "venv", directory / "venv")
    programs = directory / "venv/bin"
    (wheel,) = wheels.iterdir()
    run(programs / "pip", "install", *offline, wheel)
    (packages,) = (directory / "venv/lib").glob("*/site-packages")
    shutil.copytree(Path(websocket.__file__).parent, packages / "websocket")
    return programs


def test_all_that_it_asks_for_is_one_library(installed: Path) -> None:
    script = "from importlib.metadata import requires; print(*requires('podyd'), sep='\\n')"
    asked = run(installed / "python", "-c", script)
    (alone,) = [line for line in asked if "extra ==" not in line]
    assert alone.startswith("websocket-client")
    assert len(asked) > len(SERVERS)
    for module in SERVERS:
        script = f"import importlib.util, sys; sys.exit(bool(importlib.util.find_spec('{module}')))"
        run(installed / "python", "-c", script)


def test_members_can_use_it(installed: Path, alice: Client, pod: str) -> None:
    environment = {
        "PODY_API_BASE": f"http://127.0.0.1:{alice.port}",
        "PODY_USERNAME": alice.user,
        "PODY_PASSWORD": PASSWORD,
    }
    assert run(installed / "pody", "--version")[0].startswith("pody ")
    assert pod in " ".join(run(installed / "pody", "ls", environment=environment))
    words = ("exec", pod, "--", "echo", "here")
    assert run(installed / "pody", *words, environment=environment) == ["here"]
    assert f'"{pod}"' in run(installed / "podx", "pod/list", environment=environment)[0]


def test_the_server_says_what_it_needs(installed: Path) -> None:
    done = subprocess.run([installed / "podyd", "serve"], capture_output=True, text=True, env={})
    assert (done.returncode, done.stdout) == (78, "")
    # The name podyd on PyPI is not this one's.
    assert done.stderr.endswith("in podyd's source, pip install '.[server]'.\n")
