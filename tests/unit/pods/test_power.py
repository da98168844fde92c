"""How a pod is started and stopped, whatever LXD is at meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, cast

import pytest

from podyd.base.errors import Busy, DidNotShutDown, EngineRefused, NotLimited, PodydError, TimedOut
from podyd.engine import instances
from podyd.engine.instances import RestInstances
from podyd.engine.refusals import refusal
from podyd.engine.rest import RestClient
from podyd.engine.types import Instance
from podyd.model.member import Member
from podyd.model.pod import INS, OWNER, Pod
from podyd.pods.disks import Disks
from podyd.pods.kernel_limits import KernelLimits
from podyd.pods.mounts import Mounts
from podyd.pods.owned import Owned
from podyd.pods.power import Power, StartFailed
from tests.unit.node.fake import FakeProcesses

UPDATE, SNAPSHOT = Busy("busy", operation="update"), Busy("busy", operation="snapshot")
DEAF = DidNotShutDown("shutting down the container failed")
LATE = TimedOut("LXD has not finished")

MEMBER = cast(Member, type("Member", (), {"name": "ann", "uid": 1000})())
POD = Instance(
    name="ann-main",
    status="running",
    created=datetime(2020, 1, 1, tzinfo=timezone.utc),
    started=datetime(2020, 1, 1, tzinfo=timezone.utc),
    config={OWNER: "ann", INS: "main"},
    expanded_config={},
    own_devices={},
    devices={},
    profiles=(),
)


# Of LXC 5.0.2.
LOG = """\
lxc a 20261125005551.244 ERROR    conf - ../src/lxc/conf.c:lxc_setup:4444 - Device or resource busy
lxc a 20261125005551.246 ERROR    start - ../src/lxc/start.c:__lxc_start:2107 - Failed to spawn
"""


class Lxd(RestInstances):
    """Answers each request with what comes next; the last one for good."""

    def __init__(
        self,
        outcomes: Sequence[PodydError | None],
        *,
        stops: bool = False,
        ends: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._client = cast(RestClient, self)
        self._outcomes = list(outcomes)
        # Whatever it says of that.
        self._stops = stops
        # Its status and power, as LXD shows them one after the other once it has ended.
        self._ends = list(ends)
        self._pod = POD
        self.asked: list[str] = []

    async def change(self, method: str, path: str, body: Any, **options: Any) -> None:
        words = {"start": "start", "stop": "force" if body["force"] else "shut down"}
        self.asked.append(words[body["action"]])
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is None or self._stops:
            self._pod = replace(POD, status="stopped")
        if outcome:
            raise outcome

    async def get(self, path: str) -> Any:
        is_on = self._pod.status == "running"
        status, power = ("Running", "RUNNING") if is_on else ("Stopped", "STOPPED")
        if self._ends and self.asked:
            status, power = self._ends.pop(0)
            if not self._ends:
                self._pod = replace(POD, status="stopped")
        return {"status": status, "config": {"volatile.last_state.power": power}}

    async def text(self, path: str) -> str:
        return LOG

    async def settle(self, name: str) -> None: ...

    async def all(self) -> tuple[Instance, ...]:
        return (self._pod,)

    async def has_room(self, name: str) -> bool:
        return True

    def check_free(self, name: str) -> None: ...

    def changed(self, name: str) -> None: ...


def power_on(lxd: RestInstances, disks: object = None, mounts: object = None) -> Power:
    """Needs nothing but LXD, and these parts."""
    return Power(
        owned=Owned(lxd),
        instances=lxd,
        disks=cast(Disks, disks),
        mounts=cast(Mounts, mounts),
        kernel=KernelLimits(instances=lxd, processes=FakeProcesses()),
    )


def stopped(*outcomes: PodydError | None, stops: bool = False) -> tuple[str, list[str]]:
    """What a member is told of a stop, and what LXD was asked for."""
    lxd = Lxd(outcomes, stops=stops)
    try:
        output = asyncio.run(power_on(lxd).stop(MEMBER, "main"))
    except PodydError as error:
        output = error.code
    return output, lxd.asked


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "FREE_SECONDS", 0.001)
    monkeypatch.setattr(instances, "BUSY_SECONDS", 0.02)
    monkeypatch.setattr(instances, "UPDATE_SECONDS", 5.0)


def test_a_pod_that_shuts_down_is_not_forced() -> None:
    assert stopped(None) == ("Pod main has stopped.", ["shut down"])


@pytest.mark.parametrize(
    "reason",
    [
        "The instance is already stopped",
        "shutting down the container failed",
        'Failed to unmount "/x": Device or resource busy',
    ],
)
def test_one_that_has_stopped_is_not_forced_whatever_lxd_says(reason: str) -> None:
    told = stopped(refusal(reason), stops=True)
    assert told == ("Pod main has stopped.", ["shut down"])


@pytest.mark.parametrize("reason", ["the container is not running", DEAF.reason])
def test_one_that_has_just_ended_has_stopped_once_lxd_has_cleaned_up(reason: str) -> None:
    # As LXC has it, as LXD cleans up, and in the end.
    ends = [("Stopped", "RUNNING"), ("Running", "STOPPED"), ("Stopped", "STOPPED")]
    lxd = Lxd([refusal(reason)], ends=ends)
    assert asyncio.run(power_on(lxd).stop(MEMBER, "main")) == "Pod main has stopped."
    assert lxd.asked == ["shut down"]


@pytest.mark.parametrize("late", [DEAF, LATE])
def test_one_that_does_not_is(late: PodydError) -> None:
    said, asked = stopped(late, None)
    assert "by force, as it did not shut down in time" in said
    assert asked == ["shut down", "force"]


@pytest.mark.parametrize("refusal", [SNAPSHOT, EngineRefused("Failed to load raw.lxc")])
def test_whatever_else_lxd_refuses_is_no_reason_for_force(refusal: PodydError) -> None:
    code, asked = stopped(refusal)
    assert code == refusal.code
    assert set(asked) == {"shut down"}


def test_what_lxd_is_at_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "BUSY_SECONDS", 5.0)
    said, asked = stopped(SNAPSHOT, SNAPSHOT, None)
    assert (said, set(asked)) == ("Pod main has stopped.", {"shut down"})


def test_a_change_of_the_settings_is_waited_for_to_its_end() -> None:
    said, asked = stopped(*[UPDATE] * 100, None)
    assert (said, set(asked)) == ("Pod main has stopped.", {"shut down"})


# --- Starting -----------------------------------------------------------------------------------


def test_what_is_busy_in_the_kernel_is_told_with_its_reason() -> None:
    """It is no pod that is at something, and waiting does not help."""
    lxd = Lxd([refusal('Failed to unmount "/x": Device or resource busy')])
    with pytest.raises(StartFailed) as error:
        asyncio.run(power_on(lxd).start_instance("ann-main"))
    assert "could not be started: Device or resource busy." in error.value.detail
    assert error.value.status == 502
    assert lxd.asked == ["start"]


# Of LXC 5.0.2, where the hierarchy of memory is not mounted.
UNLIMITED_LOG = """\
lxc a 20261128132913.525 ERROR    cgfsng - ../src/lxc/cgroups/cgfsng.c:cg_legacy_set_data:3098 - \
No such file or directory - Failed to setup limits for the "memory" controller. The controller \
seems to be unused by "cgfsng" cgroup driver or not enabled on the cgroup hierarchy
lxc a 20261128132913.525 ERROR    start - ../src/lxc/start.c:lxc_spawn:1795 - Failed to setup \
cgroup limits for container "a"
lxc a 20261128132913.527 ERROR    start - ../src/lxc/start.c:__lxc_start:2107 - Failed to spawn \
container "a"
"""


def test_that_the_host_cannot_limit_a_pod_is_told() -> None:
    class Unlimited(Lxd):
        async def text(self, path: str) -> str:
            return UNLIMITED_LOG

    lxd = Unlimited([refusal("Failed to run: /usr/bin/lxd forkstart ann-main: exit status 1")])
    with pytest.raises(NotLimited) as error:
        asyncio.run(power_on(lxd).start_instance("ann-main"))
    assert (error.value.status, error.value.code) == (502, "limits_unavailable")
    assert 'for the "memory" controller' in error.value.detail
    assert "podyd doctor" in error.value.advice


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ('Instance is busy running a "stop" operation', "pod_busy"),
        ("open backup.yaml: disk quota exceeded", "disk_full"),
        ("Instance not found", "no_such_pod"),
    ],
)
def test_what_tells_by_itself_is_told_as_it_is(reason: str, code: str) -> None:
    with pytest.raises(EngineRefused) as error:
        asyncio.run(power_on(Lxd([refusal(reason)])).start_instance("ann-main"))
    assert error.value.code == code


def test_a_pod_that_runs_already_is_started() -> None:
    asyncio.run(
        power_on(Lxd([refusal("The instance is already running")])).start_instance("ann-main")
    )


class Full(Lxd):
    """Has no room on the disk of a pod that is stopped, until it has the reserve."""

    def __init__(self) -> None:
        super().__init__([None])
        self._pod = replace(POD, status="stopped")

    async def has_room(self, name: str) -> bool:
        return "add_reserve" in self.asked

    async def add_reserve(self, pod: Pod) -> None:
        self.asked.append("add_reserve")

    async def due(self, member: Member, pod: Pod) -> None: ...

    async def apply(self, pod: Pod, due: None) -> None: ...


def test_what_has_no_room_is_lent_some_before_lxd_tries_to_start_it() -> None:
    """A start that fails for a full disk leaves LXD counting a mount that nobody has."""
    lxd = Full()
    output = asyncio.run(power_on(lxd, disks=lxd, mounts=lxd).start(MEMBER, "main"))
    assert "storage of all pods is full" in output
    assert lxd.asked == ["add_reserve", "start"]
