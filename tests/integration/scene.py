"""A small lab with a page: what the tests of the page and its screenshots (shots.py) look at."""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, StorageState, expect

from tests.integration.browser import WORK_SECONDS, Browser, Tab
from tests.integration.harness import FOLLOWING, SMALL, Client, Line, Node, wait_until
from tests.lab.nvml import FakeDriver

WORK_MS = WORK_SECONDS * 1000


class Scene:
    """A machine with simulated cards whose podyd reaches LXD over a line that can hang, and which
    can be stopped and started again at the same port."""

    def __init__(self, **changes: Any) -> None:
        """`changes` are of podyd.yaml."""
        self.node = Node()
        self._held = contextlib.ExitStack()
        self._held.callback(self.node.close)
        try:
            self.node.start_helper()
            self.node.start_relay()
            self.node.start_packing()
            self.node.start_cards()
            self.driver = FakeDriver(self.node.directory / "nvidia")
            endpoint = (self.node.credentials / "endpoint").read_text().strip()
            self.line = Line(int(endpoint.rpartition(":")[2]))
            self._held.callback(self.line.close)
            near = f"https://127.0.0.1:{self.line.port}"
            self.server = self.node.serve(
                {"lxd": {"endpoint": near}, **changes}, environment=self.driver.environment
            )
        except BaseException:
            self._held.close()
            raise

    @property
    def port(self) -> int:
        return self.server.port

    def client(self, user: str = "") -> Client:
        return self.server.client(user)

    def member(self, *options: str) -> Client:
        """A new member; `options` are useradd's."""
        return self.client(self.node.accounts.user("", *options))

    def owner(self, ins: str, **asked: object) -> Client:
        """A new member with this pod; what is `asked` for it, as /pod/create has it."""
        client = self.member()
        client.post("/pod/create", ins=ins, image=SMALL, **asked).ok
        return client

    def admin(self) -> Client:
        return self.member("-G", "sudo")

    def stop(self) -> None:
        assert self.server.stop() == 0

    def start(self) -> None:
        """podyd again, where it was."""
        followed = self.server.log_text().count(FOLLOWING)
        self.server.process, _ = self.node.launch(
            self.server.config, environment=self.driver.environment
        )
        wait_until(lambda: self.server.log_text().count(FOLLOWING) > followed, "podyd", 60)

    def close(self) -> None:
        """Pods and all."""
        self._held.close()


def running(word: str) -> list[int]:
    """The processes in pods whose last argument this is, by the host's numbers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().endswith(f"\0{word}\0".encode()):
                found.append(int(path.parent.name))
        except OSError:  # It has ended meanwhile.
            continue
    return found


class Doors:
    """Opens tabs of a scene's podyd; each member logs in by the form once."""

    def __init__(self, scene: Scene, browser: Browser) -> None:
        self._scene, self._browser = scene, browser
        self._logins: dict[str, StorageState] = {}

    @contextlib.contextmanager
    def __call__(self, client: Client, route: str = "", *, theme: str = "light") -> Iterator[Tab]:
        """A tab of this member's, live, at a route such as "/pods"."""
        login = self._logins.get(client.user)
        with self._browser.tab(self._scene.port, login=login, theme=theme) as tab:
            if login is None:
                tab.enter(client.user, client.password, route)
                self._logins[client.user] = tab.login()
            else:
                tab.open(route)
            tab.is_live()
            yield tab


def title(tab: Tab, text: str) -> None:
    """Wait for the page with this heading."""
    expect(tab.page.locator("main h1")).to_have_text(text, timeout=WORK_MS)


# --- What is pressed ----------------------------------------------------------------------------

# At the next click: whether it is of a button that is held back at that moment.
_WATCH = """() => {
  window.wasHeldBack = false;
  window.addEventListener("click", ({ target }) => {
    window.wasHeldBack = target.closest?.("button")?.getAttribute("aria-disabled") === "true";
  }, { capture: true, once: true });
}"""


def press(button: Locator) -> None:
    """By the keyboard, once it can be: what is done with a pod is waited for."""
    _once_it_can_be(button, lambda: button.press("Enter"))


def click(button: Locator) -> None:
    """By the mouse, once it can be."""
    _once_it_can_be(button, lambda: button.click(timeout=WORK_MS))


def send(field: Locator, text: str, button: Locator) -> None:
    """Fill in a form's field and send it by the keyboard, once its button can be pressed."""
    field.fill(text)
    _once_it_can_be(button, lambda: field.press("Enter"))


def _once_it_can_be(button: Locator, press: Callable[[], None]) -> None:
    """Press a button once with effect: podyd's word that its pod is at work, which holds it back,
    may come between a look at it and the press."""

    def is_pressed() -> bool:
        expect(button).not_to_have_attribute("aria-disabled", "true", timeout=WORK_MS)
        button.page.evaluate(_WATCH)
        press()
        return not button.page.evaluate("window.wasHeldBack")

    wait_until(is_pressed, f"{button} to be free", WORK_SECONDS)


# --- Behind a proxy -----------------------------------------------------------------------------


class _Below(socketserver.StreamRequestHandler):
    """One request, which has to be below the prefix; a WebSocket lasts as long as it wants."""

    def handle(self) -> None:
        assert isinstance(self.server, _Proxy)
        prefix = self.server.prefix
        try:
            method, target, version = self.rfile.readline(65536).decode("latin-1").split()
        except ValueError:  # A connection that was opened in case it is needed.
            return
        headers = http.client.parse_headers(self.rfile)
        if not target.startswith(prefix):
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        if headers.get("Upgrade") is None:
            del headers["Connection"]
            headers["Connection"] = "close"
        head = f"{method} /{target.removeprefix(prefix)} {version}\r\n{headers}"
        with socket.create_connection(("127.0.0.1", self.server.target)) as podyd:
            podyd.sendall(head.replace("\r\n", "\n").replace("\n", "\r\n").encode("latin-1"))
            thread = threading.Thread(target=self._send_on, args=(podyd,))
            thread.start()
            with contextlib.suppress(OSError):
                while data := podyd.recv(65536):
                    self.wfile.write(data)
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _send_on(self, podyd: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.rfile.read1(65536):
                podyd.sendall(data)
            podyd.shutdown(socket.SHUT_WR)


class _Proxy(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, target: int, prefix: str) -> None:
        self.target, self.prefix = target, prefix
        super().__init__(("127.0.0.1", 0), _Below)


@contextlib.contextmanager
def proxy(target: int, prefix: str) -> Iterator[int]:
    """A reverse proxy's port: podyd, of port `target`, is at the prefix there, such as "/lab/".

    Nothing else is. As nginx does it, but that each request has a connection of its own.
    """
    with _Proxy(target, prefix) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
