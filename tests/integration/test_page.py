"""The page in a real browser: what a member and an admin see and do there, on a real LXD."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import quote

import pytest
from playwright.sync_api import FilePayload, Locator, Request, WebSocket, expect

from tests.integration.browser import MARKUP, NARROW, WIDE, WORK_SECONDS, Browser, Tab
from tests.integration.harness import IMAGE, PASSWORD, SMALL, Client, Line, wait_until
from tests.integration.scene import WORK_MS, Doors, Scene, click, running, title
from tests.lab import lab
from tests.lab.nvml import FakeNvml, FakeProcess

# By what podyd promises this is within 2 s; a machine at work may take longer.
SOON_MS = 10_000
NEW_PASSWORD = "Another-horse-8"
# A page whose podyd is away, or just stops, says so in the browser's console as well.
AWAY = (
    r"ERR_CONNECTION_REFUSED",
    r"WebSocket connection to .*/events",
    r"ERR_EMPTY_RESPONSE",
    r"^503 for",
    r"status of 503",
)


@pytest.fixture(scope="module")
def scene(lab_cards: None) -> Iterator[Scene]:
    scene = Scene(web={"status_allow": ["127.0.0.1"]})
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def alice(scene: Scene) -> Client:
    """A member whose pod "work" stays; it has a card."""
    return scene.owner("work", gpus="0,")


@pytest.fixture(scope="module")
def bob(scene: Scene) -> Client:
    """Another one, with a pod "other" that has no card."""
    return scene.owner("other", gpus="none")


@pytest.fixture(scope="module")
def admin(scene: Scene) -> Client:
    return scene.admin()


@pytest.fixture(autouse=True)
def _as_before(scene: Scene, alice: Client, bob: Client) -> Iterator[None]:
    """After each test nobody computes or waits, and the pods have the cards that they had."""
    yield
    scene.driver.write(FakeNvml())
    for client, ins, gpus in ((bob, "other", "none"), (alice, "work", "0,")):
        client.post("/gpu/release", ins=ins)
        client.post("/pod/gpus", ins=ins, gpus=gpus).ok


@pytest.fixture(scope="module")
def enter(scene: Scene, browser: Browser) -> Doors:
    return Doors(scene, browser)


def gpu(tab: Tab, index: int) -> Locator:
    """The panel of a GPU."""
    return tab.page.get_by_role("article", name=f"GPU {index}", exact=True)


def found_in_both(tab: Tab, what: str) -> list[str]:
    """What axe finds wrong in light and in dark."""
    problems = []
    for theme in ("light", "dark"):
        tab.page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        problems += [f"{what}, {theme}: {found}" for found in tab.axe()]
    return problems


def yours(tab: Tab) -> Locator:
    """What the member has and waits for."""
    return tab.page.get_by_role("region", name="What you have and wait for")


# --- Pods ---------------------------------------------------------------------------------------


def test_a_pods_life(scene: Scene, enter: Doors) -> None:
    client = scene.member()
    with enter(client, "/pods") as tab:
        tab.shows("You have no pods yet")
        tab.page.get_by_role("link", name="New pod").first.click()
        title(tab, "New pod")
        expect(tab.page.locator("main h1")).to_be_focused()
        name = tab.page.get_by_label("Name", exact=True)
        name.fill("-not so-")
        tab.page.get_by_label("Image", exact=True).select_option(SMALL)
        tab.page.get_by_role("radio", name="none").check()
        tab.button("Create pod").click()
        expect(name).to_be_focused()
        expect(name).to_have_attribute("aria-invalid", "true")
        name.fill("web")
        tab.page.get_by_label("Memory, at most").fill("300MiB")
        tab.button("Create pod").click()
        title(tab, "web")
        tab.shows("running")
        client.sees("web", memory_limit=300 * 1024**2)

        tab.go("/pods")
        row = tab.row("web")
        expect(row).to_contain_text("of 300 MiB", timeout=WORK_MS)
        click(tab.button("Stop web"))
        tab.button("Stop", within=tab.dialog()).click()
        expect(row).to_contain_text("stopped", timeout=WORK_MS)
        click(tab.button("Start web"))
        expect(row).to_contain_text("running", timeout=WORK_MS)
        before = scene.node.instance_of(client.user, "web")["last_used_at"]
        click(tab.button("Restart web"))
        tab.button("Restart", within=tab.dialog()).click()
        wait_until(
            lambda: scene.node.instance_of(client.user, "web")["last_used_at"] > before, "it"
        )
        expect(row).to_contain_text("running", timeout=WORK_MS)
        # What an admin does with lxc is there at once.
        instance = scene.node.instance_of(client.user, "web")["name"]
        scene.node.lxc("stop", "-f", instance)
        expect(row).to_contain_text("stopped")

        click(tab.button("Delete web"))
        delete = tab.button("Delete web", within=tab.dialog())
        expect(delete).to_be_disabled()
        tab.dialog().get_by_role("textbox").fill("web")
        delete.click()
        expect(row).to_have_count(0, timeout=WORK_MS)
        tab.shows("You have no pods yet")
    assert client.get("/pod/list").ok == []


def test_what_podyd_refuses_stands_in_the_form(enter: Doors, bob: Client) -> None:
    with enter(bob, "/new") as tab:
        tab.page.get_by_label("Name", exact=True).fill("other")
        tab.button("Create pod").click()
        tab.shows("You have a pod other already.")
        tab.page.get_by_label("Name", exact=True).fill("more")
        tab.page.get_by_label("Image", exact=True).select_option(SMALL)
        tab.page.get_by_label("Disk, at most").fill("much")
        tab.button("Create pod").click()
        detail = bob.post("/pod/create", ins="more", image=SMALL, disk="much").refused(400)
        tab.shows(detail["detail"])
    assert bob.get("/pod/list").ok == ["other"]


def test_two_members_do_not_see_each_others_pods(enter: Doors, alice: Client, bob: Client) -> None:
    frames: list[str | bytes] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", frames.append)

    with enter(alice, "/pods") as hers, enter(bob, "/pods") as his:
        his.page.on(
            "websocket", lambda it: it.on("framereceived", lambda data: frames.append(data))
        )
        his.reload()
        his.is_live()
        expect(hers.row("work")).to_contain_text("running")
        expect(his.row("other")).to_contain_text("running")
        his.shows_not("work")
        hers.shows_not("other")
        his.go("/pods/work")
        title(his, "You have no pod work")
        instance = alice.get("/pod/info", ins="work").ok["name"]
        told = [key for text in frames for key in json.loads(text)["set"]]
        assert any(key.startswith("pod/") for key in told)
        assert not [key for key in told if instance in key]


def test_a_pod_comes_and_goes_under_its_page(enter: Doors, bob: Client) -> None:
    with enter(bob, "/pods/late/snapshots") as tab:
        tab.shows("You have no pod late")
        bob.post("/pod/create", ins="late", image=SMALL, gpus="none").ok
        tab.shows("There are no snapshots yet")
        bob.post("/pod/snapshot", ins="late", name="elsewhere").ok
        expect(tab.row("elsewhere")).to_be_visible()
        bob.post("/pod/delete", ins="late").ok
        tab.shows("The pod has been deleted.")
        expect(tab.button("Make snapshot")).to_be_hidden()


def test_snapshots(enter: Doors, bob: Client) -> None:
    bob.exec("other", "echo first > /root/file; sync")
    with enter(bob, "/pods/other/snapshots") as tab:
        name = tab.page.get_by_label("Name of the new snapshot")
        with tab.forgives("400"):
            name.fill("no/name")
            click(tab.button("Make snapshot"))
            expect(name).to_have_attribute("aria-invalid", "true", timeout=WORK_MS)
        expect(name).to_be_focused()
        name.fill("before")
        click(tab.button("Make snapshot"))
        expect(tab.row("before")).to_be_visible(timeout=WORK_MS)
        bob.exec("other", "echo second > /root/file; sync")
        click(tab.button("Copy snapshot before of other"))
        tab.dialog().get_by_label("Name").fill("then")
        # A pool without limits of disks has no use for one; what is wrong with it stands beside it.
        disk = tab.dialog().get_by_label("Disk, at most")
        expect(disk).to_be_enabled(
            enabled=bob.get("/pod/info", ins="other").ok["disk_limit"] is not None
        )
        disk.evaluate("element => { element.disabled = false; }")
        disk.fill("much")
        tab.button("Copy", within=tab.dialog()).click()
        expect(disk).to_have_attribute("aria-invalid", "true")
        expect(disk).to_be_focused()
        expect(tab.dialog()).to_contain_text("Parameter 'disk' must be")
        disk.fill("")
        tab.button("Copy", within=tab.dialog()).click()
        title(tab, "then")
        tab.go("/pods/other/snapshots")
        click(tab.button("Restore other to before"))
        expect(tab.dialog()).to_contain_text("all processes in it end")
        tab.button("Restore", within=tab.dialog()).click()
        wait_until(lambda: _file(bob, "other") == "first\n", "the first file", WORK_SECONDS)
        assert _file(bob, "then") == "first\n"
        click(tab.button("Delete snapshot before"))
        tab.button("Delete", within=tab.dialog()).click()
        expect(tab.row("before")).to_have_count(0, timeout=WORK_MS)
    bob.post("/pod/delete", ins="then").ok
    assert bob.get("/pod/snapshots", ins="other").ok == []


def test_snapshots_of_an_admins_have_any_name(scene: Scene, enter: Doors, bob: Client) -> None:
    """An engine has fewer limits of their names than podyd."""
    instance = scene.node.instance_of(bob.user, "other")["name"]
    names = {
        "a<img><b>bold": "a<img><b>bold",
        "a\u202efdp": r"a\u202efdp",
        "y" * 64: "y" * 64,
        # Incus 7 takes none of these.
        "<img\tsrc=x><b>bold": r"<img\tsrc=x><b>bold",
        "\u202egnp": r"\u202egnp",
        "x" * 200: "x" * 200,
    }

    def is_taken(name: str) -> bool:
        try:
            scene.node.snapshot(instance, name)
        except lab.LabError as error:
            assert "Invalid snapshot name" in str(error)
            return False
        return True

    taken = {name: shown for name, shown in names.items() if is_taken(name)}
    assert list(taken) in (list(names), list(names)[:3])
    try:
        with enter(bob, "/pods/other/snapshots") as tab:
            for shown in taken.values():
                expect(tab.row(shown)).to_be_visible()
                click(tab.button(f"Delete snapshot {shown}"))
                expect(tab.dialog()).to_contain_text(shown)
                tab.button("Cancel", within=tab.dialog()).click()
            assert not tab.ran()
            tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
            assert not tab.overflows()
            tab.is_accessible()
    finally:
        for name in taken:
            scene.node.delete_snapshot(instance, quote(name))


def _file(client: Client, ins: str) -> object:
    answer = client.post("/pod/exec", ins=ins, cmd="cat /root/file")
    return answer.body.get("stdout")


def test_limits_gpus_and_an_image(scene: Scene, enter: Doors, bob: Client) -> None:
    with enter(bob, "/pods/other") as tab:
        tab.page.get_by_label("Memory, at most").fill("256MiB")
        click(tab.button("Change limits"))
        tab.shows("The limits hold.", WORK_SECONDS)
        bob.sees("other", memory_limit=256 * 1024**2)

        click(tab.button("Change GPUs"))
        tab.dialog().get_by_role("radio", name=re.compile("these")).check()
        tab.dialog().get_by_role("checkbox", name=re.compile("GPU 1")).check()
        tab.button("Change GPUs", within=tab.dialog()).click()
        expect(tab.row("GPU 1")).to_contain_text("shared", timeout=WORK_MS)
        assert bob.get("/pod/info", ins="other").ok["gpu_ids"] == [1]
        bob.post("/pod/gpus", ins="other", gpus="none").ok
        tab.shows("The pod has no GPUs.")

        # Chosen by who makes it, and shown to all who may use it.
        click(tab.button("Make an image of other"))
        tab.dialog().get_by_label("Tag").fill("mine")
        tab.dialog().get_by_label("Description").fill(hostile := f"{MARKUP} \u202egnp {'w' * 300}")
        tab.button("Make an image", within=tab.dialog()).click()
        image = f"{bob.user}-mine"
        wait_until(lambda: image in bob.get("/host/images").ok, "the image", 180)
        tab.go("/new")
        tab.page.get_by_label("Image", exact=True).select_option(image)
        shown = hostile.replace("\u202e", r"\u202e")
        tab.shows(shown)
        assert not tab.ran()
        tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
        assert not tab.overflows()

        # An admin's is not the member's own, whatever its name.
        with alias(scene, f"{bob.user}-for-all") as theirs:
            tab.go("/pods")
            expect(tab.row(image)).to_contain_text(shown)
            assert not tab.overflows()
            assert theirs in bob.get("/host/images").ok
            expect(tab.row(theirs)).to_have_count(0)
        tab.button(f"Delete image {image}").click()
        tab.button("Delete", within=tab.dialog()).click()
        expect(tab.row(image)).to_have_count(0, timeout=WORK_MS)
    assert image not in bob.get("/host/images").ok


@contextmanager
def alias(scene: Scene, name: str) -> Iterator[str]:
    """One more name of an admin's image, meanwhile."""
    target = scene.node.lxd.get(f"/1.0/images/aliases/{SMALL}?project={scene.node.images}")[
        "target"
    ]
    scene.node.lxc("image", "alias", "create", name, target)
    try:
        yield name
    finally:
        scene.node.lxc("image", "alias", "delete", name)


