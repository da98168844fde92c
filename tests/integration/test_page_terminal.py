"""The page's terminals, in a real browser at a real pod."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.integration.browser import Browser, Tab
from tests.integration.harness import IMAGE, SMALL, Client, Node, Server, wait_until

pytestmark = pytest.mark.xdist_group("page")

# What is drawn, as text: xterm.js has a row of the screen in each of these.
ROWS = ".xterm-rows > div"


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
def tab(browser: Browser, server: Server, carol: Client) -> Iterator[Tab]:
    with browser.tab(server.port, permissions=["clipboard-read", "clipboard-write"]) as tab:
        yield tab.enter(carol.user, route="/pods/work/terminal")


def screen(tab: Tab) -> str:
    """The text of the terminal that is shown, its lines joined."""
    lines = tab.page.locator(f"[role=tabpanel]:not([hidden]) {ROWS}").all_inner_texts()
    return "\n".join(line.rstrip("\u00a0 ") for line in lines)


def shows(tab: Tab, pattern: str, limit: float = 30.0) -> None:
    def is_there() -> bool:
        tab.page.wait_for_timeout(50)
        return re.search(pattern, screen(tab), re.MULTILINE) is not None

    try:
        wait_until(is_there, pattern, limit)
    except AssertionError:
        print(screen(tab))
        raise


def types(tab: Tab, text: str) -> None:
    tab.page.keyboard.type(text)
    tab.page.keyboard.press("Enter")


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


def test_several_terminals_and_what_is_copied(tab: Tab) -> None:
    shows(tab, r"root@\S+:~#")
    names = tab.page.get_by_role("tab")
    expect(names).to_have_count(1)
    tab.button("New terminal").click()
    expect(names).to_have_count(2)
    shows(tab, r"^root@\S+:~#\s*\Z")
    types(tab, "echo of-the-$((1+1))nd")
    shows(tab, "^of-the-2nd$")
    copied = tab.page.locator(".xterm-rows > div:visible").filter(has_text=re.compile("^of-the"))
    box = copied.bounding_box()
    assert box is not None
    tab.page.keyboard.down("Shift")
    tab.page.mouse.dblclick(box["x"] + 20, box["y"] + box["height"] / 2)
    tab.page.keyboard.up("Shift")
    tab.page.keyboard.press("Control+Shift+C")
    wait_until(lambda: tab.page.evaluate("navigator.clipboard.readText()") == "of-the-2nd", "it")
    names.first.click()
    # Under the mouse it can be read, too.
    assert not tab.axe(only=("color-contrast",))
    tab.reload()
    expect(names).to_have_count(2)
    shows(tab, "^of-the-2nd$")
    tab.button("Close it").click()
    expect(names).to_have_count(1)


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
