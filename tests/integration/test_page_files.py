"""A pod's files and logs on the page, in a real browser at a real pod."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, FilePayload, Locator, expect

from tests.integration.browser import MARKUP, NARROW, WORK_SECONDS, Browser, Tab
from tests.integration.harness import IMAGE, Client, Line, Node, Server

pytestmark = pytest.mark.xdist_group("page")

WORK_MS = WORK_SECONDS * 1000
# What the browser says of a connection that is cut.
CUT = (r"WebSocket connection to .*/events", r"net::ERR_")
# Each with what the page shows of it: control characters are written out.
ODD = {
    MARKUP: MARKUP,
    "two\nlines": r"two\nlines",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u05e9\u05dc\u05d5\u05dd.txt": "\u05e9\u05dc\u05d5\u05dd.txt",
    "-rf": "-rf",
    "a#b?c%25&d": "a#b?c%25&d",
    "x" * 250: "x" * 250,
}


@pytest.fixture(scope="module")
def carol(node: Node, server: Server) -> Iterator[Client]:
    client = server.client(node.accounts.user())
    client.post("/pod/create", ins="work", image=IMAGE, gpus="none").ok
    yield client
    client.post("/pod/delete", ins="work").ok


@pytest.fixture(scope="module")
def home(browser: Browser, server: Server, carol: Client) -> Iterator[Tab]:
    with browser.tab(server.port) as tab:
        yield tab.enter(carol.user, route="/pods/work/files")


@pytest.fixture
def tab(home: Tab) -> Iterator[Tab]:
    yield home
    home.check()


@pytest.fixture
def here(request: pytest.FixtureRequest, carol: Client) -> str:
    """A folder of the pod's that the test alone has."""
    folder = f"/root/{request.function.__name__}"
    carol.exec("work", f"mkdir {folder}")
    return folder


@pytest.fixture
def said(carol: Client, here: str) -> Callable[[str], str]:
    """What a command says in that folder."""

    def said(command: str) -> str:
        done = carol.exec("work", f"cd {here} && {command}")
        assert done["exit_code"] == 0, done
        return str(done["stdout"])

    return said


def row(tab: Tab, name: str) -> Locator:
    """The row of an entry with this name, as it is shown."""
    header = tab.page.locator("th").get_by_text(name, exact=True)
    return tab.page.get_by_role("row").filter(has=header)


def downloaded(tab: Tab, link: Locator) -> tuple[str, bytes]:
    with tab.page.expect_download(timeout=WORK_MS) as download:
        link.click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def upload(tab: Tab, name: str, data: bytes) -> None:
    chosen = FilePayload(name=name, mimeType="application/octet-stream", buffer=data)
    tab.page.locator("input[type=file]:not([webkitdirectory])").set_input_files([chosen])


def work(tab: Tab, what: str) -> Locator:
    """The newest line in the tray about this."""
    return tab.page.get_by_role("status").filter(has_text=what).last


def confirm(tab: Tab, action: str) -> None:
    tab.button(action, within=tab.dialog()).click()
    expect(tab.dialog()).to_have_count(0)


def drop(tab: Tab, paths: list[Path]) -> None:
    """As a file manager does."""
    session = tab.context.new_cdp_session(tab.page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 400, "data": data})
    session.detach()


@contextlib.contextmanager
def slow(tab: Tab) -> Iterator[None]:
    """Meanwhile it sends 200 kB in a second, and receives as much."""
    session = tab.context.new_cdp_session(tab.page)
    session.send("Network.enable")
    most = {"downloadThroughput": 200_000, "uploadThroughput": 200_000}
    speed = {"offline": False, "latency": 0, **most}
    session.send("Network.emulateNetworkConditions", speed)
    try:
        yield
    finally:
        session.send("Network.emulateNetworkConditions", {**speed, **dict.fromkeys(most, -1)})
        session.detach()


def leaves(said: Callable[[str], str], names: str) -> None:
    """Wait until this alone is in the folder."""
    said(f'for n in $(seq 100); do [ "$(ls -A)" = "{names}" ] && exit; sleep 0.1; done; false')


