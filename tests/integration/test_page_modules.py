"""Modules of the page by themselves, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.integration.browser import Browser, Tab
from tests.integration.harness import Client, Server

# Runs in the page with its modules.
_WITH = """async (given) => {{
  const from = (name) => import(new URL(`web/js/${{name}}.js`, document.baseURI).href);
  {script}
}}"""
# A browser whose person lets no site keep anything, and one that has no room.
DENIED = """for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, {get() { throw new DOMException("no"); }});"""
FULL = """localStorage.setItem("podyd-key", "of an earlier login");
Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };"""


@pytest.fixture(scope="module")
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    with browser.tab(server.port) as tab:
        yield tab.open()


def run(tab: Tab, script: str, given: object = None) -> Any:
    """What a script returns that may import the page's modules by `from`."""
    return tab.page.evaluate(_WITH.format(script=script), given)


def test_an_error_of_one_part_keeps_nothing_from_the_others(tab: Tab) -> None:
    with tab.forgives("of one part"):
        seen, told = run(
            tab,
            """const { Live } = await from("live");
            const live = new Live(), seen = [], told = [];
            addEventListener("error", (event) => told.push(event.message), { once: true });
            live.on(["a"], () => { if (live.get("a")) throw new Error("of one part"); });
            live.on(["a"], () => seen.push(live.get("a")));
            live.onState((isLive) => seen.push(isLive));
            live.take({ time: new Date().toISOString(), set: { a: 1 }, gone: [] });
            return [seen, told];""",
        )
    assert seen == [None, False, 1, True]
    assert told == ["Uncaught Error: of one part"]


def test_what_a_newer_podyd_says_is_no_error(tab: Tab) -> None:
    assert run(
        tab,
        """const { Live } = await from("live");
        const live = new Live();
        const time = "2026-11-28T10:00:00.000Z", set = { a: 1, "new/0": {} };
        live.take({ time, whole: true, set, gone: [] });
        for (const odd of [{}, { news: [] }, { time: null, set: { b: 2 } }]) live.take(odd);
        const isKnown = Number.isFinite(live.now());
        return [live.isLive, live.get("a"), live.get("b"), isKnown, live.lastTime];""",
    ) == [True, 1, 2, True, "2026-11-28T10:00:00.000Z"]


# Connections of a test's own, which open and say what it wants.
SOCKETS = """() => {
window.made = [];
window.WebSocket = class {
  constructor() { this.readyState = 0; made.push(this); }
  close() { this.readyState = 3; }
  opens() { this.readyState = 1; this.onopen?.(); }
  says(time = new Date()) {
    this.onmessage({ data: JSON.stringify({ time: time.toISOString(), set: {}, gone: [] }) });
  }
  refuses() { this.readyState = 3; this.onclose?.(); }
};
Object.assign(window.WebSocket, { CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 });
}"""


@pytest.fixture
def live(browser: Browser, server: Server) -> Iterator[Tab]:
    """A page with `live`, whose connections are `made`, and whose clock goes by the test."""
    with browser.tab(server.port) as tab:
        tab.page.clock.install()
        tab.open()
        tab.page.clock.pause_at(tab.page.evaluate("Date.now()") / 1000 + 1)
        tab.page.evaluate(SOCKETS)
        run(tab, "const { Live } = await from('live'); window.live = new Live(); live.open();")
        yield tab


def made(tab: Tab) -> int:
    found: int = tab.page.evaluate("made.length")
    return found


def test_what_does_not_open_gives_way_to_another_attempt(live: Tab) -> None:
    """Soon at first; later not so often, and each has its time."""
    live.page.clock.run_for(1400)
    assert made(live) == 1
    live.page.clock.run_for(200)
    assert made(live) == 2
    assert live.page.evaluate("made[0].readyState") == 3
    live.page.clock.run_for(120_000)
    count = made(live)
    live.page.clock.run_for(60_000)
    assert made(live) - count == 6
    live.page.evaluate("made.at(-1).opens()")
    count = made(live)
    live.page.clock.run_for(5_100)
    assert made(live) == count