def test_ports(enter: Doors, bob: Client) -> None:
    bob.exec("other", "httpd -p 8888 -h /root")
    with enter(bob, "/pods/other/ports") as tab:
        with tab.page.expect_request("**/pod/ports?*"):
            tab.page.route("**/pod/ports?*", lambda route: None, times=1)
            tab.reload()
        # What is not known yet is not denied.
        expect(tab.row("ssh -p")).to_contain_text("\u2013")
        tab.shows("Asking")
        row = tab.row("8888").filter(has=tab.page.get_by_role("rowheader", name="8888"))
        expect(row).to_be_visible()
        tab.button("Forward port 8888").click()
        expect(row.get_by_role("link")).to_have_attribute(
            "href", re.compile(r"^http://[^/]+:\d+/$"), timeout=WORK_MS
        )
        tab.button(re.compile("Stop forwarding .* to 8888")).click()
        tab.button("Stop forwarding", within=tab.dialog()).click()
        expect(tab.button("Forward port 8888")).to_be_visible(timeout=WORK_MS)
    assert "8888" not in str(bob.get("/pod/info", ins="other").ok["port_mapping"])


# --- From login to a training run, and back ------------------------------------------------------

TRAIN = b"""import os
os.stat("/dev/nvidia1")
for epoch in (1, 2, 3):
    print("epoch", epoch, "loss", 1 / epoch, flush=True)
input("Enter to end: ")
with open("model.pt", "w") as model:
    model.write("weights")
print("saved" + " model.pt")
"""


