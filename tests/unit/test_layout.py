"""The house: which package may import which, and what stays in one of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import podyd
from podyd.base.errors import EngineRefused
from podyd.engine.refusals import refusal

ROOT = Path(podyd.__file__).parent

# From the ground up. What stands in one line knows nothing of its neighbours there.
FLOORS = (
    ("base", "client"),
    ("config",),
    ("auth", "engine", "node"),
    ("model",),
    ("contract", "store"),
    ("people", "gpus", "network"),
    ("pods",),
    ("accounting", "board"),
    ("api",),
    ("app", "admin"),
    ("cli",),
    ("__main__",),
)
# The members' client is installed without the rest, and tells `podyd` how to complete a line.
CLIENT_FOR = ("cli",)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def package_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and package of each import of podyd's own, wherever it stands in the file."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [name.name for name in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                modules = [f"{module}.{name.name}" for name in names]
            case _:
                continue
        for module in modules:
            first, _, rest = module.partition(".")
            package = rest.partition(".")[0]
            if first == "podyd" and package in FLOOR:
                yield node.lineno, package


def against(package: str, tree: ast.AST) -> list[tuple[int, str]]:
    """The imports that lead upwards, or next door."""
    return [
        (line, other)
        for line, other in imported(tree)
        if other != package
        and (FLOOR[other] >= FLOOR[package] or (other == "client" and package not in CLIENT_FOR))
    ]


SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if package_of(path) != "__init__"]


def test_what_the_page_names_is_there() -> None:
    page = (ROOT.parent / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:podyd/|tests/|[a-z]+/)?[\w/]+\.(?:py|c))`", page))
    places = (ROOT.parent, ROOT, ROOT.parent / "tests/unit/engine")
    assert len(named) > 40
    assert [name for name in sorted(named) if not any((at / name).exists() for at in places)] == []


def test_each_package_has_its_floor() -> None:
    assert {package_of(path) for path in SOURCES} == set(FLOOR)


@pytest.mark.parametrize(
    "text",
    [
        "from podyd.api import handler",
        "from podyd.accounting.usage import Usage",
        "import podyd.accounting.usage",
        "def late():\n    from podyd.app import build",
        "from podyd import cli",
        "from podyd.client import server",
    ],
)
def test_an_import_against_the_direction_is_seen(text: str) -> None:
    assert against("pods", ast.parse(text)) != []


@pytest.mark.parametrize(
    "text", ["from podyd.node.procs import Reader", "import podyd.engine.rest"]
)
def test_the_engine_and_the_node_do_not_know_each_other(text: str) -> None:
    ((_, other),) = imported(ast.parse(text))
    assert against({"node": "engine", "engine": "node"}[other], ast.parse(text)) != []


def test_what_lies_below_may_be_imported() -> None:
    text = "from podyd import VERSION\nfrom podyd.engine.rest import RestClient\nimport podyd.base"
    assert [package for _, package in imported(ast.parse(text))] == ["engine", "base"]
    assert against("pods", ast.parse(text)) == []


def test_imports_lead_downwards() -> None:
    offending = [
        f"{path.relative_to(ROOT)}:{line}: {package}"
        for path in SOURCES
        for line, package in against(package_of(path), tree_of(path))
    ]
    assert offending == []


# --- What stays in one place --------------------------------------------------------------------

# The process that serves, and most tests, do without NVML's binding.
ONLY_IMPORTERS = {
    "pynvml": {"node/nvml_process.py"},
    "podyd.node.nvml_process": {"cli/main.py"},
    "pyroute2": {"node/netlink.py"},
    # Whoever needs something of a host is given it as podyd.node.interface says.
    "podyd.node.local": {"app.py"},
    "podyd.node.netlink": {"admin/setup.py"},
    "podyd.node.telemetry": {"node/local.py"},
    "podyd.node.user_names": {"node/local.py"},
    "podyd.node.procs.Reader": {"node/card_holders.py", "node/local.py"},
    "podyd.node.relay_client.relay_at": {"node/local.py"},
    "podyd.node.arp.neighbours": set(),
    "podyd.node.arp.probe": set(),
    "podyd.node.sockdiag.listening_ports": set(),
    "podyd.node.sockdiag.owner_of": set(),
    "sqlite3": {
        f"store/{name}.py"
        for name in (
            "actions",
            "cards",
            "database",
            "history",
            "notices",
            "tokens",
            "usage",
            "web_sessions",
        )
    },
}


def modules_in(tree: ast.AST) -> Iterator[str]:
    """The full name of each module that is imported, and of what is taken from it."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (module, *(f"{module}.{name.name}" for name in names))


