"""The house: which package may import which, and what stays in one of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import podyd

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
    ("accounting",),
    ("api",),
    ("app", "admin"),
    ("cli",),
    ("__main__",),
)
# The members' client is installed without the rest, and tells `podyd` how to complete a line.
CLIENT_FOR = ("cli",)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


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
    text = "from podyd import VERSION\nfrom podyd.engine.rest import LxdClient\nimport podyd.base"
    assert [package for _, package in imported(ast.parse(text))] == ["engine", "base"]
    assert against("pods", ast.parse(text)) == []


def test_imports_lead_downwards() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {package}"
        for path in SOURCES
        for line, package in against(package_of(path), ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


# --- What stays in one place --------------------------------------------------------------------

# The process that serves, and most tests, do without NVML's binding.
ONLY_IMPORTERS = {
    "pynvml": {"node/nvml_process.py"},
    "podyd.node.nvml_process": {"cli/main.py"},
    "sqlite3": {f"store/{name}.py" for name in ("cards", "database", "tokens", "usage")},
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
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if module in modules_in(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == where


def test_who_serves_imports_no_binding_of_nvml() -> None:
    # An import that stands in a function is made by the command `podyd nvml` alone.
    tree = ast.parse((ROOT / "cli/main.py").read_text(encoding="utf-8"))
    outside = ast.Module([item for item in tree.body if not isinstance(item, ast.FunctionDef)], [])
    assert "podyd.node.nvml_process" not in modules_in(outside)
