"""What an lxc.log comes to, and what is tried again."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.base.errors import DiskFull, NameTaken, PodydError, Slipped
from podyd.base.tasks import Tasks
from podyd.engine.instances import RestInstances
from podyd.engine.interface import Files
from podyd.engine.rest import RestClient
from podyd.engine.start_log import why_not_started
from podyd.engine.types import FromImage, NewInstance
from podyd.pods.half_made import HalfMade
from podyd.pods.lifecycle import Foreign, Lifecycle, twice_if_engine_slips
from podyd.pods.stages import Stage

# Of LXC 5.0.2, where the hook failed that brings the NVIDIA driver in.
HOOK = """\
lxc zz 20261125005551.169 WARN     cgfsng - ../src/lxc/cgroups/cgfsng.c:fchowmodat:1619 - No such \
file or directory - Failed to fchownat(34, memory.reclaim, 10000001, 0)
lxc zz 20261125005551.244 ERROR    conf - ../src/lxc/conf.c:run_buffer:322 - Script exited with \
status 1
lxc zz 20261125005551.244 ERROR    conf - ../src/lxc/conf.c:lxc_setup:4444 - Failed to run mount \
hooks
lxc zz 20261125005551.244 ERROR    start - ../src/lxc/start.c:do_start:1272 - Failed to setup \
container "zz"
lxc zz 20261125005551.244 ERROR    sync - ../src/lxc/sync.c:sync_wait:34 - An error occurred in \
another process (expected sequence number 4)
lxc zz 20261125005551.245 ERROR    lxccontainer - ../src/lxc/lxccontainer.c:\
wait_on_daemonized_start:878 - Received container state "ABORTING" instead of "RUNNING"
lxc zz 20261125005551.246 ERROR    start - ../src/lxc/start.c:__lxc_start:2107 - Failed to spawn \
container "zz"
lxc 20261125005556.266 ERROR    commands - ../src/lxc/commands.c:lxc_cmd_rsp_recv_fds:128 - Failed \
to receive file descriptors for command "get_state"
"""


def test_the_cause_and_not_its_consequences() -> None:
    cause = why_not_started(HOOK)
    assert cause.startswith(
        'Script exited with status 1; Failed to run mount hooks; Failed to setup container "zz"'
    )
    assert "podyd doctor" in cause


def test_consequences_are_better_than_nothing() -> None:
    consequences = "\n".join(HOOK.splitlines()[-3:])
    assert 'instead of "RUNNING"' in why_not_started(consequences)


def test_who_asks_while_a_pod_ends_says_nothing_of_its_start() -> None:
    asked = (
        "lxc work 20261128 ERROR    commands - ../src/lxc/commands.c:lxc_cmd_rsp_recv_fds:135 -"
        " Failed to receive file descriptors for command\n"
        "lxc work 20261128 ERROR    commands - ../src/lxc/commands.c:lxc_cmd_rsp_recv:211 -"
        " Connection reset by peer - Failed to receive response\n"
        # A command that LXD was asked to run in it just then.
        "lxc work 20261128 ERROR    attach - ../src/lxc/attach.c:get_attach_context:405 -"
        " Failed to get init pid\n"
        "lxc work 20261128 ERROR    attach - ../src/lxc/attach.c:lxc_attach:1472 -"
        " Failed to get attach context\n"
    )
    assert why_not_started(asked) == ""
    assert "mount hooks" in why_not_started(asked + HOOK)


def test_a_log_without_errors_says_nothing() -> None:
    assert why_not_started(HOOK.splitlines()[0]) == ""


SLIP = Slipped("readdirent /var/lib/lxd/x: bad file descriptor")
OTHER = DiskFull("No space left on device")


def done(outcomes: Sequence[PodydError | None], *, undone: bool = True) -> list[str]:
    """What is done where making comes to these outcomes in turn."""
    left = iter(outcomes)
    done = []

    async def make() -> None:
        done.append("make")
        if outcome := next(left):
            raise outcome

    async def undo() -> bool:
        done.append("undo")
        return undone

    try:
        asyncio.run(twice_if_engine_slips(make, undo))
    except PodydError as error:
        done.append(error.detail)
    return done


def test_it_is_made_once() -> None:
    assert done([None]) == ["make"]
    assert done([OTHER]) == ["make", "undo", OTHER.detail]


def test_where_lxd_slips_it_is_made_again() -> None:
    assert done([SLIP, None]) == ["make", "undo", "make"]
    assert done([SLIP, SLIP, None]) == ["make", "undo", "make", "undo", SLIP.detail]


def test_what_is_not_undone_is_not_made_again() -> None:
    assert done([SLIP, None], undone=False) == ["make", "undo", SLIP.detail]


def test_what_is_anothers_is_not_removed() -> None:
    class Lxd(RestInstances):
        def __init__(self) -> None:
            self._client = cast(RestClient, self)
            self.asked: list[str] = []

        async def change(self, method: str, path: str, *_: object, **options: object) -> None:
            self.asked.append(method)
            raise NameTaken('This "instances" entry already exists')

        def changed(self, name: str) -> None: ...

    lxd = Lxd()
    needed = dict.fromkeys(inspect.signature(Lifecycle).parameters)
    half_made = HalfMade(instances=lxd, files=cast(Files, None), tasks=Tasks())
    disks = SimpleNamespace(device=lambda name: {})
    parts = {**needed, "instances": lxd, "half_made": half_made, "disks": disks}
    making = Lifecycle(**cast(Any, parts))
    new = NewInstance("a", FromImage("f"), (), {}, {})

    async def make() -> None:
        await twice_if_engine_slips(
            lambda: making._make_whole(new, None, Stage("unpacking")), lambda: half_made.remove("a")
        )

    with pytest.raises(Foreign) as raised:
        asyncio.run(make())
    assert (raised.value.status, raised.value.code) == (409, "name_taken")
    assert lxd.asked == ["POST"]