def test_pages_whose_podyd_stops_do_not_come_back_together(live: Tab) -> None:
    live.page.evaluate("made[0].opens(); made[0].says()")
    seen = set()
    for random in (0, 0.999):
        live.page.evaluate("random => { Math.random = () => random; }", random)
        count, waited = made(live), 0
        live.page.evaluate("made.at(-1).refuses()")
        while made(live) == count:
            live.page.clock.run_for(50)
            waited += 50
        seen.add(waited)
        live.page.evaluate("made.at(-1).opens(); made.at(-1).says()")
    assert max(seen) >= 2 * min(seen)


@pytest.mark.parametrize("event", ["visibilitychange", "pageshow", "resume", "online"])
def test_a_page_that_wakes_says_so_and_connects_at_once(live: Tab, event: str) -> None:
    target = "document" if event in ("visibilitychange", "resume") else "window"

    def wakes() -> tuple[int, bool]:
        live.page.evaluate(f"{target}.dispatchEvent(new Event('{event}'))")
        return made(live), live.page.evaluate("live.isLive")

    live.page.evaluate("made[0].opens(); made[0].says()")
    live.page.clock.run_for(5_000)
    # podyd may say nothing for so long.
    assert wakes() == ((1, True) if event != "online" else (2, False))
    live.page.evaluate("made.at(-1).opens(); made.at(-1).says()")
    live.page.clock.run_for(7_000)
    count = made(live)
    assert wakes() == (count + 1, False)
    # Several such events come together; and what is tried now and then is not waited for.
    assert wakes() == (count + 1, False)
    live.page.evaluate("made.at(-1).refuses()")
    assert wakes() == (count + 2, False)
    live.page.evaluate("made.at(-1).opens(); made.at(-1).says()")
    assert live.page.evaluate("live.isLive")


def test_what_has_waited_while_a_page_slept_is_not_of_now(live: Tab) -> None:
    live.page.evaluate("made[0].opens(); made[0].says()")
    live.page.clock.run_for(1000)
    time = live.page.evaluate("Date.now()")
    # Without a timer that runs.
    live.page.clock.set_system_time(time / 1000 + 60)
    live.page.evaluate("time => made[0].says(new Date(time))", time)
    assert live.page.evaluate("[made.length, live.isLive]") == [2, False]
    # A first message is taken, whatever podyd's clock says now.
    live.page.evaluate("time => { made[1].opens(); made[1].says(new Date(time)); }", time)
    assert live.page.evaluate("[made.length, live.isLive]") == [2, True]


def test_how_far_the_work_on_a_pod_is(tab: Tab) -> None:
    """With a share the bar shows it; in a step of which LXD tells none, it does no longer."""
    said = iter(
        [
            {"doing": "unpacking", "percent": 43, "bytes_per_second": 30 * 2**20},
            {"doing": "starting", "percent": None, "bytes_per_second": None},
        ]
    )
    tab.page.route("**/pod/progress?*", lambda route: route.fulfill(json=next(said)))
    seen = run(
        tab,
        """const { howFar, telling } = await from("pods");
        const { run, tray } = await from("work");
        const seen = [];
        await run("Creating a", (progress) => telling(new Promise((done) => {
          const look = new MutationObserver(() => {
            const { textContent: text } = tray.querySelector(".state");
            const step = text.split(", ").slice(0, -1).join(", ");
            if (!step || step === seen.at(-1)?.[0]) return;
            seen.push([step, tray.querySelector("progress").getAttribute("value")]);
            if (seen.length === 2) { look.disconnect(); done(); }
          });
          look.observe(tray, { subtree: true, childList: true, characterData: true });
        }), () => howFar("a"), progress));
        return seen;""",
    )
    tab.page.unroute("**/pod/progress?*")
    assert seen == [["unpacking, 43 %, 30.0 MiB/s", "0.43"], ["starting", None]]


