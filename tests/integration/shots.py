"""Screenshots of each page, of a small lab that is made for them and goes again.

`python -m tests.integration.shots DIRECTORY`, as root and with a lab that is up. README has two of
them: docs/images/gpus.png is cards.png, gpu-dark.png is cards-0-dark.png.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.browser import NARROW, WIDE, Browser, Tab
from tests.integration.harness import IMAGE, SMALL, Client, wait_until
from tests.integration.scene import Scene
from tests.lab.lab import DEFAULT_CARDS
from tests.lab.nvml import GIB, FakeNvml, FakeProcess

POD = ("overview", "terminal", "files", "logs", "snapshots", "ports")
MEMBER = ("pods", "new", *(f"pods/train/{tab}" for tab in POD), "cards", "cards/0", "account")
ADMIN = tuple(f"admin/{part}" for part in ("pods", "people", "leases", "doctor", "log", "hours"))
# What stands on a page once it is whole.
USED = re.compile(r"\d( MiB)? of 8\.00 GiB")
READY: dict[str, str | re.Pattern[str]] = {
    "pods": USED,
    "pods/train/overview": USED,
    "pods/train/ports": "0.0.0.0",
    "pods/train/files": "model.pt",
    "pods/train/terminal": "tmux",
}
# What runs on the cards, and in which pod.
TRAINING, TUNING = "python train.py --config llama-7b.yaml", "python finetune.py --lora r=16"


@dataclass(frozen=True)
class Lab:
    """Who there is; ada has the pods "train", "notes" and "old", grace "bert"."""

    ada: Client
    grace: Client
    admin: Client


@contextlib.contextmanager
def seeded() -> Iterator[tuple[Scene, Lab]]:
    """Two members and an admin, their pods, a lease, a queue, and processes on the cards."""
    with contextlib.ExitStack() as held:
        scene = Scene()
        held.callback(scene.close)
        accounts = scene.node.accounts
        lab = Lab(
            scene.client(accounts.user("ada")),
            scene.client(accounts.user("grace")),
            scene.client(accounts.user("noether", "-G", "sudo")),
        )
        lab.ada.post("/pod/create", ins="train", image=IMAGE, gpus="0,").ok
        lab.ada.post("/pod/limits", ins="train", memory="8GiB", cpu=1).ok
        lab.grace.post("/pod/create", ins="bert", image=IMAGE, gpus="1,").ok
        lab.ada.post("/pod/create", ins="notes", image=SMALL, gpus="none").ok
        lab.ada.post("/pod/create", ins="old", image=SMALL, gpus="none").ok
        lab.ada.post("/pod/stop", ins="old").ok
        lab.ada.post("/pod/snapshot", ins="train", name="before-v2").ok
        lab.ada.post("/gpu/lease", ins="train", gpus="0,", hours=8).ok
        lab.grace.post("/gpu/queue", ins="bert", gpus="0,", hours=24).ok
        files = "mkdir -p data runs && touch train.py README.md && head -c 3000000 /dev/urandom"
        lab.ada.exec("train", f"cd /root && {files} >model.pt")
        training, tuning = _run(lab.ada, "train", TRAINING), _run(lab.grace, "bert", TUNING)
        busy = FakeNvml().with_gpu(
            0,
            utilisation=93,
            memory_used=61 * GIB,
            power=271.0,
            temperature=68,
            processes=(FakeProcess(training, memory=60 * GIB, utilisation=93),),
        )
        scene.driver.write(
            busy.with_gpu(
                1,
                utilisation=34,
                memory_used=18 * GIB,
                power=148.5,
                temperature=51,
                processes=(FakeProcess(tuning, memory=17 * GIB, utilisation=34),),
            )
        )
        scene.stop()
        _past(scene)
        scene.start()
        yield scene, lab


def _past(scene: Scene) -> None:
    """The last hour's curves of the GPUs, each a wave between two values."""
    waves = [
        *(("gpu utilisation", card.uuid, 70, 97) for card in DEFAULT_CARDS),
        *(("gpu memory_used", card.uuid, 55 * GIB, 61 * GIB) for card in DEFAULT_CARDS),
        *(("gpu power", card.uuid, 210, 280) for card in DEFAULT_CARDS),
        *(("gpu temperature", card.uuid, 60, 69) for card in DEFAULT_CARDS),
    ]
    now = int(time.time()) // 60 * 60
    path = Path(scene.node.base["state_dir"], "data", "podyd.db")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for figure, whose, low, high in waves:
            for minute in range(1, 60):
                share = 0.5 + 0.4 * math.sin(minute / 7) + 0.1 * math.sin(minute * 1.7)
                value = low + (high - low) * share
                row = (figure, 60, now - 60 * minute, whose, value)
                database.execute("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?)", row)


def _run(client: Client, ins: str, title: str) -> int:
    """A process in a pod that has this as its command line; its pid on the host."""
    script = f"$0 = {title!r}; sleep 86400"
    client.exec(ins, f"setsid perl -e {shlex.quote(script)} >/dev/null 2>&1 &")
    wait_until(lambda: bool(_titled(title)), title)
    (pid,) = _titled(title)
    return pid


def _titled(title: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            if path.read_bytes().rstrip(b"\0 ") == title.encode():
                found.append(int(path.parent.name))
    return found


def take(tab: Tab, routes: tuple[str, ...], directory: Path) -> None:
    """Each page in light, in dark and narrow."""
    for route in routes:
        name = route.replace("/", "-")
        tab.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
        tab.page.emulate_media(color_scheme="light")
        tab.go(f"/{route}")
        tab.shows(READY.get(route, ""))
        tab.page.wait_for_load_state("networkidle")
        closed = tab.page.locator("main details:not([open]) > summary:visible")
        while closed.count():
            closed.first.click()
        tab.page.screenshot(path=directory / f"{name}.png")
        tab.page.emulate_media(color_scheme="dark")
        tab.page.screenshot(path=directory / f"{name}-dark.png")
        tab.page.emulate_media(color_scheme="light")
        tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
        tab.page.screenshot(path=directory / f"{name}-narrow.png", full_page=True)


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    with seeded() as (scene, lab), contextlib.closing(Browser()) as browser:
        with browser.tab(scene.port) as tab:
            tab.open()
            tab.shows("Log in")
            tab.page.screenshot(path=directory / "login.png")
            tab.log_in(lab.ada.user)
            tab.shows(lab.ada.user)
            take(tab, MEMBER, directory)
        with browser.tab(scene.port) as tab:
            tab.enter(lab.admin.user)
            take(tab, (*ADMIN, "wall"), directory)


if __name__ == "__main__":
    main()