def test_from_login_to_a_training_run_and_back(scene: Scene, browser: Browser) -> None:
    """All that a new member does, without a terminal of their own."""
    client = scene.member()
    with browser.tab(scene.port) as tab:
        tab.enter(client.user)
        tab.page.get_by_role("link", name="New pod").first.click()
        title(tab, "New pod")
        tab.page.get_by_label("Name", exact=True).fill("train")
        tab.page.get_by_label("Image", exact=True).select_option(IMAGE)
        tab.page.get_by_role("radio", name="none").check()
        tab.button("Create pod").click()
        title(tab, "train")

        tab.page.get_by_role("link", name="GPUs", exact=True).click()
        tab.button("Lease …", within=gpu(tab, 1)).click()
        tab.button("Lease, or queue", within=tab.dialog()).click()
        expect(gpu(tab, 1)).to_contain_text("leased", timeout=WORK_MS)

        tab.page.get_by_role("link", name="Pods", exact=True).click()
        tab.page.get_by_role("link", name="train", exact=True).click()
        tab.page.get_by_role("link", name="Files").click()
        expect(tab.button("Upload files …")).to_be_visible()
        chosen = FilePayload(name="train.py", mimeType="text/x-python", buffer=TRAIN)
        tab.page.locator("input[type=file]").first.set_input_files([chosen])
        expect(tab.row("train.py")).to_be_visible(timeout=WORK_MS)

        tab.page.get_by_role("link", name="Terminal").click()
        terminal = tab.page.locator(".xterm-rows")
        expect(terminal).to_contain_text("-train:~#", timeout=WORK_MS)
        tab.page.keyboard.type("python3 train.py\n")
        expect(terminal).to_contain_text("Enter to end:", timeout=WORK_MS)
        (pid,) = running("train.py")
        busy = FakeNvml().with_gpu(1, utilisation=88, processes=(FakeProcess(pid),))
        scene.driver.write(busy)

        tab.page.get_by_role("link", name="GPUs", exact=True).click()
        expect(gpu(tab, 1)).to_contain_text("88 %")
        expect(gpu(tab, 1)).to_contain_text("python3 train.py", use_inner_text=False)
        tab.page.go_back()
        # The same session as before.
        expect(terminal).to_contain_text("Enter to end:", timeout=WORK_MS)
        tab.page.keyboard.press("Enter")
        expect(terminal).to_contain_text("saved model.pt")
        scene.driver.write(FakeNvml())

        tab.page.get_by_role("link", name="Files").click()
        with tab.page.expect_download(timeout=WORK_MS) as download:
            tab.page.get_by_role("link", name="Download model.pt").click()
        assert download.value.path().read_text() == "weights"

        tab.page.get_by_role("link", name="GPUs", exact=True).click()
        # NVML is asked each second; while the training runs, the lease's end would end it.
        expect(gpu(tab, 1)).not_to_contain_text("train.py", use_inner_text=False)
        tab.button("Release …", within=gpu(tab, 1)).click()
        tab.button("Release", within=tab.dialog()).click()
        expect(gpu(tab, 1)).to_contain_text("free", timeout=WORK_MS)
        tab.page.get_by_role("link", name="Pods", exact=True).click()
        click(tab.button("Delete train"))
        tab.dialog().get_by_role("textbox").fill("train")
        tab.button("Delete train", within=tab.dialog()).click()
        tab.shows("You have no pods yet", WORK_SECONDS)
        tab.button("Log out").click()
        expect(tab.page.get_by_label("User name")).to_be_visible()
    assert client.get("/pod/list").ok == []