def test_names_of_any_kind(tab: Tab, here: str, said: Callable[[str], str]) -> None:
    said(f'for name in {shlex.join(ODD)}; do printf %s "$name" >"./$name"; done')
    said("printf a >\"$(printf 'bad\\377')\"; printf b >\"$(printf 'bad\\376')\"")
    tab.go(f"/pods/work/files{here}")
    for shown in ODD.values():
        expect(row(tab, shown)).to_be_visible()
    assert not tab.ran()
    bad = row(tab, "bad\ufffd")
    expect(bad).to_have_count(2)
    expect(bad.first).to_contain_text("not UTF-8")
    expect(bad.get_by_role("button")).to_have_count(0)
    tab.is_accessible()
    for name, shown in list(ODD.items())[::2]:
        link = row(tab, shown).get_by_role("link", name="Download")
        assert downloaded(tab, link)[1] == name.encode()
    tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    assert not tab.overflows()
    tab.is_accessible()
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    for shown in list(ODD.values())[1:6:2]:
        row(tab, shown).get_by_role("button").click()
        confirm(tab, "Delete")
        expect(row(tab, shown)).to_have_count(0)
    assert said("ls | wc -l").strip() == "6"
    assert not tab.ran()


def test_folders(tab: Tab, here: str, said: Callable[[str], str]) -> None:
    said("mkdir -p 'sub dir/deep' && echo here >'sub dir/note' && ln -s 'sub dir/note' link")
    tab.go(f"/pods/work/files{here}")
    # By the keyboard alone.
    tab.page.get_by_role("link", name="sub dir", exact=True).focus()
    tab.page.keyboard.press("Enter")
    expect(row(tab, "note")).to_be_visible()
    crumbs = tab.page.get_by_role("navigation", name="Path")
    expect(crumbs.get_by_role("link")).to_have_text(["/", "root", "test_folders", "sub dir"])
    assert downloaded(tab, row(tab, "note").get_by_role("link", name="Download note")) == (
        "note",
        b"here\n",
    )
    tab.page.go_back()
    expect(row(tab, "sub dir")).to_be_visible()
    tab.page.get_by_role("link", name="link", exact=True).click()
    tab.shows(f"This is a file: {here}/link, 5 B")
    drop(tab, [Path(__file__)])
    tab.shows("no folder is shown here")
    crumbs.get_by_role("link", name="test_folders", exact=True).click()
    link = row(tab, "sub dir").get_by_role("link", name="Download sub dir as a tar file")
    name, data = downloaded(tab, link)
    assert name == "sub dir.tar"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {"./note", "./deep"} <= set(tar.getnames())
    # As by plain HTTP from another machine, where a script has to fetch it.
    tab.page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false})")
    name, by_script = downloaded(tab, link)
    assert (name, len(by_script)) == ("sub dir.tar", len(data))
    tab.reload()
    said("head -c 3000000 /dev/urandom >large")
    tab.button("Look again").click()
    with slow(tab):
        row(tab, "large").get_by_role("link").click()
        coming = work(tab, "Download large")
        expect(coming).to_contain_text("of 2.86 MiB")
        expect(coming.get_by_role("progressbar")).to_have_attribute("value", re.compile(r"0\.\d+"))
        tab.button("Cancel", within=coming).click()
        expect(coming).to_have_count(0)
    tab.button("Delete sub dir").click()
    expect(tab.dialog()).to_contain_text("with all that is in it")
    # Seen again, the page looks again, below the question.
    said("touch new")
    tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(tab.page.locator("th").get_by_text("new", exact=True)).to_be_visible()
    expect(tab.dialog()).to_contain_text("with all that is in it")
    said("rm new")
    confirm(tab, "Delete")
    expect(row(tab, "sub dir")).to_have_count(0)
    assert said("ls -A") == "large\nlink\n"


def test_an_upload_asks_before_it_replaces(tab: Tab, here: str, said: Callable[[str], str]) -> None:
    data = bytes(range(250)) * 20_000
    tab.go(f"/pods/work/files{here}")
    upload(tab, "data.bin", data)
    expect(row(tab, "data.bin")).to_contain_text("4.77 MiB", timeout=WORK_MS)
    assert said("sha256sum <data.bin").split()[0] == hashlib.sha256(data).hexdigest()
    upload(tab, "data.bin", b"new")
    confirm(tab, "Cancel")
    upload(tab, "data.bin", b"new")
    confirm(tab, "Replace")
    expect(row(tab, "data.bin")).to_contain_text("3 B")
    assert said("cat data.bin") == "new"


