"""A pod's files and logs on the page, in a real browser."""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import FilePayload, expect

from tests.integration.browser import MARKUP, Browser, Tab
from tests.integration.harness import Client, Server

HERE = "/root/of-the-page"


@pytest.fixture(scope="module")
def tab(browser: Browser, server: Server, alice: Client, pod: str) -> Iterator[Tab]:
    with browser.tab(server.port) as tab:
        yield tab.enter(alice.user)


@pytest.fixture(autouse=True)
def _as_before(tab: Tab) -> Iterator[None]:
    yield
    tab.check()


@pytest.fixture
def folder(alice: Client, pod: str) -> Iterator[Callable[[str], str]]:
    """What a command says in a folder of the pod's that the test alone has."""

    def said(command: str) -> str:
        done = alice.exec(pod, f"mkdir -p {HERE} && cd {HERE} && {command}")
        assert done["exit_code"] == 0, done
        text: str = done["stdout"]
        return text

    yield said
    said(f"rm -r {HERE}")


def test_files_with_any_name(tab: Tab, pod: str, folder: Callable[[str], str]) -> None:
    names = [MARKUP, "two\nlines", "\u202egnp.exe", "-rf", "a#b?c%25"]
    folder(f"touch -- {shlex.join(names)} && mkdir sub && echo here > sub/note")
    tab.go(f"/pods/{pod}/files{HERE}")
    for name in names:
        button = tab.page.get_by_role("button", name=f"Delete {name}")
        expect(button).to_be_visible()
        button.click()
        tab.button("Delete", within=tab.dialog()).click()
        expect(button).to_have_count(0)
    assert not tab.ran()
    assert folder("ls -A") == "sub\n"
    tab.page.get_by_role("link", name="sub", exact=True).click()
    expect(tab.row("note")).to_be_visible()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="Download note").click()
    assert download.value.suggested_filename == "note"
    assert download.value.path().read_text() == "here\n"
    tab.page.get_by_role("link", name="of-the-page").click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="Download sub as a tar file").click()
    with tarfile.open(fileobj=io.BytesIO(download.value.path().read_bytes())) as tar:
        assert [name for name in tar.getnames() if name.endswith("note")]


def test_an_upload_asks_before_it_replaces(
    tab: Tab, pod: str, folder: Callable[[str], str]
) -> None:
    def upload(name: str, data: bytes) -> None:
        chosen = FilePayload(name=name, mimeType="application/octet-stream", buffer=data)
        tab.page.locator("input[type=file]").set_input_files([chosen])

    folder("true")
    tab.go(f"/pods/{pod}/files{HERE}")
    upload("data.bin", bytes(3_000_000))
    expect(tab.row("data.bin")).to_contain_text("2.86 MiB")
    assert folder("wc -c < data.bin").strip() == "3000000"
    upload("data.bin", b"new")
    tab.button("Cancel", within=tab.dialog()).click()
    expect(tab.dialog()).to_have_count(0)
    upload("data.bin", b"new")
    tab.button("Replace", within=tab.dialog()).click()
    expect(tab.row("data.bin")).to_contain_text("3 B")
    assert folder("cat data.bin") == "new"


def test_logs_that_follow(tab: Tab, alice: Client, pod: str) -> None:
    def say(text: str) -> None:
        line = shlex.join(["echo", text])
        alice.exec(pod, f"systemd-cat -t of-the-page {line}")

    say(f"first {MARKUP}")
    tab.go(f"/pods/{pod}/logs")
    log = tab.page.get_by_role("log")
    expect(log).to_contain_text(f"first {MARKUP}")
    say("the second one")
    expect(log).to_contain_text("the second one")
    tab.page.get_by_label("Mark", exact=True).fill("the second one")
    expect(log.locator("mark").first).to_be_visible()
    assert not tab.ran()