# --- Cards --------------------------------------------------------------------------------------


def test_leases_and_the_queue_of_two_members(enter: Doors, alice: Client, bob: Client) -> None:
    with enter(alice, "/cards") as hers, enter(bob, "/cards") as his:
        expect(gpu(hers, 0)).to_contain_text("shares it")
        hers.button("Lease …", within=gpu(hers, 0)).click()
        expect(hers.dialog().get_by_role("checkbox", name=re.compile("GPU 0"))).to_be_checked()
        hers.dialog().get_by_role("checkbox", name=re.compile("GPU 1")).check()
        hers.dialog().get_by_label("Hours").fill("2")
        hers.dialog().get_by_label("Queue for them").uncheck()
        hers.button("Lease now", within=hers.dialog()).click()
        for index in (0, 1):
            expect(gpu(his, index)).to_contain_text("leased", timeout=WORK_MS)
            expect(gpu(his, index)).to_contain_text(alice.user)
        expect(his.button("Release …")).to_have_count(0)

        hers.button("Extend …", within=gpu(hers, 1)).click()
        hers.dialog().get_by_label("Hours from now").fill("5")
        hers.button("Extend", within=hers.dialog()).click()
        expect(gpu(his, 1)).to_contain_text("4 h 59 min left")

        expect(his.button("Queue for it …")).to_have_count(2)
        assert his.page.title().startswith("0 of 2 GPUs free")
        his.button("Lease GPUs …").click()
        his.dialog().get_by_label("Hours").fill("3")
        his.button("Lease, or queue", within=his.dialog()).click()
        expect(hers.row(bob.user)).to_contain_text("3 h")
        expect(his.row("you")).to_be_visible()
        expect(yours(hers)).to_contain_text(
            re.compile(r"GPU 0 is leased by work until .* left\)\.")
        )
        turn = r"other waits for 1 GPU: place 1 of 1\. Nobody before you .* at the latest"
        expect(yours(his)).to_contain_text(re.compile(turn))
        alice.post("/gpu/queue", ins="work", gpus="2", hours=9).ok
        before = f"place 2 of 2. Before you: {bob.user}-other ({bob.user}, 1 GPU)."
        expect(yours(hers)).to_contain_text(before)
        hers.button("Leave the queue").click()
        expect(yours(hers)).not_to_contain_text("waits for")

        # Who has one gives it up before those who wait do.
        hers.button("Extend …", within=gpu(hers, 0)).click()
        hers.dialog().get_by_label("Hours from now").fill("9")
        hers.button("Extend", within=hers.dialog()).click()
        expect(hers.dialog().get_by_role("alert")).to_contain_text("in the queue before you")
        hers.page.keyboard.press("Escape")

        hers.button("Release …", within=gpu(hers, 0)).click()
        hers.button("Release", within=hers.dialog()).click()
        expect(gpu(his, 0)).to_contain_text(bob.user, timeout=WORK_MS)
        expect(his.row("you")).to_have_count(0)

        alice.post("/gpu/queue", ins="work", gpus="0,", hours=1).ok
        expect(his.row(alice.user)).to_be_visible()
        hers.button("Leave the queue").click()
        expect(his.row(alice.user)).to_have_count(0)