def test_times_are_by_podyds_clock(tab: Tab) -> None:
    """With a clock in the browser that is a day late, what is today for podyd has no date."""
    shown, left, lost = run(
        tab,
        """const { Live } = await from("live");
        const { moment, secondsUntil } = await from("format");
        const live = new Live(), podyd = Date.now() + 86_400_000;
        const iso = (ms) => new Date(ms).toISOString();
        live.take({ time: iso(podyd), set: {}, gone: [] });
        const found = [moment(iso(podyd)).textContent, secondsUntil(iso(podyd + 60_000), live)];
        return [...found, live.lastTime === iso(podyd)];""",
    )
    assert len(shown) == len("10:00")
    assert 59 < left <= 60
    assert lost


def test_a_time_of_today_has_a_date_tomorrow(browser: Browser, server: Server) -> None:
    with browser.tab(server.port) as tab:
        tab.page.clock.install(time="2026-11-28T21:00:00Z")
        tab.open()
        run(
            tab,
            """const { moment } = await from("format");
            document.body.append(moment("2026-11-28T20:05:00Z"));""",
        )
        time = tab.page.locator("time.moment")
        expect(time).to_have_text("21:05")
        tab.page.clock.fast_forward("03:00:00")
        expect(time).to_have_text("28 Nov, 21:05")


