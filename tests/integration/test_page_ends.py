"""The page where something ends, or is not as on this machine: sessions, tabs, plain HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import APIResponse, Route, expect

from tests.integration.browser import ELSEWHERE, Browser, Tab
from tests.integration.harness import Client, Node, Server

# What a browser says in its console where a login ends, or where it trusts nobody.
ENDS = (r"WebSocket connection to .*/events", r"Cross-Origin-Opener-Policy")


@pytest.fixture(scope="module")
def open_wall(node: Node) -> Server:
    """A podyd that shows its GPUs without a login."""
    return node.serve({"web": {"status_allow": ["127.0.0.1"]}})


def is_wall_of_all(tab: Tab) -> None:
    expect(tab.page.get_by_role("navigation", name="Pages")).to_have_count(0)
    expect(tab.page.locator("main h1")).to_contain_text("GPUs of")
    tab.is_live()


def is_login(tab: Tab) -> None:
    expect(tab.button("Log in")).to_be_visible()


def test_downloads_by_plain_http(browser: Browser, server: Server, admin: Client) -> None:
    with browser.tab(server.port, host=ELSEWHERE) as tab, tab.forgives(*ENDS):
        tab.enter(admin.user, route="/admin/hours")
        assert not tab.page.evaluate("isSecureContext")
        with tab.page.expect_download() as download:
            tab.page.get_by_role("link", name="Download as CSV").click()
        assert download.value.path().read_text().startswith("user,")
        assert download.value.suggested_filename.startswith("gpu-hours-")


def test_a_new_token_is_copied_by_plain_http(
    browser: Browser, server: Server, new_user: Callable[[], Client]
) -> None:
    client = new_user()
    with browser.tab(server.port, host=ELSEWHERE) as tab, tab.forgives(*ENDS):
        tab.enter(client.user, route="/account")
        tab.button("Make a token").click()
        tab.dialog().get_by_label("Name").fill("laptop")
        tab.dialog().get_by_label("Your password").fill(client.password)
        tab.button("Make a token", within=tab.dialog()).click()
        tab.button("Copy: Token").click()
        expect(tab.button("Copy: Token")).to_have_text("Copied")
        secret = tab.dialog().locator("pre").inner_text()
        tab.button("Close").click()
        old = tab.page.get_by_label("Old password")
        old.press("Control+v")
        expect(old).to_have_value(secret)


def test_each_page_has_its_address_and_its_title(
    browser: Browser, server: Server, new_user: Callable[[], Client]
) -> None:
    with browser.tab(server.port) as tab:

        def is_at(route: str, heading: str, title: str) -> None:
            expect(tab.page.locator("main h1")).to_have_text(heading)
            expect(tab.page).to_have_title(re.compile(f"^{title}"))
            assert tab.page.url.endswith(f"#{route}")

        # Where a link led before the login, one is after it.
        tab.enter(new_user().user, route="/account")
        is_at("/account", "Account", "Account")
        tab.page.get_by_role("link", name="Pods").click()
        is_at("/pods", "Pods", "Pods")
        tab.page.get_by_role("link", name="New pod").first.click()
        is_at("/new", "New pod", "New pod")
        tab.go("/nowhere")
        is_at("/nowhere", "This page cannot be shown", "This page cannot be shown")
        tab.page.go_back()
        is_at("/new", "New pod", "New pod")
        tab.page.go_back()
        is_at("/pods", "Pods", "Pods")
        tab.page.go_forward()
        is_at("/new", "New pod", "New pod")


def test_no_question_stays_over_what_comes_next(
    browser: Browser, server: Server, new_user: Callable[[], Client]
) -> None:
    client = new_user()
    with browser.tab(server.port) as tab, tab.forgives(*ENDS):
        tab.enter(client.user, route="/account").go("/cards")
        tab.button("Lease GPUs …").click()
        tab.dialog().get_by_role("link", name="Make a new pod").click()
        expect(tab.page.locator("main h1")).to_have_text("New pod")
        expect(tab.dialog()).to_have_count(0)
        tab.go("/cards").button("Lease GPUs …").click()
        client.post("/user/token-revoke", id="all").ok
        is_login(tab)
        expect(tab.dialog()).to_have_count(0)
        tab.log_in(client.user)
        expect(tab.button("Lease GPUs …")).to_be_visible()


@pytest.mark.parametrize("call", ["get", "raw"])
def test_a_late_answer_does_not_end_the_next_login(
    browser: Browser, server: Server, new_user: Callable[[], Client], call: str
) -> None:
    client, held = new_user(), list[tuple[Route, APIResponse]]()
    with browser.tab(server.port) as tab, tab.forgives(*ENDS):
        tab.enter(client.user).page.route(
            "**/user/tokens*", lambda route: held.append((route, route.fetch()))
        )
        client.post("/user/token-revoke", id="all").ok
        tab.page.evaluate(
            """async (call) => {
              const api = await import(new URL("web/js/api.js", document.baseURI).href);
              window.asked = api[call]("user/tokens").catch(({ status }) => status);
            }""",
            call,
        )
        is_login(tab)
        tab.log_in(client.user).shows("You have no pods yet")
        ((route, answer),) = held
        route.fulfill(response=answer)
        assert tab.page.evaluate("window.asked") == 401
        tab.go("/cards").shows("Lease GPUs …")


def test_work_is_shown_to_whom_it_is_of(
    browser: Browser, server: Server, new_user: Callable[[], Client]
) -> None:
    first, second = new_user(), new_user()
    with browser.tab(server.port) as tab, tab.forgives(*ENDS):
        tab.enter(first.user)
        tab.page.evaluate(
            """async () => {
              const { run } = await import(new URL("web/js/work.js", document.baseURI).href);
              run("Starting secret", () => Promise.reject(new Error("of the first")));
            }"""
        )
        tab.shows("of the first")
        for member, is_shown in ((first, True), (second, False)):
            first.post("/user/token-revoke", id="all").ok
            is_login(tab)
            tab.is_live()  # The form's colours are not those of what is out of date.
            tab.log_in(member.user)
            tab.shows("You have no pods yet")
            assert ("Starting secret" in tab.text()) is is_shown


def test_somebody_else_logs_in_in_another_tab(
    browser: Browser, server: Server, new_user: Callable[[], Client]
) -> None:
    first, second = new_user(), new_user()
    with browser.tab(server.port) as tab, tab.forgives(*ENDS):
        tab.enter(first.user)
        other = tab.another()
        # As of a form that has been open before the first one's login.
        other.goto(f"{tab.base}web/icon.svg")
        login = """async ([user, password]) => {
            const answer = await fetch("../user/login", {
              method: "POST", headers: {Authorization: `Basic ${btoa(`${user}:${password}`)}`},
            });
            localStorage.setItem("podyd-key", (await answer.json()).key);
        }"""
        other.evaluate(login, [second.user, second.password])
        first.post("/user/token-revoke", id="all").ok
        expect(tab.page.locator("header .user")).to_have_text(second.user)


def test_the_wall_is_for_all_or_behind_the_form(
    browser: Browser, server: Server, open_wall: Server, new_user: Callable[[], Client]
) -> None:
    client = new_user()
    with browser.tab(server.port) as tab:
        is_login(tab.open("/wall"))
    with browser.tab(open_wall.port) as tab, tab.forgives(*ENDS):
        tab.enter(client.user).go("/wall")
        open_wall.client(client.user).post("/user/token-revoke", id="all").ok
        is_wall_of_all(tab)
        is_login(tab.go("/pods"))
        is_wall_of_all(tab.go("/wall"))
        tab.go("/pods").log_in(client.user).go("/wall")
        tab.button("Log out").click()
        is_wall_of_all(tab)
        with tab.forgives("ERR_FAILED"):
            # A display whose page was loaded anew as podyd was just starting.
            tab.page.route("**/status.txt", lambda route: route.abort(), times=1)
            is_login(tab.reload())
            is_wall_of_all(tab)
