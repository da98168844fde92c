"""The cards and the queue as plain text."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

from podyd.client.show import columns_of
from podyd.contract.gpus import Waiting
from podyd.contract.host import CardHolder, GpuInfo
from podyd.gpus.status_text import WIDTH, status_text

GIB = 1024**3
NOW = datetime(2026, 11, 28, 17, 5, 9, tzinfo=timezone.utc)
FREE = GpuInfo(
    index=1,
    uuid="GPU-b",
    pci="0000:02:00.0",
    name="NVIDIA H100 80GB HBM3",
    driver="580",
    memory_total=80 * GIB,
    memory_used=0,
    utilisation=0,
    temperature=31,
    power=70.0,
    power_limit=700.0,
    idle=None,
    problem=None,
    pods=[],
    intruders=[],
)
LEASED = replace(
    FREE,
    index=0,
    memory_used=int(61.5 * GIB),
    utilisation=97,
    temperature=64,
    pods=[
        CardHolder(
            "alice-first",
            "alice",
            attached=True,
            exclusive=True,
            since="2026-11-28T10:00:00Z",
            until="2026-11-28T18:30:40Z",
        )
    ],
)


def shared(*owners: str) -> GpuInfo:
    return replace(
        FREE,
        pods=[
            CardHolder(f"{owner}-x", owner, attached=True, exclusive=False, since=None, until=None)
            for owner in owners
        ],
    )


def text(*cards: GpuInfo, queue: tuple[Waiting, ...] = ()) -> str:
    found = status_text("gpu1", NOW, cards, queue)
    assert all(columns_of(line) <= WIDTH for line in found.splitlines())
    return found


def test_cards_and_the_queue() -> None:
    waiting = Waiting(1, "carol-train", "carol", "2", 24.0, "2026-11-28T16:00:00Z", 2)
    assert (
        text(LEASED, FREE, queue=(waiting,))
        == """\
gpu1                                                     2026-11-28 17:05:09 UTC

GPU  NAME               USE      MEMORY  TEMP  HELD BY               UNTIL
  0  H100 80GB HBM3    97 %    61.5/80G  64 C  alice-first           11-28 18:30
  1  H100 80GB HBM3     0 %     0.0/80G  31 C  nobody

     WAITING                         GPUS                FOR  SINCE
  1  carol-train                     2                  24 h  2026-11-28 16:00
"""
    )


def test_figures_that_nobody_knows_and_a_problem() -> None:
    lost = replace(
        FREE, memory_used=None, utilisation=None, temperature=None, problem="It is lost."
    )
    assert text(lost).splitlines()[3:5] == [
        "  1  H100 80GB HBM3       -           -     -  nobody",
        "     It is lost.",
    ]


def test_who_shares_a_card() -> None:
    assert " alice\n" in text(shared("alice", "alice"))
    assert " alice, bob, carol\n" in text(shared("alice", "bob", "carol"))
    assert " 山田花子, 佐藤 +2\n" in text(shared("山田花子", "佐藤", "鈴木", "林"))
    assert " student0000 +3\n" in text(shared(*(f"student000{n}" for n in range(4))))
    assert " +198\n" in text(shared(*(f"u{n}" for n in range(202))))


def test_a_host_without_cards_and_without_a_queue() -> None:
    assert "This host has no GPUs." in text()
    assert "Nobody waits for a GPU." in text(FREE)


def test_wide_and_long_names_keep_the_columns() -> None:
    wide = replace(FREE, name="NVIDIA 計算用グラフィックカード", pods=shared("計算" * 30).pods)
    accented = replace(
        FREE, name="NVIDIA Cafe\u0301 9000", memory_total=141 * GIB, memory_used=141 * GIB
    )
    waiting = tuple(
        Waiting(number, pod, "carol", "2", 24.0, "2026-11-28T16:00:00Z", 2)
        for number, pod in ((1, "訓練" * 20), (2, "x" * 80), (3, "short"))
    )
    assert " 141.0/141G " in text(accented)
    lines = text(LEASED, wide, accented, queue=waiting).splitlines()
    assert len({columns_of(line[: line.index(" C  ")]) for line in lines[3:6]}) == 1
    assert len({columns_of(line[: line.index("2026")]) for line in lines[8:]}) == 1


def test_names_are_text_of_one_line_and_no_codes_of_a_terminal() -> None:
    odd = replace(
        FREE, name="x\x1b[2J\ny", problem="p\r\x1b]0;t\x07" + "q" * 500, pods=shared("a\nb").pods
    )
    found = status_text("h\x1b[31m" + "o" * 200, NOW, [odd], [])
    assert not set(found) & {"\x1b", "\r", "\x07"}
    assert len(found.splitlines()) == 7
    assert all(len(line) <= WIDTH for line in found.splitlines())