def test_what_runs_on_a_card_is_shown_as_text(scene: Scene, enter: Doors, alice: Client) -> None:
    command = shlex.join(["sh", "-c", "while sleep 1; do :; done", MARKUP])
    alice.exec("work", f"setsid {command} >/dev/null 2>&1 &")
    wait_until(lambda: bool(running(MARKUP)), "it")
    # The shell; a child that it has just begun has its words for a moment.
    pid = min(running(MARKUP))
    alice.post("/gpu/lease", ins="work", gpus="0,", hours=1).ok
    busy = FakeNvml().holding(0, FakeProcess(pid)).with_gpu(0, utilisation=71, memory_used=2**31)
    scene.driver.write(busy.with_gpu(0, processes=(FakeProcess(pid),)))
    with enter(alice, "/cards/0") as tab:
        expect(gpu(tab, 0)).to_contain_text("71 %")
        expect(gpu(tab, 0)).to_contain_text("2.00 of 80.0 GiB")
        expect(gpu(tab, 0)).to_contain_text(MARKUP)
        assert not tab.ran()
        tab.page.get_by_role("radio", name="day").check()
        tab.go("/cards")
        expect(gpu(tab, 0).get_by_text("1 process")).to_be_visible()
        # The answer to who gives it back is the process that is on it.
        tab.button("Release …", within=gpu(tab, 0)).click()
        expect(tab.dialog()).to_contain_text(MARKUP)
        tab.page.keyboard.press("Escape")
        expect(tab.dialog()).to_have_count(0)
        assert not tab.ran()
    os.kill(pid, signal.SIGKILL)


def test_the_wall_needs_no_login(scene: Scene, browser: Browser, alice: Client) -> None:
    alice.post("/gpu/lease", ins="work", gpus="0,", hours=1).ok
    with browser.tab(scene.port) as tab:
        tab.open("/wall")
        expect(gpu(tab, 0)).to_contain_text(re.compile(f"{alice.user}-work until"))
        expect(gpu(tab, 1)).to_contain_text("free")
        expect(tab.page).to_have_title(re.compile("^GPUs of .*, 1 of 2 GPUs free"))
        # All of it in one window, in letters that are 2 % of its height at least.
        tab.page.set_viewport_size({"width": 1920, "height": 1080})
        height, smallest = tab.page.evaluate(
            """() => [document.documentElement.scrollHeight, Math.min(
              ...[...document.querySelectorAll("article *")].map((element) =>
                parseFloat(getComputedStyle(element).fontSize)))]"""
        )
        assert height == 1080
        assert smallest >= 0.02 * height
        assert tab.page.get_by_role("button").count() == 0
        alice.post("/gpu/release", ins="work").ok
        expect(gpu(tab, 0)).not_to_contain_text("until")
        tab.is_accessible()


# --- The member's own ---------------------------------------------------------------------------