def test_an_upload_that_is_cancelled_or_refused_leaves_nothing(
    tab: Tab, here: str, said: Callable[[str], str]
) -> None:
    said("mkdir full && mount -t tmpfs -o size=64k none full")
    try:
        tab.go(f"/pods/work/files{here}/full")
        upload(tab, "large", bytes(5_000_000))
        sent = work(tab, "Upload large")
        expect(sent.get_by_role("alert")).to_contain_text("No space left", timeout=WORK_MS)
        tab.button("Dismiss", within=sent).click()
    finally:
        said("umount full")
    tab.go(f"/pods/work/files{here}")
    with slow(tab):
        upload(tab, "slow", bytes(6_000_000))
        sent = work(tab, "Upload slow")
        expect(sent).to_contain_text("of 5.72 MiB")
        expect(sent.get_by_role("progressbar")).to_have_attribute("value", re.compile(r"0\.\d+"))
        tab.button("Cancel", within=sent).click()
        expect(sent).to_contain_text("Cancelled: nothing of it is in the pod.")
    expect(row(tab, "full")).to_be_visible()
    leaves(said, "full")


def test_who_leaves_during_an_upload_is_asked(
    tab: Tab, here: str, said: Callable[[str], str]
) -> None:
    """But not by a link to another part of the page, where it goes on."""
    dialogs: list[str] = []

    def stay(dialog: Dialog) -> None:
        dialogs.append(dialog.type)
        dialog.dismiss()

    tab.go(f"/pods/work/files{here}")
    tab.page.on("dialog", stay)
    with slow(tab):
        with tab.page.expect_file_chooser() as chooser:
            tab.button("Upload files …").click()
        assert chooser.value.is_multiple()
        names = ("one", "two")
        chooser.value.set_files(
            [FilePayload(name=name, mimeType="", buffer=bytes(1_500_000)) for name in names]
        )
        sent = work(tab, "Upload 2 files and folders")
        expect(sent).to_contain_text("of 2.86 MiB (1 of 2)")
        with tab.page.expect_event("dialog"):
            tab.page.close(run_before_unload=True)
        assert dialogs == ["beforeunload"]
        tab.page.get_by_role("link", name="Logs", exact=True).click()
        expect(tab.page.get_by_role("log")).to_be_visible()
        expect(sent).to_contain_text("of 2.86 MiB")
    expect(sent).to_contain_text("All 2 are in the pod.", timeout=WORK_MS)
    assert said("stat -c %n:%s *") == "one:1500000\ntwo:1500000\n"
    # Then nobody is asked.
    assert tab.page.evaluate("dispatchEvent(new Event('beforeunload', {cancelable: true}))")
    tab.page.remove_listener("dialog", stay)
    assert dialogs == ["beforeunload"]


