"""The page's door in a real browser: login, logout, and logins that end while a page is open."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import HttpCredentials, expect

from tests.integration.browser import NARROW, Browser, Tab
from tests.integration.harness import PASSWORD, Client, Node, Server, run
from tests.integration.scene import proxy

NEW_PASSWORD = "Another-horse-8"
# The stream ends when the login does, and the page finds out why.
ENDS = "WebSocket connection to .*/events"


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    with browser.tab(server.port) as tab:
        yield tab


def is_login(tab: Tab) -> None:
    """Wait until there is the form, and nothing of the page behind it."""
    expect(tab.button("Log in")).to_be_visible()
    expect(tab.page.get_by_role("navigation")).to_have_count(0)


def test_the_form_and_what_it_says(tab: Tab, new_user: Callable[[], Client]) -> None:
    user = new_user().user
    tab.open()
    expect(tab.page.get_by_label("User name")).to_be_focused()
    assert tab.page.title().startswith("Log in")
    tab.is_accessible()
    tab.log_in(user, "wrong-Horse-7")
    alert = tab.page.get_by_role("alert").filter(has_text=re.compile("password"))
    expect(alert).to_contain_text("wrong")
    tab.page.emulate_media(color_scheme="dark")
    tab.is_accessible()
    tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    assert not tab.overflows()
    # By the keyboard alone.
    tab.page.get_by_label("Password", exact=True).fill(PASSWORD)
    tab.page.keyboard.press("Enter")
    expect(tab.button("Log out")).to_be_visible()
    expect(tab.page.locator("main h1")).to_be_focused()
    tab.shows(user)


def test_a_login_is_for_all_tabs_until_logout(tab: Tab, new_user: Callable[[], Client]) -> None:
    tab.enter(new_user().user, route="/account")
    tab.reload()
    expect(tab.page.get_by_role("heading", name="Account", level=1)).to_be_visible()
    other = tab.another()
    other.goto(tab.base)
    expect(other.get_by_role("button", name="Log out")).to_be_visible()
    with tab.forgives(ENDS):
        tab.button("Log out").click()
        is_login(tab)
        expect(other.get_by_role("button", name="Log in")).to_be_visible()
    tab.reload()
    is_login(tab)
    assert tab.context.cookies() == []


def test_what_ends_a_login_is_said_on_the_page(tab: Tab, new_user: Callable[[], Client]) -> None:
    client = new_user()
    tab.enter(client.user)
    with tab.forgives(ENDS):
        client.post("/user/token-revoke", id="all").ok
        is_login(tab)
        tab.shows("You are logged out:")
    tab.log_in(client.user)
    expect(tab.button("Log out")).to_be_visible()
    with tab.forgives(ENDS):
        client.post("/user/ch-passwd", passwd=NEW_PASSWORD).ok
        is_login(tab)
    tab.log_in(client.user, NEW_PASSWORD)
    expect(tab.button("Log out")).to_be_visible()


def test_an_expired_password_is_changed_in_the_form(
    tab: Tab, new_user: Callable[[], Client]
) -> None:
    user = new_user().user
    run("chage", "-d", "0", user)
    tab.open().log_in(user)
    tab.shows("Your password has expired")
    fresh = tab.page.get_by_label("New password", exact=True)
    expect(fresh).to_be_focused()
    tab.is_accessible()
    fresh.fill(NEW_PASSWORD)
    tab.page.get_by_label("New password, again").fill("Another-horse-9")
    change = tab.button("Change it and log in")
    change.click()
    tab.shows("differ")
    tab.page.get_by_label("New password, again").fill(NEW_PASSWORD)
    change.click()
    expect(tab.button("Log out")).to_be_visible()


def test_below_a_prefix(browser: Browser, server: Server, alice: Client) -> None:
    with proxy(server.port, "/lab/pods/") as port, browser.tab(port, path="/lab/pods/") as tab:
        tab.enter(alice.user)
        tab.is_live()
        tab.go("/account")
        tab.shows("Quota")
        tab.reload()
        expect(tab.page.get_by_role("heading", name="Account", level=1)).to_be_visible()
        with tab.forgives(ENDS):
            tab.button("Log out").click()
            is_login(tab)


def test_without_a_page_there_is_a_word_about_it(node: Node, browser: Browser) -> None:
    server = node.serve({"web": False})
    with browser.tab(server.port) as tab:
        tab.open()
        tab.shows("turned off")
        assert tab.page.get_by_role("button").count() == 0
    assert server.stop() == 0


def test_without_javascript_a_word_and_its_links_help(
    server: Server, browser: Browser, alice: Client
) -> None:
    login: HttpCredentials = {"username": alice.user, "password": alice.password}
    with browser.tab(server.port, scripts=False, dialog=login) as tab:
        tab.open()
        tab.shows("needs JavaScript")
        tab.shows("asks for your Linux user name and password")
        tab.page.get_by_role("link", name="The calls of the API").click()
        tab.shows("/pod/create")
        tab.page.go_back()
        tab.page.get_by_role("link", name="the GPUs as text").click()
        tab.shows("HELD BY")
