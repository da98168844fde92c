"""The packages themselves: the same bytes from every build, and clean in the eyes of Debian's own
tools."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.harness import ROOT, run
from tests.packaging.machine import Machine, base

SOURCE = "/root/podyd"


def digests(directory: Path) -> dict[str, str]:
    """The packages in a directory, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*.deb"))
    }


def copy_of_the_tree(target: Path) -> None:
    """What git tracks, as it is now; and the wheels that have been fetched already."""
    names = run("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files").splitlines()
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path, follow_symlinks=False)
    shutil.copytree(ROOT / "build/wheels", target / "build/wheels")
    run("git", "init", "--quiet", str(target))
    run("git", "-C", str(target), "add", "--all")


def test_built_again_elsewhere_it_has_the_same_bytes(debs: list[Path], tmp_path: Path) -> None:
    tree = tmp_path / "another-place"
    copy_of_the_tree(tree)
    subprocess.run(["make", "-C", str(tree), "deb"], check=True, capture_output=True, umask=0o077)
    assert digests(tree / "build/deb") == digests(debs[0].parent)


def test_sizes(debs: list[Path], figures: dict[str, str]) -> None:
    for deb in debs:
        kib = deb.stat().st_size / 1024
        figures[f"size of {deb.name}"] = f"{kib:.0f} KiB"
        # All of it is text; much more would be something that does not belong there.
        assert kib < 1024


def test_built_on_each_release_it_is_clean(bare: Machine, debs: list[Path]) -> None:
    """`make deb` as root on a server that has nothing for it; then that release's own lintian."""
    copy_of_the_tree(bare.path(SOURCE))
    bare.apt("install", "--no-install-recommends", "make", "lintian")
    bare.run("make", "-C", SOURCE, "deb", timeout=600)
    built = bare.sh(f"cd {SOURCE}/build/deb && ls *.deb").split()
    assert built == [deb.name for deb in debs]
    failing = "--fail-on=error,warning,info,pedantic"
    checked = f"lintian --pedantic --display-info {failing} {SOURCE}/build/deb/*.changes"
    assert bare.sh(checked) == ""


@pytest.mark.parametrize("name", ["podyd-client", "podyd"])
def test_piuparts(release: str, name: str, debs: list[Path], tmp_path: Path) -> None:
    """Installed, removed and purged in a chroot, a package leaves nothing behind."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for deb in debs:
        shutil.copy(deb, repository)
    index = subprocess.run(["dpkg-scanpackages", "."], cwd=repository, capture_output=True)
    (repository / "Packages").write_bytes(index.stdout)
    done = subprocess.run(
        [
            *("piuparts", f"--basetgz={base(release)}", f"--distribution={release}"),
            *("--no-upgrade-test", "--warn-on-others", f"--bindmount={repository}"),
            f"--extra-repo=deb [trusted=yes] file:{repository} ./",
            next(str(deb) for deb in debs if deb.name.startswith(f"{name}_")),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