def test_the_account(scene: Scene, browser: Browser, enter: Doors) -> None:
    client = scene.member()
    with enter(client, "/account") as tab:
        tab.shows(f"Logged in as {client.user}.")
        tab.button("Make a token").click()
        tab.dialog().get_by_label("Name").fill(MARKUP)
        tab.dialog().get_by_label("Your password").fill("wrong-Horse-7")
        tab.button("Make a token", within=tab.dialog()).click()
        expect(tab.dialog().get_by_role("alert")).to_contain_text("password")
        tab.dialog().get_by_label("Your password").fill(PASSWORD)
        tab.button("Make a token", within=tab.dialog()).click()
        expect(tab.dialog()).to_contain_text("Copy it now")
        secret = tab.dialog().locator("pre").inner_text()
        assert Client(scene.port, client.user, secret).get("/pod/list").ok == []
        tab.button("Close", within=tab.dialog()).click()
        expect(tab.row(MARKUP)).to_be_visible()
        assert not tab.ran()
        tab.row(MARKUP).get_by_role("button", name=re.compile("^Revoke")).click()
        tab.dialog().get_by_label("Your password").fill(PASSWORD)
        tab.button("Revoke", within=tab.dialog()).click()
        expect(tab.row(MARKUP)).to_have_count(0)
        Client(scene.port, client.user, secret).get("/pod/list").refused(401)

        # What is revoked elsewhere goes, and another browser can be logged out.
        made = client.post("/user/token", name="a machine").ok
        expect(tab.row("a machine")).to_be_visible()
        client.post("/user/token-revoke", id=made["id"]).ok
        expect(tab.row("a machine")).to_have_count(0)
        with browser.tab(scene.port) as elsewhere, elsewhere.forgives("401"):
            elsewhere.enter(client.user)
            tab.button("Log out everywhere else").click()
            tab.button("Log out everywhere else", within=tab.dialog()).click()
            expect(elsewhere.page.get_by_label("User name")).to_be_visible()
        expect(tab.row("this one")).to_have_count(1)
        expect(tab.button("Log out everywhere else")).to_have_count(0)

        tab.page.get_by_label("Old password").fill(PASSWORD)
        tab.page.get_by_label("New password", exact=True).fill(NEW_PASSWORD)
        tab.page.get_by_label("New password, again").fill(NEW_PASSWORD)
        tab.button("Change the password").click()
        tab.shows("Changed; all tokens are revoked.")
        tab.is_live()
        tab.reload()
        title(tab, "Account")
    assert Client(scene.port, client.user, NEW_PASSWORD).get("/pod/list").ok == []


# --- Admins -------------------------------------------------------------------------------------


def test_the_admin(scene: Scene, enter: Doors, admin: Client, alice: Client, bob: Client) -> None:
    alice.post("/gpu/lease", ins="work", gpus="0,1", hours=2).ok
    bob.post("/gpu/queue", ins="other", gpus="1", hours=2).ok
    with enter(admin, "/admin/pods") as tab:
        for client in (alice, bob):
            expect(tab.row(client.user)).to_contain_text("running")
        tab.page.get_by_label("Show only what contains").fill(bob.user)
        expect(tab.row(alice.user)).to_have_count(0)
        tab.page.get_by_role("link", name="People").click()
        expect(tab.row(alice.user)).to_contain_text("member")
        expect(tab.row(admin.user)).to_contain_text("admin")
        # Sorted by name, and the other way round.
        names = tab.page.locator("tbody th")
        tab.page.get_by_label("Show only what contains").fill("podydt")
        expect(names).not_to_have_count(0)
        # Other tests' accounts come and go.
        ours = {client.user for client in (alice, bob, admin)}
        tab.button("Person").click()
        down = [name for name in names.all_inner_texts() if name in ours]
        assert len(down) == len(ours)
        tab.button("Person").click()
        wait_until(
            lambda: [name for name in names.all_inner_texts() if name in ours] == down[::-1],
            "the other way round",
        )
        tab.page.get_by_label("Show only what contains").fill(bob.user)
        expect(names).to_have_text([bob.user])
        # What it has and what it waits for.
        expect(tab.row(bob.user)).to_contain_text("1 of ")
        # It follows by itself.
        bob.post("/pod/gpus", ins="other", gpus="none").ok
        tab.page.get_by_role("link", name=bob.user).click()
        expect(tab.row(bob.user)).to_contain_text("running")
        expect(tab.row(alice.user)).to_have_count(0)

        tab.page.get_by_role("link", name="Leases").click()
        rows = tab.row(bob.user)
        rows.get_by_role("button", name=re.compile("^Take out of the queue")).click()
        tab.dialog().get_by_label("Reason").fill("The queue is for those who compute.")
        tab.button(re.compile("^Take out of the queue"), within=tab.dialog()).click()
        expect(rows).to_have_count(0)
        lease = tab.row(alice.user).first
        lease.get_by_role("button", name=re.compile("^End the lease")).click()
        tab.dialog().get_by_label("Reason").fill(f"Maintenance {MARKUP}")
        tab.button(re.compile("^End the lease"), within=tab.dialog()).click()
        expect(tab.row(alice.user)).to_have_count(1)

        tab.page.get_by_role("link", name="Log", exact=True).click()
        expect(tab.row("/admin/release").first).to_contain_text(admin.user)
        # It follows by itself, and shows what is asked for.
        bob.post("/pod/start", ins="no-such").refused(404)
        expect(tab.row("no_such_pod").first).to_contain_text(bob.user)
        tab.page.get_by_label("Call").fill("/admin/release")
        expect(tab.row("no_such_pod")).to_have_count(0)
        tab.page.get_by_label("Person").fill(bob.user)
        tab.shows("nothing is so")
        tab.page.get_by_label("Pod", exact=True).fill("no pod")
        expect(tab.page.get_by_label("Pod", exact=True)).to_have_attribute("aria-invalid", "true")

        tab.page.get_by_role("link", name="Doctor").click()
        tab.shows("There are no findings yet")
        kept = scene.node.directory / "auth" / "findings.json"
        findings = [
            {"check": "well", "level": "ok", "what": "All is well.", "do": ""},
            {"check": "full", "level": "error", "what": f"It is full {MARKUP}.", "do": "df"},
        ]
        kept.write_text(json.dumps({"time": "2026-11-01T00:00:00Z", "findings": findings}))
        expect(tab.page.locator("tbody th")).to_have_text(["full", "well"])
        tab.shows("That is long ago")
        assert not tab.ran()
        tab.page.get_by_role("link", name="GPU hours").click()
        with tab.page.expect_download() as download:
            tab.page.get_by_role("link", name="Download as CSV").click()
        assert "user" in download.value.path().read_text().splitlines()[0]
    with enter(alice, "/account") as tab:
        tab.shows(f"Maintenance {MARKUP}")
        assert not tab.ran()
        tab.button("Mark all as read").click()
        expect(tab.button("Mark all as read")).to_have_count(0)
        assert tab.page.get_by_role("link", name="Admin").count() == 0


