"""What an engine lets through comes from no request: line breaks in its configuration, paths as
names, a command that packs an image, other projects, backups; docs/security.md has these."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import podyd
from podyd.contract.kinds import params_of
from podyd.contract.table import OPERATIONS

ROOT = Path(podyd.__file__).parent
VALUES = ("x\nlxc.environment = PODYD_EVIL=1", "x\n", "..", "../x", "a/b", "zstd -o x")
# Parameters that take such text, and where it goes, which is no name or value of the engine's.
TEXTS = {
    ("/help", "path"): "compared with the table",
    ("/user/ch-passwd", "passwd"): "to `passwd`, by the helper",
    ("/user/token", "name"): "into podyd's database",
    ("/user/token-revoke", "user"): "compared with podyd's database",
    ("/pod/create", "image"): "compared with the names that are offered: its fingerprint is sent",
    ("/pod/commit", "msg"): "the description of an image, as JSON",
    ("/pod/exec", "cmd"): "an argument of a program in the pod",
    ("/image/inspect", "image"): "as of /pod/create",
    ("/image/delete", "image"): "as of /pod/create",
    ("/stat/cputime", "user"): "compared with podyd's database",
    ("/stat/gputime", "user"): "compared with podyd's database",
    ("/admin/release", "reason"): "into a notice",
    ("/admin/log", "user"): "compared with podyd's database",
    ("/admin/log", "call"): "compared with podyd's database",
}


def test_a_parameter_takes_none_of_it_unless_it_is_text() -> None:
    taking = set()
    for operation in OPERATIONS:
        for param in params_of(operation.request):
            for value in VALUES:
                try:
                    param.kind.parse(value)
                except ValueError:
                    continue
                taking.add((operation.path, param.name))
    assert taking == set(TEXTS)


# Keys whose values an engine lets through; podyd writes constants. And a name for one of them.
KEYS = ("compression_algorithm", "nvidia.driver.capabilities")
CAPABILITIES = "CAPABILITIES"
# Root's `podyd migrate` names another project than podyd's.
MIGRATING = "engine/moving.py"


def key_of(node: ast.AST | None) -> str:
    """The key of a dictionary; "" if it is not said there."""
    match node:
        case ast.Constant(value=str() as key):
            return key
        case ast.Name(id="CAPABILITIES"):
            return CAPABILITIES
    return ""


def is_constant(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and "\n" not in str(node.value)


def wrong(text: str, path: str) -> Iterator[str]:
    """What hands on, or may hand on, such a value."""
    tree = ast.parse(text)
    fine: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            # The name of the key.
            case ast.Assign(targets=[ast.Name(id="CAPABILITIES")], value=value):
                fine.add(value)
            case ast.Dict(keys=keys, values=values):
                fine |= {
                    key
                    for key, value in zip(keys, values, strict=True)
                    if key is not None and is_constant(value)
                }
                if {"type", "project"} <= {*map(key_of, keys)} and path != MIGRATING:
                    yield "a source in another project"
            case ast.Subscript(slice=key, ctx=ast.Store()) if key_of(key) == "project":
                yield "a source in another project"
    for node in ast.walk(tree):
        is_read = not isinstance(node, ast.Name) or isinstance(node.ctx, ast.Load)
        if key_of(node) in (*KEYS, CAPABILITIES) and is_read and node not in fine:
            yield f"{key_of(node)} with what is no constant"
        if "/backups" in key_of(node):
            yield "a backup"


@pytest.mark.parametrize(
    "text",
    [
        'body = {"compression_algorithm": asked}',
        'body["compression_algorithm"] = asked',
        'KEY = "nvidia.driver.capabilities"',
        "config = {CAPABILITIES: asked}",
        "config[CAPABILITIES] = asked",
        'config = {"nvidia.driver.capabilities": "compute\\nlxc.x = 1"}',
        'source = {"type": "copy", "project": asked}',
        'source["project"] = asked',
        'path = f"/1.0/instances/{name}/backups"',
    ],
)
def test_what_would_hand_it_on_is_seen(text: str) -> None:
    assert list(wrong(text, "engine/instances.py")) != []


def test_podyd_hands_on_constants() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in ("engine", "model", "pods", "gpus", "network", "api", "admin")
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    written = [path for path, text in sources.items() if any(key in text for key in KEYS)]
    assert written == ["engine/gpu_devices.py", "engine/images.py"]
    assert [(path, what) for path, text in sources.items() for what in wrong(text, path)] == []
