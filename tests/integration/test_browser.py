"""The tests' browser notices what no page may do; nothing of podyd's is needed for that."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from tests.integration.browser import NARROW, Browser
from tests.integration.scene import click, press, send

POLICY = "default-src 'none'; script-src 'self'; connect-src 'self' http://localhost:9"
GOOD = "<!doctype html><html lang=en><title>t</title><main><h1>Good</h1><p>All is well.</p></main>"
# What a bad page does, and a word of what is found.
FAULTS = {
    "console.error('so it is')": "so it is",
    "setTimeout(() => { throw new TypeError('not so') })": "TypeError: not so",
    "fetch('http://localhost:9/elsewhere').catch(() => {})": "a request to http://localhost:9/",
    "document.body.append(Object.assign(new Image(), {src: '/x'}))": "by the policy: img-src",
    "fetch('/fails')": "500 for http://127.0.0.1",
}


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body, kind = GOOD, "text/html"
        if self.path == "/bad":
            body += '<script src="/bad.js"></script>'
        elif self.path == "/bad.js":
            body, kind = ";".join(FAULTS), "text/javascript"
        self.send_response(500 if self.path == "/fails" else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_good_page_has_no_faults(browser: Browser, port: int) -> None:
    with browser.tab(port, size=NARROW) as tab:
        tab.open()
        tab.shows("All is well.")
        tab.is_accessible()
        assert not tab.overflows()
        assert not tab.ran()


def test_faults_are_noticed(browser: Browser, port: int) -> None:
    with pytest.raises(AssertionError) as failure, browser.tab(port) as tab:
        tab.page.goto("/bad")
        tab.page.wait_for_load_state("networkidle")
    for word in FAULTS.values():
        assert word in str(failure.value)


def test_what_is_seen_is_noticed(browser: Browser, port: int) -> None:
    with browser.tab(port, size=NARROW) as tab:
        tab.open()
        tab.page.evaluate("""() => {
          document.querySelector("h1").outerHTML = "<p><b>wide</b></p><input>";
          document.body.style.width = "800px";
        }""")
        assert tab.ran()
        assert tab.overflows()
        assert [found["id"] for found in tab.axe()] == ["label"]


# A page that shows nothing at first, then that it is out of date, and then what is of now.
SLOW = """() => {
  document.body.innerHTML = "<div id=app></div>";
  setTimeout(() => {
    document.documentElement.classList.add("stale");
    document.querySelector("#app").innerHTML = "<main>of then</main>";
    setTimeout(() => {
      document.querySelector("main").textContent = "of now";
      document.documentElement.classList.remove("stale");
    }, 200);
  }, 200);
}"""


def test_a_page_that_shows_nothing_is_not_live(browser: Browser, port: int) -> None:
    with browser.tab(port) as tab:
        tab.open()
        tab.page.evaluate(SLOW)
        tab.is_live()
        assert tab.text() == "of now"


# A form whose button is held back just as it is pressed for the first time, as by podyd's word that
# its pod is at work.
HELD_BACK = """() => {
  document.querySelector("main").innerHTML = "<form><input><button>Change</button></form>";
  const form = document.querySelector("form"), button = form.querySelector("button");
  const isFree = () => button.getAttribute("aria-disabled") !== "true";
  Object.assign(window, { sent: [], tried: 0 });
  for (const kind of ["keydown", "mousedown"]) form.addEventListener(kind, () => {
    if (window.tried++) return;
    button.setAttribute("aria-disabled", "true");
    setTimeout(() => button.removeAttribute("aria-disabled"), 200);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (isFree()) window.sent.push(form.querySelector("input").value);
  });
}"""


@pytest.mark.parametrize("by", ["keyboard", "mouse", "field"])
def test_what_is_held_back_is_pressed_again(browser: Browser, port: int, by: str) -> None:
    with browser.tab(port) as tab:
        tab.open()
        tab.page.evaluate(HELD_BACK)
        button, field = tab.button("Change"), tab.page.get_by_role("textbox")
        for text in ("x", "y"):
            if by == "field":
                send(field, text, button)
            else:
                field.fill(text)
                (press if by == "keyboard" else click)(button)
        assert tab.page.evaluate("[sent, tried]") == [["x", "y"], 3]