def test_the_log_is_asked_for_now_and_then_and_not_unseen(
    enter: Doors, admin: Client, bob: Client
) -> None:
    def asked(tab: Tab) -> list[str]:
        found: list[str] = []

        def note(request: Request) -> None:
            if "admin/log" in request.url:
                found.append(request.url)

        tab.page.on("request", note)
        return found

    with enter(admin, "/admin/log") as seen, enter(admin, "/admin/log") as unseen:
        title(seen, "Log")
        title(unseen, "Log")
        by_seen, by_unseen = asked(seen), asked(unseen)
        unseen.page.evaluate(
            "Object.defineProperty(document, 'visibilityState',"
            " { configurable: true, get: () => 'hidden' })"
        )
        begun = time.monotonic()
        for number in range(20):
            bob.post("/pod/start", ins=f"no-such-{number}").refused(404)
        expect(seen.row("no-such-19")).to_have_count(1)
        assert len(by_seen) <= 2 + (time.monotonic() - begun) / 5
        assert by_unseen == []
        unseen.page.evaluate(
            "delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange'))"
        )
        expect(unseen.row("no-such-19")).to_have_count(1)


# --- podyd or LXD away --------------------------------------------------------------------------


def test_podyd_is_started_anew_under_an_open_page(scene: Scene, enter: Doors, bob: Client) -> None:
    with enter(bob, "/pods") as tab, tab.forgives(*AWAY):
        expect(tab.row("other")).to_contain_text("running")
        place = tab.page.locator("h1").bounding_box()
        tab.go("/pods/other/snapshots").shows("There are no snapshots yet")
        tab.go("/pods")
        scene.stop()
        tab.shows("Not live")
        assert tab.page.locator("h1").bounding_box() == place
        assert not found_in_both(tab, "podyd is away")
        # What cannot be shown now is shown once it can be.
        tab.page.evaluate("location.hash = '/pods/other/snapshots'")
        tab.shows("podyd cannot be reached")
        assert not found_in_both(tab, "a page that cannot be shown")
        scene.start()
        tab.shows_not("Not live")
        tab.shows("There are no snapshots yet")
        tab.go("/pods")
        expect(tab.row("other")).to_be_visible()
        instance = scene.node.instance_of(bob.user, "other")["name"]
        scene.node.lxc("stop", "-f", instance)
        expect(tab.row("other")).to_contain_text("stopped")
        bob.post("/pod/start", ins="other").ok
        expect(tab.row("other")).to_contain_text("running")


@contextmanager
def far(scene: Scene, browser: Browser, bob: Client) -> Iterator[tuple[Tab, Line]]:
    """bob's page behind a line that loses what is sent after his pod has run; once it passes on
    again, the page is right."""
    with closing(Line(scene.port)) as line:
        try:
            with browser.tab(line.port) as tab, tab.forgives(*AWAY):
                yield tab, line
                line.pass_on()
                expect(tab.row("other")).to_contain_text("stopped", timeout=SOON_MS)
                tab.shows_not("Not live")
        finally:
            bob.post("/pod/start", ins="other").ok


