"""The whole suite on each engine of each Debian: one fresh container after the other.

Each has this checkout, the release's own packages and Python, and a lab of its own. It is not
booted: the lab starts the engine, as it does everywhere, in cgroups of this host, which must be v1
or hybrid; there a booted systemd of today sees none that can limit a pod, nor does LXC 7 (sid), so
that what needs them, marked `controllers(names)`, must fail there. That podyd and an engine come up
with a server is for tests/packaging.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from podyd.engine.dialect import named
from tests.integration.harness import ROOT, run
from tests.lab import lab
from tests.packaging.machine import ENVIRONMENT, UNIFIED, Machine

BUILD = ROOT / "build" / "engines"
REQUIREMENTS = ("debian/vendor.txt", "tests/requirements.txt", "tests/pody04.txt")
# Begins a command, the words after a cgroup's name, in a cgroup of its own of each hierarchy: what
# is in a container takes it for the root, and meets no other lab's pods there.
APART = """
for top in /sys/fs/cgroup/*/; do
    mkdir -p "$top$0"
    for key in cpuset.cpus cpuset.mems; do
        [ ! -e "$top$key" ] || cat "$top$key" >"$top$0/$key"
    done
    # LXC 7 leaves those of a pod's empty, and nothing may enter it then.
    [ ! -e "$top$0/cpuset.cpus" ] || echo 1 >"$top$0/cgroup.clone_children"
    echo $$ >"$top$0/cgroup.procs"
done
exec "$@"
"""
# Where the checkout and the wheels are in a container.
CHECKOUT, WHEELS = "/srv/podyd", "/srv/wheels"


@dataclass(frozen=True)
class Target:
    """An engine in a Debian, and the Python that this has."""

    release: str
    engine: str
    python: str
    # Of systemd-nspawn; LXC 7 runs nothing on cgroups v1 or hybrid.
    layout: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.release} {self.engine}"

    @property
    def log(self) -> Path:
        return BUILD / f"{self.release}-{self.engine}.log"


TARGETS = (
    Target("bookworm", "lxd", "3.11"),
    Target("trixie", "lxd", "3.13"),
    Target("trixie", "incus", "3.13"),
    Target("sid", "incus", "3.14", UNIFIED),
)


def wheels(python: str) -> Path:
    """A directory with all that pip installs there: a container need not reach PyPI."""
    directory = BUILD / f"wheels-{python}"
    for requirements in REQUIREMENTS:
        run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--require-hashes", "--python-version", python, "--dest", str(directory)),
            *("--requirement", str(ROOT / requirements)),
        )
    return directory


def copy_checkout(to: Path) -> None:
    """What git knows, and what it does not ignore."""
    to.mkdir(parents=True)
    names = run("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard")
    there = [name for name in names.splitlines() if os.path.lexists(ROOT / name)]
    pack = ["tar", "-C", str(ROOT), "--create", "--no-recursion", "--files-from=-"]
    packed = subprocess.run(
        pack, input="\n".join(there).encode(), stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-C", str(to), "--extract"], input=packed.stdout, check=True)


def test(target: Target, arguments: list[str]) -> bool:
    """Run the suite there; whether it passed. What it says is shown, and kept."""
    machine = Machine(target.release, named(target.engine))
    try:
        found = wheels(target.python)
        machine.unpack()
        copy_checkout(machine.path(CHECKOUT))
        command = machine.contained(
            *("--as-pid2", f"--chdir={CHECKOUT}", f"--bind-ro={found}:{WHEELS}"),
            *(f"--setenv={lab.CHOICE}={target.engine}", "--setenv=LC_ALL=C.UTF-8"),
            *("--setenv=PIP_NO_INDEX=1", f"--setenv=PIP_FIND_LINKS={WHEELS}"),
            *("tests/engines/inside.sh", *arguments),
        )
        with (
            target.log.open("wb") as log,
            subprocess.Popen(
                ["sh", "-euc", APART, machine.name, *command],
                env=ENVIRONMENT | target.layout,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        return process.returncode == 0
    finally:
        machine.close()
        for cgroup in lab.CGROUPS.glob(f"*/{machine.name}"):
            lab.remove_cgroup(cgroup)


def main(arguments: list[str]) -> int:
    release, engine = os.environ.get("RELEASE"), os.environ.get("ENGINE")
    chosen = [
        target
        for target in TARGETS
        if (not release or target.release == release) and (not engine or target.engine == engine)
    ]
    if not chosen:
        print(f"There are {', '.join(target.name for target in TARGETS)}.", file=sys.stderr)
        return 2
    if (lab.CGROUPS / "cgroup.controllers").exists():
        print(
            "This host has cgroup v2 alone: these containers need one that was started with v1 or"
            " hybrid cgroups (systemd.unified_cgroup_hierarchy=0).",
            file=sys.stderr,
        )
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    passed = {}
    for target in chosen:
        print(f"=== {target.name}", flush=True)
        passed[target.name] = test(target, arguments)
    for name, is_passed in passed.items():
        print(f"{name}: {'passed' if is_passed else 'FAILED'}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
