"""The packages as `make deb` builds them, and fresh servers to install them on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podyd import __version__
from tests.integration.harness import ROOT, run
from tests.packaging.machine import ENGINES, RELEASES, Machine

if os.geteuid() != 0:
    pytest.exit("The packaging tests need root: type 'sudo make test-packaging'.", returncode=1)

PREVIOUS = "0.0.1"


@pytest.fixture(scope="session")
def debs() -> list[Path]:
    """The packages of this checkout."""
    done = subprocess.run(["make", "-C", str(ROOT), "deb"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = sorted((ROOT / "build/deb").glob(f"*_{__version__}_all.deb"))
    assert [path.name.partition("_")[0] for path in paths] == ["podyd-client", "podyd"]
    return paths


@pytest.fixture(scope="session")
def previous_debs(debs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same as an older version, which says so."""
    directory = tmp_path_factory.mktemp("previous")
    return [_older(deb, directory) for deb in debs]


def _older(deb: Path, directory: Path) -> Path:
    tree = directory / deb.stem
    run("dpkg-deb", "--raw-extract", str(deb), str(tree))
    for name in ("DEBIAN/control", "usr/share/podyd/podyd/__init__.py"):
        path = tree / name
        if path.exists():
            old, new = ("0, 1, 0", "0, 0, 1") if path.suffix else (__version__, PREVIOUS)
            text = path.read_text()
            assert old in text, path
            path.write_text(text.replace(old, new))
    target = directory / deb.name.replace(__version__, PREVIOUS)
    run("dpkg-deb", "--root-owner-group", "--build", str(tree), str(target))
    shutil.rmtree(tree)
    return target


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Debian's releases, one after the other."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def bare(release: str) -> Iterator[Machine]:
    """A fresh server with nothing of ours on it."""
    machine = Machine(release, ENGINES[release])
    try:
        machine.start()
        machine.apt("update")
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, str]]:
    """What was measured; kept in build/packaging/figures, and printed with -s."""
    values: dict[str, str] = {}
    yield values
    path = ROOT / "build/packaging/figures"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    print("\n" + path.read_text())