def test_a_page_that_slept_for_an_hour_is_right_again(
    scene: Scene, browser: Browser, bob: Client
) -> None:
    """As when a lid is closed and opened, and the network comes later: what it had is gone, it says
    so, and it asks anew."""
    with far(scene, browser, bob) as (tab, line):
        tab.page.clock.install()
        tab.enter(bob.user, route="/pods")
        expect(tab.row("other")).to_contain_text("running")
        # Connections stay, and nothing comes through them any more.
        line.lose()
        scene.node.lxc("stop", "-f", scene.node.instance_of(bob.user, "other")["name"])
        with tab.page.expect_websocket():
            tab.page.clock.fast_forward("01:00:00")
        tab.shows("Not live")
        expect(tab.row("other")).to_contain_text("running")


def test_a_page_that_was_stopped_takes_nothing_old_for_new(
    scene: Scene, browser: Browser, bob: Client
) -> None:
    """What podyd had sent meanwhile has waited, and its network is gone."""
    with far(scene, browser, bob) as (tab, line):
        tab.enter(bob.user, route="/pods")
        expect(tab.row("other")).to_contain_text("running")
        with tab.stopped():
            scene.node.lxc("stop", "-f", scene.node.instance_of(bob.user, "other")["name"])
            time.sleep(1)  # A message later,
            line.lose()
            time.sleep(7)  # and longer than podyd is ever silent.
        # By its silence alone the page would know that after 12 s.
        tab.shows("Not live", 8)


def test_lxd_away_is_said(scene: Scene, enter: Doors, bob: Client) -> None:
    with enter(bob, "/pods") as tab, tab.forgives("503"):
        scene.line.hang()
        scene.line.cut()
        try:
            expect(tab.page.get_by_role("status").filter(has_text=lab.ENGINE.title)).to_be_visible(
                timeout=WORK_MS
            )
        finally:
            scene.line.pass_on()
        tab.shows_not(lab.ENGINE.title, WORK_SECONDS)
        expect(tab.row("other")).to_contain_text("running")


# --- For everybody ------------------------------------------------------------------------------

MEMBER = ("pods", "new", "cards", "cards/0", "account", "wall", "nowhere")
POD = ("overview", "terminal", "files", "logs", "snapshots", "ports")
ADMIN = tuple(f"admin/{part}" for part in ("pods", "people", "leases", "doctor", "log", "hours"))


@pytest.mark.parametrize("role", ["member", "admin"])
def test_each_page_is_for_everybody(
    scene: Scene, enter: Doors, role: str, alice: Client, bob: Client, admin: Client
) -> None:
    """Without findings of axe's in light and in dark, and within a narrow window."""
    if role == "member":
        bob.post("/pod/snapshot", ins="other", name="kept").ok
    alice.post("/gpu/lease", ins="work", gpus="0,", hours=1).ok
    bob.post("/gpu/queue", ins="other", gpus="0,", hours=1).ok
    routes = ADMIN if role == "admin" else (*MEMBER, *(f"pods/other/{tab}" for tab in POD))
    problems: list[str] = []
    with enter(admin if role == "admin" else bob) as tab:
        for route in routes:
            tab.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
            tab.go(f"/{route}")
            problems += found_in_both(tab, route)
            tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
            if tab.overflows():
                problems.append(f"{route} is wider than {NARROW[0]} px")
    assert not problems, "\n".join(problems)


def reach(tab: Tab, target: Locator, key: str = "Tab") -> None:
    """Go there by this key."""
    for _ in range(60):
        if target.evaluate("element => element === document.activeElement"):
            return
        tab.page.keyboard.press(key)
    raise AssertionError(f"{target} is not reached")


def test_by_the_keyboard_alone(scene: Scene, browser: Browser) -> None:
    client = scene.member()
    with browser.tab(scene.port) as tab:
        keys, page = tab.page.keyboard, tab.page
        tab.open()
        expect(page.get_by_label("User name")).to_be_focused()
        keys.type(client.user)
        keys.press("Tab")
        keys.type(PASSWORD)
        keys.press("Enter")
        title(tab, "Pods")
        tab.shows("You have no pods yet")
        reach(tab, page.get_by_role("link", name="New pod").first)
        keys.press("Enter")
        title(tab, "New pod")
        reach(tab, page.get_by_label("Name", exact=True))
        keys.type("keys")
        reach(tab, page.get_by_label("Image", exact=True))
        keys.type(SMALL)
        reach(tab, page.get_by_role("radio", name="as usual"))
        keys.press("ArrowDown")
        expect(page.get_by_role("radio", name="none")).to_be_checked()
        reach(tab, tab.button("Create pod"))
        keys.press("Enter")
        title(tab, "keys")
        reach(tab, page.get_by_role("link", name="Terminal"))
        keys.press("Enter")
        reach(tab, page.get_by_role("textbox", name="Terminal in keys"))
        keys.type("echo $((6 * 7000))\n")
        tab.shows("42000")
        keys.press("Control+Shift+ArrowUp")
        reach(tab, tab.button("Log out"), "Shift+Tab")
    client.post("/pod/delete", ins="keys").ok
