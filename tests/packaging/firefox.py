"""Debian's Firefox without a window, driven by WebDriver BiDi, which it speaks itself.

Debian has no geckodriver, and Playwright drives only a Firefox of its own making.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

from tests.packaging.machine import entered

FIREFOX = "/usr/bin/firefox-esr"
START_SECONDS, ANSWER_SECONDS = 60.0, 60.0
# WebDriver's names of keys that type no character.
KEYS = {"\t": "\ue004", "\n": "\ue007"}
# It asks for nothing by itself.
PREFERENCES = {
    "app.normandy.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One page, in the network namespace of a machine; `faults` are errors in its console."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.faults: list[str] = []
        self._send("session.new", capabilities={})
        self._send("session.subscribe", events=["log.entryAdded"])
        self._page = self._send("browsingContext.getTree")["contexts"][0]["context"]

    def open(self, url: str) -> None:
        """Load a page, until it is complete."""
        self._send("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def run(self, script: str) -> Any:
        """The value (text, number or null) of a JavaScript expression, which may be a promise."""
        done = self._send(
            "script.evaluate",
            expression=script,
            target={"context": self._page},
            awaitPromise=True,
            userActivation=True,
        )
        assert done["type"] == "success", done
        return done["result"].get("value")

    def type(self, text: str) -> None:
        """Press and release the key of each character, where the focus is."""
        keys = [
            {"type": kind, "value": KEYS.get(char, char)}
            for char in text
            for kind in ("keyDown", "keyUp")
        ]
        self._send(
            "input.performActions",
            context=self._page,
            actions=[{"type": "key", "id": "keyboard", "actions": keys}],
        )

    def shows(self, text: str, limit: float = 60.0) -> None:
        """Wait until this can be read in the page."""
        end = time.monotonic() + limit
        while text not in (shown := self.run("document.body.innerText")):
            assert time.monotonic() < end, f"{text!r} does not come; there is:\n{shown}"
            time.sleep(0.2)

    def _send(self, method: str, **parameters: object) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("method") == "log.entryAdded" and answer["params"]["level"] == "error":
                self.faults.append(answer["params"]["text"])
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]


@contextlib.contextmanager
def firefox(namespace: str) -> Iterator[Firefox]:
    """A Firefox with a fresh profile; it ends, and all that it has written goes, with the block."""
    with tempfile.TemporaryDirectory(prefix="podyd-firefox-") as home:
        lines = [f'user_pref("{k}", {json.dumps(v)});' for k, v in PREFERENCES.items()]
        (Path(home) / "user.js").write_text("\n".join(lines))
        command = ["ip", "netns", "exec", namespace, FIREFOX, "--headless", "--no-remote"]
        log = Path(home) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--profile", home, "--remote-debugging-port", "0"],
                stdout=output,
                stderr=output,
                env={**os.environ, "HOME": home, "TMPDIR": home},
                start_new_session=True,
            )
            try:
                url = _socket_of(log, process)
                with entered(namespace):
                    connection = websocket.create_connection(
                        f"{url}/session", timeout=ANSWER_SECONDS, suppress_origin=True
                    )
                with contextlib.closing(connection):
                    yield Firefox(connection)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _socket_of(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Where it listens, which it says once it does."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text("utf-8"))
        if found:
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"Firefox does not listen:\n{log.read_text('utf-8')[-2000:]}")