def test_what_is_cut_off_says_so_and_leaves_nothing(
    browser: Browser,
    server: Server,
    carol: Client,
    here: str,
    said: Callable[[str], str],
    tmp_path: Path,
) -> None:
    said("truncate -s 40M large")
    file = tmp_path / "lost"
    with file.open("wb") as opened:
        opened.truncate(40 * 1024**2)
    line = Line(server.port)
    try:
        with browser.tab(line.port) as tab, tab.forgives(*CUT):
            tab.enter(carol.user, route=f"/pods/work/files{here}")
            with slow(tab):
                row(tab, "large").get_by_role("link").click()
                tab.page.locator("input[type=file]:not([webkitdirectory])").set_input_files(file)
                coming, sent = work(tab, "Download large"), work(tab, "Upload lost")
                for one in (coming, sent):
                    bar = one.get_by_role("progressbar")
                    expect(bar).to_have_attribute("value", re.compile(r"0\.\d+"))
                # Chromium sends an upload once more if it finds podyd.
                line.close()
            expect(coming.get_by_role("alert")).to_have_text("The download was cut off. Try again.")
            expect(sent.get_by_role("alert")).to_contain_text("The upload was cut off: nothing")
            tab.is_accessible()
            tab.page.goto("about:blank")  # It would try to connect on, and complain.
    finally:
        line.close()
    leaves(said, "large")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of this machine with others in it, an empty one, and names of any kind."""
    folder = tmp_path / "a folder"
    (folder / "sub" / ("d" * 200)).mkdir(parents=True)
    (folder / "empty").mkdir()
    for name in (*ODD, "\u00e9" * 127):
        (folder / "sub" / name).write_text(name)
        (folder / "sub" / ("d" * 200) / name).write_text(f"{name} below")
    os.utime(folder / "sub" / "-rf", (0, 86400))
    return folder


LISTED = "cd 'a folder' && find . -type f -exec sha256sum {} + | LC_ALL=C sort"


def test_files_and_folders_are_dropped(
    tab: Tab, here: str, said: Callable[[str], str], tree: Path
) -> None:
    file = tree.parent / "dropped"
    file.write_text("it")
    tab.go(f"/pods/work/files{here}")
    drop(tab, [tree, file])
    sent = work(tab, "Upload 2 files and folders")
    expect(sent).to_contain_text("All 2 are in the pod.", timeout=WORK_MS)
    expect(row(tab, "dropped")).to_be_visible()
    assert said("cat dropped") == "it"
    listed = subprocess.run(
        ["sh", "-c", LISTED], cwd=tree.parent, check=True, capture_output=True, text=True
    )
    assert said(LISTED) == listed.stdout
    assert said("stat -c %a:%Y 'a folder/sub/-rf'") == "644:86400\n"
    assert said("stat -c %F 'a folder/empty'") == "directory\n"
    assert not tab.ran()

    # Again, once somebody has said so: what else is there stays.
    said("cd 'a folder' && touch mine && echo old >sub/-rf")
    drop(tab, [tree])
    expect(tab.dialog()).to_contain_text("all others stay")
    confirm(tab, "Cancel")
    assert said("cat 'a folder/sub/-rf'") == "old\n"
    drop(tab, [tree])
    confirm(tab, "Add and replace")
    sent = work(tab, "Upload a folder")
    expect(sent).to_contain_text("All of it is in", timeout=WORK_MS)
    assert said("cat 'a folder/sub/-rf'; ls 'a folder'") == "-rfempty\nmine\nsub\n"

    # It is refused where it does not fit, and what can be sent is.
    said("rm -r 'a folder' && echo mine >'a folder'")
    drop(tab, [tree, file])
    confirm(tab, "Replace")
    alert = tab.page.get_by_role("alert").filter(has_text="a folder")
    expect(alert).to_contain_text("exists and is not a directory", timeout=WORK_MS)
    assert said("cat 'a folder' dropped") == "mine\nit"


def test_a_folder_is_chosen_and_one_is_made(
    tab: Tab, here: str, said: Callable[[str], str], tree: Path
) -> None:
    tab.go(f"/pods/work/files{here}")
    chooser = tab.page.locator("input[webkitdirectory]")
    chooser.set_input_files(tree)
    expect(row(tab, "a folder")).to_be_visible(timeout=WORK_MS)
    # A browser does not tell of what is empty.
    assert said("cd 'a folder' && find . -type f -printf x; ls") == "x" * 16 + "sub\n"

    for wrong in ("..", "a/b", " ", "\u00e9" * 128):
        tab.button("New folder …").click()
        tab.dialog().get_by_label("Name").fill(wrong)
        tab.button("Make the folder", within=tab.dialog()).click()
        expect(tab.dialog().get_by_role("alert")).to_contain_text("without “/”")
        tab.page.keyboard.press("Escape")
    tab.button("New folder …").click()
    name = tab.dialog().get_by_label("Name")
    name.fill("a folder")
    name.press("Enter")
    expect(tab.dialog().get_by_role("alert")).to_contain_text("There is a folder already.")
    name.fill(MARKUP)
    name.press("Enter")
    expect(row(tab, MARKUP)).to_be_visible()
    assert said(f"stat -c %F:%a {shlex.quote(MARKUP)}") == "directory:755\n"
    assert not tab.ran()
    tab.is_accessible()


def test_a_folder_whose_upload_is_cancelled_leaves_nothing(
    tab: Tab, here: str, said: Callable[[str], str], tree: Path
) -> None:
    (tree / "large").write_bytes(bytes(6_000_000))
    tab.go(f"/pods/work/files{here}")
    with slow(tab):
        drop(tab, [tree])
        sent = work(tab, "Upload a folder")
        expect(sent).to_contain_text(re.compile(r"of 5\.\d+ MiB"))
        expect(sent.get_by_role("progressbar")).to_have_attribute("value", re.compile(r"0\.\d+"))
        tab.button("Cancel", within=sent).click()
        expect(sent).to_contain_text("Cancelled: nothing of it is in the pod.")
    leaves(said, "")


def test_logs(tab: Tab, said: Callable[[str], str], carol: Client) -> None:
    def say(text: str) -> None:
        said(f"{shlex.join(['echo', text])} | systemd-cat -t page")

    say(f"first {MARKUP} \u202egnp {'x' * 2000}")
    tab.go("/pods/work/logs")
    log = tab.page.get_by_role("log")
    expect(log).to_contain_text(rf"first {MARKUP} \u202egnp xxx")
    say("the second one")
    expect(log).to_contain_text("the second one")
    at_end = "element => element.scrollHeight - element.scrollTop - element.clientHeight < 5"
    assert log.evaluate(at_end)
    # Who reads on above is left there.
    log.evaluate("element => { element.scrollTop = 0 }")
    say("THE third one")
    newer = tab.button("There are newer lines: go to the end")
    expect(newer).to_be_visible()
    assert log.evaluate("element => element.scrollTop") == 0
    newer.click()
    expect(log).to_contain_text("THE third one")
    assert log.evaluate(at_end)
    find = tab.page.get_by_label("Find", exact=True)
    find.fill("the third one")
    expect(log.locator("mark")).to_have_text(["THE third one"])
    find.press("Enter")
    expect(log.locator("mark.current")).to_be_visible()
    tab.shows("1 of 1")
    tab.is_accessible()
    find.fill("")
    with tab.page.expect_download() as download:
        tab.button("Save as a file").click()
    assert download.value.suggested_filename == "work.log"
    assert "THE third one" in download.value.path().read_text()
    tab.page.get_by_label("Lines, at most").select_option("1000")
    tab.page.get_by_label("Since").select_option("1 hour ago")
    expect(log).to_contain_text(f"first {MARKUP}")
    assert not tab.ran()
    tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    assert not tab.overflows()
    tab.page.set_viewport_size({"width": 1280, "height": 800})


def test_the_matches_in_a_log_are_stepped_through(tab: Tab, said: Callable[[str], str]) -> None:
    said("printf '%s\\n' 'a needle, a needle' 'and a needle' | systemd-cat -t page")
    tab.go("/pods/work/files").go("/pods/work/logs")
    log, find = tab.page.get_by_role("log"), tab.page.get_by_label("Find", exact=True)
    tab.page.get_by_label("Follow").uncheck()
    find.fill("NEEDLE")
    tab.shows("Found 3 times.")
    matches = log.locator("mark")
    # The newest is the first.
    steps: dict[str, list[int]] = {"Next match": [3, 1], "Previous match": [3, 2]}
    for name, places in steps.items():
        for place in places:
            tab.button(name).click()
            tab.shows(f"{place} of 3")
            expect(matches.nth(place - 1)).to_have_class("current")
            expect(matches.nth(place - 1)).to_be_in_viewport()
            expect(log.locator("mark.current")).to_have_count(1)
    # By the keyboard towards what is older, or newer.
    find.press("Enter")
    tab.shows("1 of 3")
    find.press("Shift+Enter")
    tab.shows("2 of 3")
    find.fill("no such needle")
    tab.shows("Found 0 times.")
    expect(tab.button("Next match")).to_be_hidden()


def test_a_pod_that_is_stopped(tab: Tab, carol: Client) -> None:
    escapes = r"\033[31mred\033[0m \033]0;a title\007\033[2J\033]8;;http://x\033\\link\b\r\n"
    carol.exec("work", f"printf '{escapes}' >/dev/console")
    carol.post("/pod/stop", ins="work").ok
    tab.go("/pods/work/files")
    tab.shows("its files can be seen while it runs")
    # Why not, without a mouse.
    restart = tab.button("Restart work")
    why = "The pod is stopped: start it."
    expect(restart).to_have_attribute("title", why)
    reason = tab.page.locator(".tray .work").filter(has_text=why)
    restart.focus()
    expect(reason).to_have_text(why)
    restart.click(force=True)
    expect(reason).to_have_attribute("role", "alert")
    restart.blur()
    expect(reason).to_have_count(0)
    tab.go("/pods/work/logs")
    tab.shows("The console of the pod")
    expect(tab.page.get_by_role("log")).to_contain_text("work login:")
    expect(tab.page.get_by_role("log")).to_contain_text("red link\\u0008\n")
    tab.go("/pods/work/files")
    tab.page.locator(".files").get_by_role("button", name="Start").click()
    expect(row(tab, ".bashrc")).to_be_visible(timeout=WORK_MS)
