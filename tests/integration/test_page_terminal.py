"""The page's terminals, in a real browser at a real pod."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator

import pytest
import websocket
from playwright.sync_api import Locator, Page, expect

from tests.integration.browser import Browser, Tab
from tests.integration.harness import IMAGE, SMALL, Client, Line, Node, Server, wait_until
from tests.integration.talking import connect
from tests.lab import lab

pytestmark = pytest.mark.xdist_group("page")

# What is drawn, as text: xterm.js has a row of the screen in each of these.
ROWS = ".xterm-rows > div"
# What bash and ash ask with.
PROMPT = r"[#$] ?\s*\Z"
# What a browser says in its console where a session is refused, or podyd is away.
ENDS = (
    "WebSocket connection to",
    "ERR_CONNECTION_REFUSED",
    "^50[234] for",
    "status of 50[234]",
    "Cross-Origin-Opener-Policy",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def carol(node: Node, server: Server) -> Iterator[Client]:
    client = server.client(node.accounts.user())
    client.post("/pod/create", ins="work", image=IMAGE).ok
    client.post("/pod/create", ins="small", image=SMALL).ok
    yield client
    for ins in client.get("/pod/list").ok:
        client.post("/pod/delete", ins=ins).ok


@pytest.fixture
def no_sessions(carol: Client) -> None:
    """None of tmux is left of another test; to be asked for before there is a tab."""
    carol.post("/pod/exec", ins="work", cmd="tmux kill-server").ok


@pytest.fixture
def tab(browser: Browser, server: Server, carol: Client) -> Iterator[Tab]:
    with browser.tab(server.port, permissions=["clipboard-read", "clipboard-write"]) as tab:
        yield tab.enter(carol.user, route="/pods/work/terminal")


def screen(tab: Tab, page: Page | None = None) -> str:
    """The text of the terminal that is shown, its lines joined."""
    lines = (page or tab.page).locator(f"[role=tabpanel]:not([hidden]) {ROWS}").all_inner_texts()
    return "\n".join(line.rstrip("\u00a0 ") for line in lines)


def shows(tab: Tab, pattern: str, limit: float = 30.0, page: Page | None = None) -> None:
    def is_there() -> bool:
        tab.page.wait_for_timeout(50)
        return re.search(pattern, screen(tab, page), re.MULTILINE) is not None

    try:
        wait_until(is_there, pattern, limit)
    except AssertionError:
        print(screen(tab, page))
        raise


def types(tab: Tab, text: str, page: Page | None = None) -> None:
    keyboard = (page or tab.page).keyboard
    keyboard.type(text)
    keyboard.press("Enter")


def says(tab: Tab, text: str | re.Pattern[str]) -> None:
    """Wait until the line above the terminal says it."""
    status = tab.page.locator(".terminal > div > [role=status]")
    expect(status).to_have_text(text, use_inner_text=True)


def tabs(page: Page) -> Locator:
    """Of each terminal that is open; none while what is shown is out of date."""
    return page.locator(".terminal").first.get_by_role("tab")


def sessions(page: Page) -> list[str]:
    """The names of the terminals that are open."""
    return tabs(page).all_inner_texts()


def test_a_shell_with_unicode_colours_and_its_size(tab: Tab) -> None:
    shows(tab, r"root@\S+:~#")
    types(tab, "printf '\\e[38;2;250;100;50mäöü 漢字 ✓\\e[0m\\n'; stty size")
    shows(tab, r"^äöü 漢字 ✓")
    shows(tab, r"^\d+ \d+$")
    coloured = tab.page.locator(".xterm-rows span").filter(has_text="äöü").last
    expect(coloured).to_have_css("color", "rgb(250, 100, 50)")
    types(tab, "clear; while sleep 0.3; do stty size; done")
    shows(tab, r"^\d+ 1\d\d$")
    tab.page.set_viewport_size({"width": 700, "height": 900})
    shows(tab, r"^\d+ [67]\d$")


@pytest.mark.parametrize("ins", ["work", "small"])
def test_ctrl_c_is_obeyed_while_output_floods(tab: Tab, ins: str) -> None:
    """With tmux and without; how soon is a matter of `make bench --only terminal`."""
    if ins == "small":
        tab.go("/pods/small/terminal")
    shows(tab, r"[#$] ?$")
    tab.page.get_by_label(f"Terminal in {ins}").focus()
    types(tab, "yes")
    shows(tab, r"^y\ny\ny$")
    tab.page.wait_for_timeout(1500)
    tab.page.keyboard.press("Control+c")
    shows(tab, r"\^C[\s\S]*[#$] ?$", limit=15.0)


# What is kept of a flood of lines that a key interrupts: with the kernel's answer, or without one.
INTERRUPTED = r"""async (answered) => {
  const { Interruption } = await import(`${location.origin}/web/js/interruption.js`);
  return new Promise((resolve) => {
    let last;
    const interruption = new Interruption(3, (pieces, dropped) => {
      const text = pieces.map((piece) => new TextDecoder().decode(piece)).join("");
      resolve({ text, dropped, isSoon: performance.now() - last < 200 });
    });
    const take = (text) => interruption.take(new TextEncoder().encode(text));
    for (let number = 0; number < 10000; number += 1) take(`\x1b[31mline ${number} \u6f22\r\n`);
    last = performance.now();
    take(answered ? "^C\r\n$ " : "$ ");
  });
}"""


@pytest.mark.parametrize("answered", [True, False])
def test_of_what_is_interrupted_the_end_is_shown(tab: Tab, answered: bool) -> None:
    found = tab.page.evaluate(INTERRUPTED, answered)
    written = [f"\x1b[31mline {number} \u6f22\r\n" for number in range(10000)]
    written.append("^C\r\n$ " if answered else "$ ")
    whole = "".join(written).encode()
    kept = found["text"].encode()
    assert kept == whole[found["dropped"] :]
    assert kept.startswith(b"\x1b[31mline ")
    assert 15 * 1024 < len(kept) <= 17 * 1024
    assert found["isSoon"] or not answered


def test_a_paste_of_a_megabyte_arrives_whole(tab: Tab, carol: Client) -> None:
    shows(tab, r"root@\S+:~#")
    types(tab, "stty raw -echo; head -c 1048576 >/root/pasted; stty sane; echo it'' is whole")
    text = "".join(f"{number:07d}\n" for number in range(131072))
    tab.page.evaluate("text => navigator.clipboard.writeText(text)", text)
    tab.page.keyboard.press("Control+Shift+v")
    shows(tab, "it is whole", limit=60.0)
    digest = carol.post("/pod/exec", ins="work", cmd="tr '\\r' '\\n' </root/pasted | sha256sum")
    assert digest.ok["stdout"].split()[0] == hashlib.sha256(text.encode()).hexdigest()


def test_a_reload_comes_back_to_the_same_session(tab: Tab) -> None:
    shows(tab, r"root@\S+:~#")
    types(tab, "kept=here-$((40+2)); top")
    shows(tab, "load average")
    tab.reload()
    shows(tab, "load average")
    tab.page.keyboard.press("q")
    # What is typed before top has ended is lost with it.
    shows(tab, r"root@\S+:~#\s*\Z")
    types(tab, "echo $kept")
    shows(tab, "^here-42$")


def test_without_tmux_it_says_that_the_shell_ends(tab: Tab) -> None:
    tab.go("/pods/small/terminal")
    tab.shows("This pod has no tmux")
    shows(tab, "[#$]")
    tab.page.get_by_label("Terminal in small").focus()
    types(tab, "exit 3")
    tab.shows("The shell has ended (exit status 3).")


def test_the_keyboard_leads_out_of_the_terminal(tab: Tab) -> None:
    shows(tab, r"root@\S+:~#")
    tab.page.keyboard.press("Control+Shift+ArrowUp")
    expect(tab.page.get_by_role("tab", selected=True)).to_be_focused()
    tab.is_accessible()


def test_a_pod_that_is_stopped_can_be_started_here(tab: Tab, carol: Client) -> None:
    carol.post("/pod/stop", ins="small").ok
    tab.go("/pods/small/terminal")
    tab.page.get_by_role("main").get_by_text("a terminal needs it to run").wait_for()
    tab.page.locator(".terminal").get_by_role("button", name="Start").click()
    shows(tab, "[#$]", limit=90)


def test_tabs_come_back_once_when_the_pod_runs_again(tab: Tab, carol: Client, node: Node) -> None:
    """However it was stopped; of one that is deleted, nothing can be started."""
    carol.post("/pod/create", ins="gone", image=SMALL).ok
    panel = tab.go("/pods/gone/terminal").page.locator(".terminal > .panel")
    shows(tab, PROMPT)
    carol.post("/pod/stop", ins="gone").ok
    expect(panel).to_be_visible()
    carol.post("/pod/start", ins="gone").ok
    says(tab, re.compile("This pod has no tmux"))
    node.lxc("stop", "-f", node.instance_of(carol.user, "gone")["name"])
    tab.button("Start", within=panel).click()
    says(tab, re.compile("This pod has no tmux"))
    expect(tabs(tab.page)).to_have_count(1)
    carol.post("/pod/delete", ins="gone").ok
    tab.shows("The pod has been deleted.")
    expect(panel).not_to_be_visible()


@pytest.mark.usefixtures("no_sessions")
def test_each_end_is_in_words_and_reconnect_leads_back(tab: Tab, carol: Client) -> None:
    again = tab.button("Reconnect")
    goes_on = re.compile("^Session podyd-1 of tmux: it goes on")
    says(tab, goes_on)
    shows(tab, PROMPT)
    types(tab, "exit 3")
    says(tab, "Session podyd-1 of tmux has ended.")
    again.click()
    says(tab, goes_on)
    shows(tab, PROMPT)
    types(tab, "echo k''ept; tmux detach")
    says(tab, re.compile("^Session podyd-1 of tmux goes on, but is not shown"))
    again.click()
    shows(tab, "^kept")
    # More than one member may have.
    full = []
    with tab.forgives(*ENDS):
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            while True:
                full.append(connect(carol, "/pod/shell", ins="small", rows=24, cols=80))
        tab.button("New terminal").click()
        says(tab, re.compile("^[0-9]+ shells and commands of yours are open. End one first.$"))
    for socket in full:
        socket.close()
    again.click()
    says(tab, re.compile("^Session podyd-2 of tmux: it goes on"))
    with tab.forgives(*ENDS):
        carol.post("/user/token-revoke", id="all").ok
        tab.shows("The login on this page has ended. Log in again.")
        tab.log_in(carol.user)
        says(tab, re.compile("^Session podyd-2 of tmux: it goes on"))
    assert sessions(tab.page) == ["podyd-1", "podyd-2"]


@pytest.mark.parametrize("ins", ["work", "small"])
def test_a_full_screen_program_gives_the_screen_back_and_text_is_copied(tab: Tab, ins: str) -> None:
    """With tmux, where Shift selects, and without."""
    if ins == "small":
        tab.go("/pods/small/terminal")
    shows(tab, PROMPT)
    tab.page.locator("[role=tabpanel]:not([hidden]) textarea").focus()
    text = "e\u0301-漢字-👍-whole"
    types(tab, "clear; echo e\u0301-漢字-👍-w''hole")
    shows(tab, f"^{text}$")
    types(tab, r"printf '\033[?1049h\033[Hfull'; read x; printf '\033[?1049l'")
    shows(tab, r"\Afull\s*\Z")
    tab.page.keyboard.press("Enter")
    shows(tab, f"^{text}$")
    row = tab.page.locator(f"[role=tabpanel]:not([hidden]) {ROWS}").filter(has_text="-whole").first
    box = row.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    mouse, keyboard = tab.page.mouse, tab.page.keyboard
    if ins == "work":
        keyboard.down("Shift")
    mouse.move(box["x"] + 1, middle)
    mouse.down()
    mouse.move(box["x"] + box["width"] - 5, middle, steps=3)
    mouse.up()
    keyboard.up("Shift")
    keyboard.press("Control+Shift+c")
    wait_until(lambda: tab.page.evaluate("navigator.clipboard.readText()") == text, "the copy")
    keyboard.type("echo pasted-")
    keyboard.press("Control+Shift+v")
    keyboard.press("Enter")
    shows(tab, f"^pasted-{text}$")


@pytest.mark.usefixtures("no_sessions")
def test_each_of_several_terminals_has_its_session(tab: Tab) -> None:
    """In one page, in another tab of the browser, and after leaving; others are offered."""
    for name in ("podyd-1", "podyd-2"):
        says(tab, re.compile(f"^Session {name} of tmux: it goes on"))
        shows(tab, PROMPT)
        types(tab, f"me={name}")
        if name == "podyd-1":
            tab.button("New terminal").click()
    other = tab.another()
    other.goto(f"{tab.base}#/pods/work/terminal")
    shows(tab, PROMPT, page=other)
    types(tab, "me=theirs; echo $me", other)
    shows(tab, "^theirs$", page=other)
    expect(other.get_by_label("Open a session")).to_contain_text("podyd-2 (open elsewhere too)")
    other.reload()
    shows(tab, "^theirs$", page=other)
    assert sessions(other) == ["podyd-3"]
    other.close()
    tab.go("/cards").go("/pods/work/terminal")
    says(tab, re.compile("^Session podyd-2 of tmux: it goes on"))
    assert sessions(tab.page) == ["podyd-1", "podyd-2"]
    keyboard = tab.page.keyboard
    tab.page.get_by_role("tab", name="podyd-1").click()
    # Under the mouse it can be read, too.
    assert not tab.axe(only=("color-contrast",))
    keyboard.press("ArrowRight")
    keyboard.press("ArrowDown")
    keyboard.press("Control+Shift+ArrowUp")
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowDown")
    types(tab, "clear; echo I am $me")
    shows(tab, "^I am podyd-1$")
    tab.button("Close it").click()
    types(tab, "clear; echo I am $me")
    shows(tab, "^I am podyd-2$")
    tab.page.get_by_label("Open a session").select_option("podyd-1")
    shows(tab, "^I am podyd-1$")
    tab.button("Full screen").click()
    tab.page.wait_for_function("document.fullscreenElement !== null")
    types(tab, "clear; echo in fu''ll")
    shows(tab, "^in full$")
    tab.page.evaluate("document.exitFullscreen()")
    tab.page.get_by_label("Screen reader mode").check()
    expect(tab.page.locator(".xterm-accessibility:visible")).to_contain_text("in full")


def test_podyd_and_lxd_go_away_and_come_back(node: Node, carol: Client, browser: Browser) -> None:
    endpoint = (node.credentials / "endpoint").read_text().strip()
    line = Line(int(endpoint.rpartition(":")[2]))
    near = {"lxd": {"endpoint": f"https://127.0.0.1:{line.port}"}}
    soon = {"podyd.engine.rest.CONNECT_TIMEOUT": 2.0}
    podyd = node.serve(near, constants=soon)
    with (
        contextlib.closing(line),
        browser.tab(podyd.port) as tab,
        tab.forgives(*ENDS),
    ):
        again = tab.enter(carol.user, route="/pods/small/terminal").button("Reconnect")
        shows(tab, PROMPT)
        kept = tab.another()
        kept.goto(f"{tab.base}#/pods/work/terminal")
        shows(tab, PROMPT, page=kept)
        types(tab, "clear; echo k''ept", kept)
        shows(tab, "^kept", page=kept)
        assert podyd.stop() == 0
        says(tab, "podyd is restarting, and the shell has ended with it.")
        podyd.process, _ = node.launch(podyd.config, constants=soon)
        tab.is_live()
        again.click()
        says(tab, re.compile("^This pod has no tmux"))
        status = kept.locator(".terminal > div > [role=status]")
        expect(status).to_have_text(re.compile("^Session .* goes on when"))
        shows(tab, "^kept", page=kept)
        line.hang()
        line.cut()
        says(tab, re.compile(lab.ENGINE.title))
        expect(status).to_have_text(re.compile(lab.ENGINE.title))
        line.pass_on()
        again.click()
        says(tab, re.compile("^This pod has no tmux"))
        kept.get_by_role("button", name="Reconnect").click()
        shows(tab, "^kept", page=kept)
