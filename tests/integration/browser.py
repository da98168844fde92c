"""A real browser at podyd's page: Debian's Chromium without a window, driven by Playwright.

`Browser` is the process, `Tab` one person's page in a profile of its own. A tab writes down what no
page may do: errors in its console, refusals by its Content-Security-Policy, requests elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    HttpCredentials,
    Locator,
    Page,
    Request,
    Response,
    StorageState,
    WebSocket,
    expect,
    sync_playwright,
)

from tests.integration.harness import PASSWORD

CHROMIUM = "/usr/bin/chromium"
# The server as others see it: by plain HTTP, which browsers trust on localhost alone.
ELSEWHERE = "podyd.test"
# It asks for nothing by itself, and no name but this machine's leads anywhere.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# What is not there by then never comes; LXD's own work takes longer on a machine with much to do.
SECONDS, WORK_SECONDS = 20.0, 90.0
WIDE, NARROW = (1280, 800), (375, 700)
# No faults of the page's: a call that podyd refuses (what the page makes of it is tested), that it
# is left before a connection of its own is there, and that the addresses of this machine change, as
# where somebody makes a bridge: Chromium gives up what it has asked for then.
HARMLESS = re.compile(
    r"Failed to load resource: the server responded with a status of 4\d\d"
    r"|WebSocket connection to .* closed before the connection is established"
    r"|.*net::ERR_NETWORK_CHANGED"
)
# The paths of the API that pages have asked for, in all tests of this process: see asked.py.
ASKED: set[str] = set()
# A name out of a pod: see `Tab.ran`.
MARKUP = '<img src=x onerror="window.ran=1"><b>bold'

_AXE = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
# By WCAG 2.2 AA, or only these rules of axe's.
_RUN_AXE = """async (only) => {
  const found = await axe.run(document, {
    runOnly: only.length ? {type: "rule", values: only}
      : {type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    rules: only.length ? {} : {"target-size": {enabled: true}},
    resultTypes: ["violations"],
  });
  return found.violations.map(({id, help, nodes}) =>
    ({id, help, nodes: nodes.map((node) => `${node.html} ${node.failureSummary}`)}));
}"""


class Browser:
    """Chromium, without anything of an earlier run; all that it writes is removed at the end.

    While it runs, this thread has an event loop that runs, so asyncio.run() is refused there.
    """

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        try:
            home = self._held.enter_context(tempfile.TemporaryDirectory(prefix="podyd-browser-"))
            with _environment(HOME=home, TMPDIR=home):
                driver = self._held.enter_context(sync_playwright())
                self._browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            self._held.callback(self._browser.close)
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        self._held.close()

    @contextlib.contextmanager
    def tab(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        path: str = "/",
        theme: str = "light",
        size: tuple[int, int] = WIDE,
        login: StorageState | None = None,
        permissions: Sequence[str] = (),
        scripts: bool = True,
        dialog: HttpCredentials | None = None,
    ) -> Iterator[Tab]:
        """A page in a profile of its own, not opened yet; its faults fail the test at the end.

        `path` is below what podyd is, "/" or a proxy's prefix; `theme` is light or dark, as the
        system of the person has it; `login` is of a tab that has logged in; `permissions` are such
        as "clipboard-read"; without `scripts`, JavaScript is off, and axe does not work;
        `dialog` is what is typed where the browser itself asks for a name and a password.
        """
        width, height = size
        context = self._browser.new_context(
            base_url=f"http://{host}:{port}{path}",
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            locale="en-GB",
            timezone_id="Europe/Berlin",
            storage_state=login,
            permissions=list(permissions),
            accept_downloads=True,
            java_script_enabled=scripts,
            http_credentials=dialog,
        )
        context.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)
        try:
            tab = Tab(context, f"http://{host}:{port}{path}")
            try:
                yield tab
            finally:
                # pytest shows it where the test fails.
                print(tab.text())
            tab.check()
        finally:
            context.close()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """This process's environment meanwhile, which the driver and the browser inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class Tab:
    """One person's page. `page` is Playwright's, for whatever is not here."""

    context: BrowserContext
    base: str
    page: Page = field(init=False)
    faults: list[str] = field(default_factory=list)
    _forgiven: list[re.Pattern[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.add_init_script(
            "document.addEventListener('securitypolicyviolation', (event) => console.error("
            "`refused by the policy: ${event.violatedDirective} ${event.blockedURI}`))"
        )
        self.page = self.another()

    def another(self) -> Page:
        """One more page of the same person's; what it does counts as well."""
        page = self.context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._fault(f"{error.name}: {error.message}"))
        page.on("crash", lambda _: self._fault("the page crashed"))
        page.on("request", self._asked)
        page.on("response", self._answered)
        page.on("websocket", self._connected)
        return page

    # --- What it does ----------------------------------------------------------------------------

    def open(self, route: str = "") -> Tab:
        """Load the page anew, at a route such as "/pods/work"."""
        self.page.goto(f"{self.base}#{route}" if route else self.base)
        return self

    def log_in(self, user: str, password: str = PASSWORD) -> Tab:
        """By the form, which has to be there."""
        self.page.get_by_label("User name").fill(user)
        self.page.get_by_label("Password", exact=True).fill(password)
        self.button("Log in").click()
        return self

    def enter(self, user: str, password: str = PASSWORD, route: str = "") -> Tab:
        """Open it and log in; over when the page's frame is there."""
        self.open(route).log_in(user, password)
        expect(self.button("Log out")).to_be_visible()
        return self

    def login(self) -> StorageState:
        """With which another tab is logged in as this one is."""
        return self.context.storage_state()

    def go(self, route: str) -> Tab:
        """Another page of podyd's, as a link leads there; over when its heading is there.

        The page of before stays until then.
        """
        before = self.page.url
        self.page.evaluate(
            """route => {
              document.querySelector("main h1")?.setAttribute("data-left", "");
              location.hash = route;
            }""",
            route,
        )
        if self.page.url == before:
            self.page.reload()
        expect(self.page.locator("main h1:not([data-left], .visually-hidden)")).to_be_visible()
        return self

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile the page's process does not run, as when the machine sleeps."""
        pid = self._process()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _process(self) -> int:
        """The process that this page runs in, by what it burns meanwhile."""
        assert self.context.browser is not None
        session = self.context.browser.new_browser_cdp_session()
        try:

            def used() -> dict[int, float]:
                found = session.send("SystemInfo.getProcessInfo")["processInfo"]
                return {item["id"]: item["cpuTime"] for item in found if item["type"] == "renderer"}

            before = used()
            self.page.evaluate(
                "for (const end = performance.now() + 200; performance.now() < end;);"
            )
            return max((time - before.get(pid, 0), pid) for pid, time in used().items())[1]
        finally:
            session.detach()

    def reload(self) -> Tab:
        self.page.reload()
        return self

    # --- What is on it ---------------------------------------------------------------------------

    def button(self, name: str | re.Pattern[str], *, within: Locator | None = None) -> Locator:
        """The button with this whole name."""
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def row(self, text: str) -> Locator:
        """The row of a table that has this text."""
        return self.page.get_by_role("row").filter(has_text=text)

    def dialog(self) -> Locator:
        """The dialog that is open."""
        return self.page.get_by_role("dialog")

    def shows(self, text: str | re.Pattern[str], seconds: float = SECONDS) -> None:
        """Wait until this can be read in the page."""
        expect(self.page.locator("body")).to_contain_text(
            text, use_inner_text=True, timeout=seconds * 1000
        )

    def shows_not(self, text: str | re.Pattern[str], seconds: float = SECONDS) -> None:
        """Wait until this cannot be read in the page any more."""
        expect(self.page.locator("body")).not_to_contain_text(
            text, use_inner_text=True, timeout=seconds * 1000
        )

    def text(self) -> str:
        """All that can be read in it."""
        return self.page.locator("body").inner_text() if self.page.url != "about:blank" else ""

    def is_live(self) -> None:
        """Wait until it shows something, and what it shows is of now."""
        expect(self.page.locator("#app > *").first).to_be_attached()
        expect(self.page.locator("html")).not_to_have_class(re.compile(r"\bstale\b"))

    def ran(self) -> bool:
        """Whether markup out of a pod was taken for the page's own: see MARKUP."""
        found: bool = self.page.evaluate(
            "window.ran !== undefined || document.querySelector('img[src=x], main b') !== null"
        )
        return found

    def overflows(self, seconds: float = 2.0) -> bool:
        """Whether it stays wider than the window, so that it has to be scrolled to the side."""
        end = time.monotonic() + seconds
        while self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        ):
            if time.monotonic() > end:
                return True
            self.page.wait_for_timeout(50)
        return False

    def axe(self, only: Sequence[str] = ()) -> list[Mapping[str, Any]]:
        """What axe-core finds wrong by WCAG 2.2 AA, or by these of its rules."""
        heard = list(self.faults)
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(f"{_AXE}; undefined")
        found: list[Mapping[str, Any]] = self.page.evaluate(_RUN_AXE, list(only))
        # What axe itself does is not the page's.
        self.faults[:] = heard
        return found

    def is_accessible(self) -> None:
        """Fail with what axe-core finds."""
        found = self.axe()
        assert not found, json.dumps(found, indent=1)

    # --- What it may not do ----------------------------------------------------------------------

    @contextlib.contextmanager
    def forgives(self, *patterns: str) -> Iterator[None]:
        """Meanwhile these are no faults, such as a connection that a test cuts."""
        added = [re.compile(pattern) for pattern in patterns]
        self._forgiven += added
        try:
            yield
        finally:
            del self._forgiven[-len(added) :]

    def check(self) -> None:
        """Fail with all that it did and must not do."""
        faults, self.faults = self.faults, []
        assert not faults, "\n".join(faults)

    def _fault(self, text: str) -> None:
        if not any(pattern.search(text) for pattern in self._forgiven):
            self.faults.append(text)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert") and not HARMLESS.match(message.text):
            self._fault(f"console: {message.text} ({message.location.get('url')})")

    def _asked(self, request: Request) -> None:
        self._stays_here(request.url)

    def _connected(self, connection: WebSocket) -> None:
        self._stays_here(connection.url)

    def _stays_here(self, url: str) -> None:
        there, here = urlsplit(url), urlsplit(self.base)
        if there.scheme in ("data", "blob"):
            return
        if there.netloc != here.netloc or not there.path.startswith(here.path):
            self._fault(f"a request to {url}")
        else:
            ASKED.add(f"/{there.path.removeprefix(here.path)}")

    def _answered(self, response: Response) -> None:
        if response.status >= 500:
            self._fault(f"{response.status} for {response.url}")