@pytest.mark.parametrize(("module", "where"), ONLY_IMPORTERS.items())
def test_a_library_has_one_importer(module: str, where: set[str]) -> None:
    importers = {
        str(path.relative_to(ROOT)) for path in SOURCES if module in modules_in(tree_of(path))
    }
    assert importers == where


def test_who_serves_imports_no_binding_of_nvml() -> None:
    # An import that stands in a function is made by the command `podyd nvml` alone.
    tree = tree_of(ROOT / "cli/main.py")
    outside = ast.Module([item for item in tree.body if not isinstance(item, ast.FunctionDef)], [])
    assert "podyd.node.nvml_process" not in modules_in(outside)


# --- What only the node looks at ----------------------------------------------------------------

OF_THE_KERNEL = re.compile(r"/(?:proc|sys)(?![\w-])")
# Where else one of these is named, by file and the name that stands in it, and why that is no look
# at this host.
IN_A_POD = "a script that runs in the pod"
NAMED_ELSEWHERE = {
    ("engine/wrapper.py", "_BOX"): IN_A_POD,
    ("engine/wrapper.py", "_RUN"): IN_A_POD,
    ("gpus/ending.py", "_KILL"): IN_A_POD,
    ("pods/deletions.py", "_DELETE"): IN_A_POD,
    ("config/values.py", "_NOT_BELOW"): "where members' own directories may not be",
    ("admin/doctor/host.py", "other_processes"): "what an admin is told, and what to type",
    ("admin/doctor/limits.py", "_why"): "what an admin is told, and what to type",
    ("admin/doctor/limits.py", "_not_in_the_kernel"): "what an admin is told to type",
}


