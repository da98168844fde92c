"""What LXD's sentences mean, and that nobody else reads them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import podyd
from podyd.base.errors import (
    Busy,
    Changed,
    DidNotShutDown,
    DiskFull,
    Ending,
    EngineRefused,
    Gone,
    InUse,
    KeyForbidden,
    Lacks,
    Missing,
    NameTaken,
    NeedsStop,
    NotLimited,
    NotNewest,
    NotRunning,
    PodydError,
    Running,
    Slipped,
    engine_could_not,
)
from podyd.engine.refusals import refusal
from tests.unit.test_packaging_files import errors

BACKUP = "/var/lib/lxd/containers/podyd_a/backup.yaml"

# As LXD 5.0.2 said them, where no other place is named; 0 where it was an operation that failed.
SAID: list[tuple[str, int, type[EngineRefused]]] = [
    (
        'Failed to create instance start operation: Instance is busy running a "stop" operation',
        0,
        Busy,
    ),
    ('Instance is busy running a "update" operation', 0, Busy),
    (
        "Failed to create instance update operation: A matching non-reusable operation has now"
        " succeeded",
        0,
        Busy,
    ),
    ("In use", 0, InUse),
    (
        'Failed to start device "root": Failed to apply deferred quota from'
        ' "volatile.root.apply_quota": In use',
        0,
        InUse,
    ),
    ("Instance is not running", 400, NotRunning),
    ("Instance is frozen", 400, NotRunning),
    ("The instance is already stopped", 0, NotRunning),
    ("The container isn't running", 0, NotRunning),
    ('container is not running: "p_a-m"', 0, NotRunning),
    ("Invalid PID '\ufffd'", 500, Ending),  # Incus 6.0.4
    ("Invalid PID -1", 500, Ending),  # Incus 7.0.1
    ("stat /proc/4711: no such file or directory", 500, Ending),
    ("The instance is already running", 0, Running),
    ("The container is already running", 0, Running),
    ("The container is already frozen", 0, Running),
    ("Instance is running", 400, Running),
    (
        'Failed shutting down instance, status is "Running": shutting down the container failed',
        0,
        DidNotShutDown,
    ),
    ("shutting down the container failed", 0, DidNotShutDown),
    ("The instance cannot be cleanly shutdown as in Error status", 0, DidNotShutDown),
    ("Instance not found", 404, Gone),
    ('Failed to fetch instance "x" in project "p": Instance not found', 404, Gone),
    ("Profile not found", 404, Missing),
    ('Requested profile "x" doesn\'t exist', 500, Missing),
    (
        'Failed to fetch snapshot "s" of instance "a" in project "p": InstanceSnapshot not found',
        404,
        Missing,
    ),
    ("Snapshot a/s does not exist", 0, Missing),
    ("Operation not found", 404, Missing),
    ("Image alias not found", 404, Missing),
    ("Not Found", 404, Missing),  # a file in an instance
    (
        "Failed creating instance record: Add instance info to the database:"
        ' This "instances" entry already exists',
        0,
        NameTaken,
    ),
    (
        'Failed creating instance snapshot record "s": Add snapshot info to the database:'
        ' This "instances_snapshots" entry already exists',
        0,
        NameTaken,
    ),
    # Incus 6.0.4, and a later one.
    (
        "Failed creating instance record: Add instance info to the database: Failed to create"
        ' "instances" entry: UNIQUE constraint failed: instances.project_id, instances.name',
        500,
        NameTaken,
    ),
    (
        'Failed creating instance snapshot record "s": Add snapshot info to the database: Failed to'
        ' create "instances_snapshots" entry: UNIQUE constraint failed:'
        " instances_snapshots.instance_id, instances_snapshots.name",
        0,
        NameTaken,
    ),
    (
        "Failed creating instance record: Add instance info to the database:"
        ' This "Instance" entry already exists',
        409,
        NameTaken,
    ),
    ('Instance "x" already exists', 500, NameTaken),
    ('Alias "x" already exists', 409, NameTaken),
    ("ETag doesn't match: b9ee20 vs abc", 412, Changed),
    # LXD's source of tag lxd-6.9: lxd/util/http.go, lxd/instance/instance_utils.go; and of
    # lxd-5.21.7: lxd/instance/drivers/driver_lxc.go, for a card by a CDI id.
    (
        "ETag does not match: b9ee20 vs abc. The configuration has been modified since this change"
        " began. Please retrieve the updated configuration before proceeding",
        412,
        Changed,
    ),
    ('Requested profile "x" does not exist', 500, Missing),
    (
        'Failed stopping device "gpus": Device cannot be stopped when instance is running',
        0,
        NeedsStop,
    ),
    ('exec: "tar2sqfs": executable file not found in $PATH', 400, Lacks),
    (
        f'Failed to create file "{BACKUP}": open {BACKUP}: disk quota exceeded',
        0,
        DiskFull,
    ),
    (f"Failed to write backup file: write {BACKUP}: no space left on device", 500, DiskFull),
    ("Failed to run: zfs snapshot -r p/x@s: cannot create 'p/x@s': out of space", 0, DiskFull),
    (
        "Failed creating instance from image: Failed to run: zfs set refquota=83886080 z/x: exit"
        " status 1 (cannot set property for 'z/x': size is less than current used or reserved"
        " space)",
        0,
        DiskFull,
    ),
    (
        'Snapshot "s" cannot be restored due to subsequent snapshot(s). Set zfs.remove_snapshots to'
        " override",
        0,
        NotNewest,
    ),
    (
        'Snapshot "s" cannot be restored due to subsequent internal snapshot(s) (from a copy)',
        0,
        NotNewest,
    ),
    # internal/server/project/permissions.go
    (
        'Setting "volatile.eth0.host_name" on container "a-main" in project "podyd" is forbidden',
        0,
        KeyForbidden,
    ),
    (
        'Changing "volatile.uuid.generation" on container "a" in project "podyd" is forbidden',
        403,
        KeyForbidden,
    ),
    # shared/idmap, on a disk that is full: it is that which can be mended.
    ("Failed to change ownership of: /x: disk quota exceeded", 0, DiskFull),
    # An LXD whose hierarchies of memory and pids are not mounted, and one with cgroup2 whose own
    # cgroup holds processes; all but the first are lines of a start's log.
    ("setting cgroup item for the container failed", 500, NotLimited),
    (
        'Device or resource busy - Could not enable "+memory +pids" controllers in the unified'
        " cgroup 8",
        0,
        NotLimited,
    ),
    (
        'No such file or directory - Failed to setup limits for the "memory" controller. The'
        ' controller seems to be unused by "cgfsng" cgroup driver or not enabled on the cgroup'
        " hierarchy",
        0,
        NotLimited,
    ),
    ('No such file or directory - Failed to set "memory.max" to "209715200"', 0, NotLimited),
    ("readdirent /var/lib/lxd/x: bad file descriptor", 0, Slipped),
    (
        "Create instance from copy: readdirent /var/lib/lxd/storage-pools/default/containers/p_a-m/"
        "rootfs/tmp/namespace-dev-OclTWa: no such file or directory",
        0,
        Slipped,
    ),
    ("saving config file for the container failed", 0, Slipped),
    ("Failed to handle idmapped storage: Failed to change ownership of: /x", 0, Slipped),
    # What is busy here is no instance, and whoever waits for it waits for good.
    ('Failed to unmount "/x": Device or resource busy', 0, EngineRefused),
    ("Failed to run: zfs destroy -r p/x: cannot destroy 'p/x': dataset is busy", 0, EngineRefused),
    ("open /usr/bin/x: text file busy", 500, EngineRefused),
    ("Failed to run: /usr/sbin/lxd forkstart x: exit status 1", 0, EngineRefused),
    ("Invalid config: Invalid value: xx", 0, EngineRefused),
    ("Image with same fingerprint already exists", 0, EngineRefused),
    ("Forbidden", 403, EngineRefused),
]


@pytest.mark.parametrize(("reason", "status", "kind"), SAID)
def test_what_lxd_says_and_what_it_means(
    reason: str, status: int, kind: type[EngineRefused]
) -> None:
    for text in (reason, reason.upper()):  # Incus has other capitals.
        assert type(refusal(text, status)) is kind
        assert refusal(text, status).reason == text


def test_what_lxd_is_at_is_told() -> None:
    busy = refusal('Instance is busy running a "restore" operation', 0)
    assert isinstance(busy, Busy)
    assert busy.operation == "restore"
    assert refusal("Instance is frozen", 400).fields == {"status": "frozen"}
    assert refusal("Instance is not running", 400).fields == {"status": "stopped"}


@pytest.mark.parametrize("kind", list(errors(EngineRefused)))
def test_none_is_a_fault_of_podyds(kind: type[EngineRefused]) -> None:
    """One that nobody has looked at reaches a member, who is to know what to do."""
    error = kind("why")
    assert error.status != 500
    assert error.code != PodydError.default_code
    assert error.detail.endswith(".")


def test_what_was_tried_is_told_where_the_reason_is_unknown() -> None:
    with pytest.raises(EngineRefused) as error, engine_could_not("make the pod", code="c"):
        raise refusal("It rains.")
    assert (error.value.detail, error.value.code) == ("LXD could not make the pod: It rains.", "c")
    with pytest.raises(Missing) as missing, engine_could_not("delete the snapshot"):
        raise refusal("Snapshot a/s does not exist")
    assert (missing.value.status, missing.value.code) == (404, "not_found")
    assert missing.value.detail.startswith("LXD could not delete the snapshot: ")
    with pytest.raises(Busy) as busy, engine_could_not("make the pod", code="c"):
        raise refusal("In use")
    assert busy.value.code == "pod_busy"


# --- One place ----------------------------------------------------------------------------------

ROOT = Path(podyd.__file__).parent
# What speaks to LXD, or to podyd over HTTP.
APART = ("engine", "client")
WORDS = {"detail", "reason"}
READING = {"find", "startswith", "endswith", "lower", "upper", "casefold", "split", "partition"}


def looks_into(node: ast.AST) -> bool:
    """Whether an error's words are looked into here, rather than told on."""
    match node:
        case ast.Compare():
            looked_at = [node.left, *node.comparators]
        case ast.Call(func=ast.Attribute(value=value, attr=verb)) if verb in READING:
            looked_at = [value]
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"))):
            looked_at = list(node.args)
        case _:
            return False
    return any(
        isinstance(part, ast.Attribute) and part.attr in WORDS and _is_error(part.value)
        for item in looked_at
        for part in ast.walk(item)
    )


def _is_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("error", "problem", "problems")


@pytest.mark.parametrize(
    "text",
    [
        '"busy" in error.detail.lower()',
        'error.reason == "x"',
        "any(slip in error.detail for slip in SLIPS)",
        're.search("x", error.reason)',
        'error.detail.startswith("x")',
    ],
)
def test_that_an_errors_words_are_read_is_seen(text: str) -> None:
    assert any(looks_into(node) for node in ast.walk(ast.parse(text)))


def test_nobody_else_spells_them() -> None:
    """A sentence that is looked for elsewhere, in whatever variable, is a second place."""
    offending = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in APART
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if len(node.value) < 60 and type(refusal(node.value)) is not EngineRefused
    ]
    assert offending == []


def test_nobody_else_reads_them() -> None:
    offending = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in APART
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if looks_into(node) and isinstance(node, ast.expr)
    ]
    assert offending == []
