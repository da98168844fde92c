"""Output of a command that LXD sends late, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from podyd.base.errors import Conflict, Missing, OutputLost, PodydError
from podyd.base.tasks import Tasks
from podyd.engine import execution
from podyd.engine.collected import Collected
from podyd.engine.endings import Endings
from podyd.engine.execution import RestExecutor
from podyd.engine.rest import RestClient
from podyd.engine.streams import Exit, bash

OUTPUT = b"kept\n"
# As LXD calls them.
STDIN, STDOUT, STDERR = "0", "1", "2"
MARK, CUT = "mark", "cut"


class Socket:
    """A websocket of LXD's that gives what comes and then its end; `late` once LXD was asked."""

    def __init__(self, *messages: str | bytes, late: asyncio.Event | None = None) -> None:
        self._messages = list(messages)
        self._late = late

    async def read_message(self) -> str | bytes | None:
        if self._late is not None:
            await self._late.wait()
        return self._messages.pop(0) if self._messages else None

    async def write_message(self, message: str | bytes, binary: bool = False) -> None: ...

    def close(self) -> None: ...


class Lxd:
    """Runs a command that writes OUTPUT on stdout, and ends with `code`, as LXD says it.

    Of each stream: whether it is whole (MARK), or ends without its mark (CUT).
    """

    def __init__(self, out: str, err: str, code: int | None, *, late: bool = False) -> None:
        self._whole = {STDOUT: out == MARK, STDERR: err == MARK}
        self._code = code
        # LXD sends nothing before it has answered what the command came to.
        self._asked = asyncio.Event() if late else None
        self.started = 0
        self.killed = 0

    async def start(self, path: str, body: Any) -> Any:
        self.started += 1
        self._nonce = body["command"][4]
        names = ("control", STDIN, STDOUT, STDERR)
        return {"id": "1", "metadata": {"fds": {name: name for name in names}}}

    async def check(self, name: object) -> None: ...

    async def change(self, method: str, path: str, body: Any, **options: Any) -> Any:
        self.killed += 1
        return {"metadata": {"return": 0}}

    async def websocket(self, path: str, *, secret: str, answers_pings: bool = True) -> Socket:
        if secret not in self._whole:
            return Socket()
        wrote = OUTPUT if secret == STDOUT else b""
        mark = f"\0podyd-{self._nonce}:{self._code};".encode()
        # The empty text is LXD's sign that it has come to an end of the stream.
        sent: tuple[str | bytes, ...] = (wrote + mark, "") if self._whole[secret] else ("",)
        return Socket(*sent, late=self._asked)

    async def get(self, path: str) -> Any:
        if self._asked is not None:
            asyncio.get_running_loop().call_later(0.05, self._asked.set)
        if self._code is None:
            raise Missing("Operation not found")
        return {"metadata": {"return": self._code}}


def ran(tmp_path: Path, lxd: Lxd) -> tuple[int | None, str]:
    """What is answered of a command; the code of the error, if that is what it comes to."""

    output = Collected(1000)

    async def run() -> Exit:
        tasks = Tasks()
        client = cast(RestClient, lxd)
        executor = RestExecutor(client, tasks, Endings(client, tmp_path / "endings"))
        try:
            return await executor.run("a", bash("cat kept"), output, timeout=20)
        finally:
            await tasks.finish(5)

    done = asyncio.run(run())
    return done.code, str(output.stdout)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "UNMARKED_GRACE", 0.01)


@pytest.mark.parametrize("code", [0, 3, 137])
def test_what_lxd_sends_late_is_waited_for(tmp_path: Path, code: int) -> None:
    """It closes `control` first, and on a busy machine all else comes when it comes."""
    assert ran(tmp_path, Lxd(MARK, MARK, code, late=True)) == (code, "kept\n")


@pytest.mark.parametrize(
    ("out", "err", "code"),
    [(CUT, MARK, 0), (MARK, CUT, 3), (CUT, MARK, 137), (CUT, CUT, 0), (CUT, CUT, 128)],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_stream_that_is_not_whole_is_no_answer(
    tmp_path: Path, out: str, err: str, code: int, late: bool
) -> None:
    lxd = Lxd(out, err, code, late=late)
    with pytest.raises(OutputLost, match=rf"exit code {code}\)") as error:
        ran(tmp_path, lxd)
    assert (error.value.status, error.value.code) == (502, "output_lost")
    assert error.value.fields == {"exit_code": code}
    assert (lxd.started, lxd.killed) == (1, 0), "it has run, once"


def test_a_shell_that_was_killed_leaves_no_mark(tmp_path: Path) -> None:
    assert ran(tmp_path, Lxd(CUT, CUT, 137)) == (137, "")


@pytest.mark.parametrize(("code", "message"), [(127, "no_shell"), (-1, "exec_cut_off")])
def test_one_that_did_not_end_so_is_told_otherwise(
    tmp_path: Path, code: int | None, message: str
) -> None:
    with pytest.raises(Conflict) as refused:
        ran(tmp_path, Lxd(CUT, CUT, code))
    assert refused.value.code == message


def test_what_lxd_has_forgotten_was_cut_off(tmp_path: Path) -> None:
    with pytest.raises(PodydError) as refused:
        ran(tmp_path, Lxd(CUT, CUT, None))
    assert refused.value.code == "exec_cut_off"