def kernel_files_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each string that names a file of /proc or /sys, with the name that it stands in at the top of
    the module; docstrings are not looked at."""
    for item in tree.body:
        match item:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name), *_]):
                pass
            case ast.AnnAssign(target=ast.Name(id=name)):
                pass
            case _:
                name = ""
        docstrings = [node.value for node in ast.walk(item) if isinstance(node, ast.Expr)]
        for node in ast.walk(item):
            match node:
                case ast.Constant(value=str(text)) if node not in docstrings:
                    if OF_THE_KERNEL.search(text):
                        yield name, text
                case ast.Attribute(attr="AF_NETLINK"):
                    yield name, "AF_NETLINK"


@pytest.mark.parametrize(
    "text",
    [
        "FILE = Path('/proc/meminfo')",
        "def look(pid):\n    return open(f'/proc/{pid}/stat')",
        "class Look:\n    def at(self, root='/sys'):\n        pass",
        "run(['cat', '/sys/fs/cgroup/memory.max'])",
        "def ask():\n    return socket.socket(socket.AF_NETLINK)",
    ],
)
def test_a_look_at_the_kernels_files_is_seen(text: str) -> None:
    assert len([*kernel_files_in(ast.parse(text))]) == 1


def test_what_is_none_is_not() -> None:
    text = '"""Of /proc."""\nX = "/system"\nY = "/sys-x"\ndef f():\n    """/sys."""\n'
    assert not [*kernel_files_in(ast.parse(text))]


def test_the_kernels_files_are_the_nodes() -> None:
    offending = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        # The members' client is a program of its own, on any machine.
        if package_of(path) not in ("node", "client")
        for name, _ in kernel_files_in(tree_of(path))
    }
    assert offending == NAMED_ELSEWHERE.keys()


# --- What only the engine says ------------------------------------------------------------------

# LXD's paths, headers and files, and its words for what an instance is at.
OF_LXD = re.compile(
    r"/1\.0(?:/|$|\?)|\bX-LXD-|\blxc\.log\b|^(?:Running|Stopped|Frozen|lxd_status|status_code)$"
)


def words_of_lxd_in(tree: ast.AST) -> Iterator[str]:
    """Each string that LXD alone says, or is told; docstrings are not looked at."""
    docstrings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if node not in docstrings:
                is_sentence = type(refusal(text)) is not EngineRefused
                if OF_LXD.search(text) or is_sentence:
                    yield text


@pytest.mark.parametrize(
    "text",
    [
        'path = f"/1.0/instances/{name}"',
        'get("/1.0")',
        'instance.status == "Running"',
        'headers["X-LXD-type"]',
        'text(name, "logs", "lxc.log")',
        'if "instance is already running" in error.reason: pass',
        'if error.reason.endswith("disk quota exceeded"): pass',
        'if reason == "Instance not found": pass',
    ],
)
def test_a_word_of_lxds_is_seen(text: str) -> None:
    assert list(words_of_lxd_in(ast.parse(text))) != []


def test_nobody_but_the_engine_speaks_as_lxd() -> None:
    offending = [
        f"{path.relative_to(ROOT)}: {text!r}"
        for path in SOURCES
        if package_of(path) != "engine"
        for text in words_of_lxd_in(tree_of(path))
    ]
    assert offending == []


# --- Which engine it is -------------------------------------------------------------------------

ENGINES = re.compile(r"lxd|(?<!lib)lxc|incus", re.IGNORECASE)
# What is called so on every engine, as programs and files of before know it by that name.
STABLE = {
    "lxd": "the section of podyd.yaml, and the version in /host/spec and /events",
    "podyd_lxd_up": "a metric",
    "lxd_": "begins the names of doctor's checks of the engine",
    "lxd_error": "a code of an error",
    "lxd_lacks_program": "the same",
    "lxd_slipped": "the same",
    "lxd_timed_out": "the same",
    "lxc": "the source of a log in /pod/logs",
}
# liblxc's name of a pod's cgroup; both engines use that library.
OF_LIBLXC = re.compile(r"\blxc(?:\.|\\\.)(?:payload|$)")
# Who must name engines, and why.
NAMING = {
    "base/engine_words.py": "LXD, until it is known which one it is",
    "config/schema.py": "what an admin may write, and what its key means",
    "cli/main.py": "from which to which pods can move",
    "admin/setup.py": "what to install where there is none; which is taken of both",
    "admin/doctor/advisories.py": "the holes of each",
    "admin/doctor/diagnosis.py": "the checks of that",
}
# What moves pods from one engine to another.
MOVING = ("admin/migration/", "cli/migrate.py")


def engines_named_in(tree: ast.AST) -> Iterator[str]:
    """Each string and name that names an engine; docstrings are not looked at."""
    docstrings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if node not in docstrings:
                pass
            case (
                ast.Name(id=text)
                | ast.Attribute(attr=text)
                | ast.arg(arg=text)
                | ast.keyword(arg=str(text))
                | ast.FunctionDef(name=text)
                | ast.AsyncFunctionDef(name=text)
                | ast.ClassDef(name=text)
                | ast.alias(name=text)
            ):
                pass
            case _:
                continue
        if text not in STABLE and ENGINES.search(OF_LIBLXC.sub("", text)):
            yield text


@pytest.mark.parametrize(
    "text",
    [
        'hint = "See lxc info."',
        'f"{count} pods in LXD"',
        "def stop_incus():\n    pass",
        "from podyd.engine.dialect import INCUS",
        "ask(lxd_socket=path)",
        'Path("/var/lib/incus/unix.socket")',
    ],
)
def test_an_engine_that_is_named_is_seen(text: str) -> None:
    assert list(engines_named_in(ast.parse(text))) != []


def test_what_every_engine_has_names_none() -> None:
    text = 'config.lxd.project\nA = "/lxc.payload."\nB = r"/lxc\\.payload\\."\nC = "liblxc"\n'
    assert list(engines_named_in(ast.parse(f'"""LXD."""\n{text}'))) == []


def test_nobody_but_the_engine_names_one() -> None:
    naming = {
        str(path.relative_to(ROOT)): names
        for path in SOURCES
        if package_of(path) != "engine" and (names := [*engines_named_in(tree_of(path))])
    }
    naming = {path: names for path, names in naming.items() if not path.startswith(MOVING)}
    assert {path: names for path, names in naming.items() if path not in NAMING} == {}
    # And no more are excepted than need it.
    assert naming.keys() == NAMING.keys()


def test_services_are_given_an_engine_and_do_not_know_which() -> None:
    """What asks LXD itself is imported by who puts podyd together, and by the admin's commands."""
    asks = "podyd.engine.rest"
    of_lxd = {
        f"podyd.engine.{path.stem}"
        for path in SOURCES
        if package_of(path) == "engine" and asks in modules_in(tree_of(path))
    } | {asks}
    assert "podyd.engine.instances" in of_lxd
    offending = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in SOURCES
        if package_of(path) not in ("engine", "app", "admin")
        for module in of_lxd.intersection(modules_in(tree_of(path)))
    ]
    assert offending == []


def test_what_an_engine_tells_is_typed() -> None:
    loose = re.compile(r"Mapping\[str, Any\]|dict\[str, Any\]")
    for name in ("interface", "types"):
        text = (ROOT / f"engine/{name}.py").read_text(encoding="utf-8")
        assert not loose.search(text), name