# What the page knows of each GPU: whose pod has leased it for how many hours; whose are on it.
_TURNS = """const { Live } = await from("live"), { turns } = await from("queue");
  const live = new Live(), start = Date.parse("2026-11-28T10:00:00Z");
  const iso = (hours) => new Date(start + hours * 3_600_000).toISOString();
  const set = { host: { ends_sharers: given.ends_sharers ?? true } };
  given.leases.forEach((lease, index) => {
    const pods = lease ? [{ pod: lease[0], exclusive: true, until: iso(lease[1]) }] : [];
    set[`gpu/${index}`] = { index, problem: given.problem === index || null, pods };
    set[`use/${index}`] = { processes: (given.on?.[index] ?? []).map((pod) => ({ pod })) };
  });
  set.queue = given.queue.map(([pod, gpus, hours]) => ({ pod, gpus, hours }));
  live.take({ time: iso(0), whole: true, set, gone: [] });
  const hours = (time) => time === null ? null : Math.round((time - start) / 36_000) / 100;
  return turns(live).map(({ time, before, sharers }) =>
    [hours(time), before.map(({ pod }) => pod), sharers]);"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        # Each after those before it that want the same, by the leases that end first.
        (
            {
                "leases": [["a", 4], ["b", 2]],
                "queue": [["c", "1", 10], ["d", "0,", 1], ["e", "2", 1]],
            },
            [[2, [], []], [4, ["c"], []], [12, ["c", "d"], []]],
        ),
        # Nobody overtakes, also where a GPU would be free; other GPUs are not waited for.
        (
            {
                "leases": [["a", 4], None, None],
                "queue": [["c", "0,1", 1], ["d", "1", 1], ["e", "2,", 1]],
            },
            [[4, [], []], [4, ["c"], []], [5, ["d"], []]],
        ),
        # What a pod has leased itself, it need not wait for.
        ({"leases": [["a", 4], ["b", 2]], "queue": [["a", "2", 1]]}, [[2, [], []]]),
        # Use without a lease has no end that anybody knows, where a lease does not end it.
        (
            {
                "leases": [None, ["a", 1]],
                "on": [["b"], ["a"]],
                "ends_sharers": False,
                "queue": [["c", "1", 2], ["d", "0,", 1], ["e", "all", 1]],
            },
            [[1, [], []], [None, ["c"], [0]], [None, ["c", "d"], []]],
        ),
        ({"leases": [None], "on": [["b"]], "queue": [["c", "1", 1]]}, [[0, [], []]]),
        # A GPU that does not answer, and more than there are, which keeps nobody waiting.
        (
            {
                "leases": [None, ["a", 3]],
                "problem": 0,
                "queue": [["c", "3", 1], ["d", "1", 1], ["e", "0,", 1]],
            },
            [[None, [], []], [3, [], []], [None, ["d"], []]],
        ),
    ],
)
def test_when_a_turn_comes(tab: Tab, given: object, found: object) -> None:
    assert run(tab, _TURNS, given) == found


def test_what_follows_the_stream_in_a_dialog_ends_with_it(tab: Tab) -> None:
    assert run(
        tab,
        """const { Live } = await from("live"), { form } = await from("dialog");
        const { gpuChoice } = await from("gpu-choice");
        const live = new Live(), closing = new AbortController();
        const { element } = gpuChoice({ live, signal: closing.signal, lease: true });
        const dialog = form({ title: "Lease", fields: [element], action: "Lease", closing });
        const open = live.listeners.size;
        dialog.element.close("");
        await new Promise((resolve) => dialog.element.addEventListener("close", resolve));
        return [open, live.listeners.size];""",
    ) == [1, 0]


def test_curves_tell_their_values(tab: Tab) -> None:
    """To who sees them, to who points at one, and to who hears them."""
    run(
        tab,
        """const { history } = await from("history"), { quantity } = await from("format");
        const write = (value) => quantity(value, "%");
        const load = async (span) => ({ start: "2026-11-28T10:00:00Z", step: 60, curves: [
          { title: "Use", values: span === "hour" ? [10, null, 40, 70] : [null], top: 100, write },
          { title: "Other", values: [null, null, null, null], top: 100, write } ] });
        const { Live } = await from("live"), live = new Live();
        const { signal } = new AbortController();
        const element = history({ load, live, signal, title: "History" });
        live.setLive(true);
        document.querySelector("main").replaceChildren(element);""",
    )
    page = tab.page
    image = page.get_by_role("img")
    told = "Use, last hour: now 70 %, least 10 %, most 70 %, mean 40 %"
    expect(image).to_have_accessible_name(told)
    tab.shows("Other: nothing is known")
    box = image.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.66, box["y"] + 5)
    expect(page.locator("figcaption")).to_have_text("Use 40 % 11:02")
    page.mouse.move(0, 0)
    expect(page.locator("figcaption")).to_have_text("Use 70 %")
    slider = page.get_by_role("slider", name="Time")
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^11:01: Use \u2013, Other"))
    page.get_by_role("radio", name="day").check()
    tab.shows("Nothing is known of this time.")
    expect(slider).to_be_hidden()


def test_curves_are_of_now_once_the_page_is(tab: Tab) -> None:
    assert run(
        tab,
        """const { history } = await from("history"), { Live } = await from("live");
        const live = new Live(), leaving = new AbortController(), seen = [];
        let asked = 0;
        const load = async () => {
          asked += 1;
          return { start: "2026-11-28T10:00:00Z", step: 60, curves: [] };
        };
        const element = history({ load, live, signal: leaving.signal, title: "History" });
        seen.push(element.querySelector(".curves").textContent);
        for (const isLive of [true, false, true, false]) {
          live.setLive(isLive);
          seen.push(asked);
        }
        leaving.abort();
        live.setLive(true);
        return [...seen, asked];""",
    ) == ["Connecting \u2026", 1, 1, 2, 2, 2]


@pytest.mark.parametrize("kept", [DENIED, FULL], ids=["denied", "full"])
def test_a_browser_that_keeps_nothing(
    browser: Browser, server: Server, new_user: Callable[[], Client], kept: str
) -> None:
    with browser.tab(server.port) as tab:
        tab.context.add_init_script(kept)
        tab.enter(new_user().user).is_live()
        tab.page.get_by_label("Colours").select_option("dark")
        expect(tab.page.locator("html")).to_have_attribute("data-theme", "dark")
        tab.go("/account").shows("Quota")
