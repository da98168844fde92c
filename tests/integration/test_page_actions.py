"""What can be done on the page, in each dialog and by the keyboard, and where it is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, WebSocket, expect

from tests.integration.browser import NARROW, WIDE, WORK_SECONDS, Browser, Tab
from tests.integration.harness import PASSWORD, SMALL, Client, wait_until
from tests.integration.scene import WORK_MS, Doors, Scene, press, running, send, title
from tests.lab import lab
from tests.lab.nvml import FakeNvml, FakeProcess


@pytest.fixture(scope="module")
def scene(lab_cards: None) -> Iterator[Scene]:
    # Of each pod's memory more than its host has: what counts is where it is refused.
    quota = {"max_pods": 2, "memory_limit": "1TiB", "max_snapshots": 2, "max_ports": 2}
    scene = Scene(quota={"default": quota})
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def alice(scene: Scene) -> Client:
    """A member with the pod "work", which has a card, a snapshot and two ports."""
    client = scene.owner("work", gpus="0,")
    client.post("/pod/snapshot", ins="work", name="kept").ok
    client.post("/pod/port", ins="work", port=8888).ok
    return client


@pytest.fixture(scope="module")
def bob(scene: Scene) -> Client:
    """A member with the pod "other", which has no card."""
    return scene.owner("other", gpus="none")


@pytest.fixture(scope="module")
def admin(scene: Scene) -> Client:
    return scene.admin()


@pytest.fixture(scope="module")
def enter(scene: Scene, browser: Browser) -> Doors:
    return Doors(scene, browser)


@pytest.fixture(autouse=True)
def _as_before(scene: Scene, alice: Client, bob: Client) -> Iterator[None]:
    """After each test nobody computes, has a lease or waits."""
    yield
    scene.driver.write(FakeNvml())
    for client, ins in ((bob, "other"), (alice, "work")):
        client.post("/gpu/release", ins=ins)


def alert(where: Locator, text: str) -> None:
    """Wait until this is announced in a part of the page."""
    expect(where.get_by_role("alert").filter(has_text=text)).to_be_visible(timeout=WORK_MS)


def wrong(field: Locator, text: str) -> None:
    """Wait until a field is said to be wrong, with this; and one can mend it at once."""
    expect(field).to_have_accessible_description(re.compile(re.escape(text)), timeout=WORK_MS)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()


# --- Dialogs ------------------------------------------------------------------------------------

# What opens them: on which page, and what they ask.
DIALOGS: dict[str, tuple[str | re.Pattern[str], ...]] = {
    "pods": ("Stop work", "Restart work", "Delete work"),
    "pods/work": ("Change GPUs", "Make an image of work", "Copy the pod"),
    "pods/work/snapshots": (
        "Restore work to kept",
        "Copy snapshot kept of work",
        "Delete snapshot kept",
    ),
    "pods/work/ports": (re.compile("Stop forwarding .* to 8888"),),
    "pods/work/files": ("Delete note",),
    "cards": ("Lease GPUs …",),
    "cards/0": ("Extend …", "Release …"),
    "cards/1": ("Lease …",),
    "account": ("Make a token", "Revoke laptop"),
}
ADMIN_DIALOGS: dict[str, tuple[str | re.Pattern[str], ...]] = {
    "admin/leases": (re.compile("^End the lease"), re.compile("^Take out of the queue"))
}


def look(tab: Tab, where: str) -> list[str]:
    """What is wrong with what is shown: axe's findings, in the dark too, and what is too wide."""
    problems = [f"{where}: {found}" for found in tab.axe()]
    tab.page.emulate_media(color_scheme="dark")
    problems += [f"{where}, dark: {found}" for found in tab.axe(only=("color-contrast",))]
    tab.page.emulate_media(color_scheme="light")
    tab.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    if tab.overflows():
        problems.append(f"{where} is wider than {NARROW[0]} px")
    tab.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    return problems


@pytest.mark.parametrize("role", ["member", "admin"])
def test_each_dialog_is_for_everybody(
    role: str, enter: Doors, alice: Client, bob: Client, admin: Client
) -> None:
    """It has a name, no findings of axe's, and leads back to where it was opened."""
    alice.exec("work", "echo it >/root/note")
    alice.post("/gpu/lease", ins="work", gpus="0,", hours=1).ok
    bob.post("/gpu/queue", ins="other", gpus="0,", hours=1).ok
    token = alice.post("/user/token", name="laptop", days=1).ok
    problems: list[str] = []
    with enter(admin if role == "admin" else alice) as tab:
        for route, openers in (ADMIN_DIALOGS if role == "admin" else DIALOGS).items():
            tab.go(f"/{route}")
            for name in openers:
                opener = tab.page.locator("main").get_by_role("button", name=name).first
                expect(opener).to_be_visible()
                press(opener)
                heading = tab.dialog().get_by_role("heading", level=2)
                expect(tab.dialog()).to_have_accessible_name(heading.inner_text())
                problems += look(tab, f"{route}: {name}")
                tab.page.keyboard.press("Escape")
                expect(tab.dialog()).to_have_count(0)
                if not opener.evaluate("element => element === document.activeElement"):
                    problems.append(f"{route}: {name}: the focus is elsewhere afterwards")
    alice.post("/user/token-revoke", id=token["id"]).ok
    assert not problems, "\n".join(problems)


# --- By the keyboard ----------------------------------------------------------------------------

# Of a group of radio buttons, Tab leads to one. What is in a closed <details> is not shown.
PRESSABLE = """[...document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((element) => !element.disabled && element.checkVisibility({visibilityProperty: true})
    && (element.type !== "radio" || element.checked))"""
REACHED = f"""() => {{
  window.reached ??= new Set();
  window.reached.add(document.activeElement);
  return {PRESSABLE}.filter((element) => !window.reached.has(element))
    .map((element) => element.outerHTML.slice(0, 120));
}}"""


def test_tab_leads_to_all_that_can_be_pressed(enter: Doors, alice: Client, admin: Client) -> None:
    member = ("pods", "new", "cards", "cards/0", "account", "wall")
    parts = ("overview", "files", "logs", "snapshots", "ports")
    pages = (*member, *(f"pods/work/{part}" for part in parts))
    problems = []
    for client, routes in ((alice, pages), (admin, ("admin/pods", "admin/leases", "admin/hours"))):
        with enter(client) as tab:
            for route in routes:
                tab.go(f"/{route}")
                tab.page.evaluate("window.reached = undefined; document.activeElement.blur()")
                rest: list[str] = ["?"]
                for _ in range(80):
                    tab.page.keyboard.press("Tab")
                    if not (rest := tab.page.evaluate(REACHED)):
                        break
                problems += [f"{route}: {element}" for element in rest]
    assert not problems, "\n".join(problems)


# --- Two members and an admin -------------------------------------------------------------------


def test_what_one_does_is_told_to_them_and_to_admins(
    scene: Scene, enter: Doors, alice: Client, bob: Client, admin: Client
) -> None:
    with enter(alice) as her_tab, enter(bob) as his_tab, enter(admin) as admins_tab:
        hers, his = listen(her_tab, "/pods"), listen(his_tab, "/pods")
        admins = listen(admins_tab, "/admin/pods")
        instance = alice.get("/pod/info", ins="work").ok["name"]
        his_instance = bob.get("/pod/info", ins="other").ok["name"]
        press(her_tab.button("Restart work"))
        restart = her_tab.button("Restart", within=her_tab.dialog())
        with her_tab.page.expect_event(
            "requestfinished",
            lambda request: request.url.endswith("/pod/restart"),
            timeout=WORK_MS,
        ):
            restart.click()
        expect(her_tab.row("work")).to_contain_text("running", timeout=WORK_MS)
        bob.post("/pod/limits", ins="other", memory="200MiB").ok
        expect(his_tab.row("other")).to_contain_text("200 MiB")
        expect(admins_tab.row(his_instance)).to_contain_text("200 MiB")
        expect(admins_tab.row(instance)).to_contain_text("running")
        her_tab.page.wait_for_timeout(500)
    assert {f"pod/{instance}", f"work/{instance}"} <= keys(hers) & keys(admins)
    assert f"pod/{his_instance}" in keys(his) & keys(admins)
    # Others see who has a GPU, and nothing else of a pod.
    assert not [key for key in keys(his) if instance in key]
    assert his_instance not in "".join(hers)


def listen(tab: Tab, route: str) -> list[str]:
    """What podyd says by itself from now on to this tab, which is loaded anew at a route."""
    frames: list[str] = []

    def connected(stream: WebSocket) -> None:
        stream.on("framereceived", lambda data: frames.append(str(data)))

    tab.page.on("websocket", connected)
    tab.open(route).reload()
    tab.is_live()
    return frames


def keys(frames: list[str]) -> set[str]:
    """Of what something was said."""
    messages = [json.loads(text) for text in frames]
    return {key for message in messages for key in (*message["set"], *message["gone"])}


# --- What is refused ----------------------------------------------------------------------------


def test_what_is_refused_in_a_pods_forms(enter: Doors, alice: Client) -> None:
    def sentence(path: str, status: int, **parameters: object) -> str:
        return str(alice.post(path, ins="work", **parameters).refused(status)["detail"])

    with enter(alice, "/pods/work") as tab:
        main = tab.page.locator("main")
        # Beside the field, or below the form.
        memory = tab.page.get_by_label("Memory, at most")
        for label, parameter, value in (("Memory", "memory", "much"), ("CPUs", "cpu", "-3")):
            field = tab.page.get_by_label(f"{label}, at most")
            send(field, value, tab.button("Change limits"))
            wrong(field, sentence("/pod/limits", 400, **{parameter: value}))
            field.fill("")
            expect(field).not_to_have_attribute("aria-invalid", "true")
        send(memory, "2TiB", tab.button("Change limits"))
        wrong(memory, sentence("/pod/limits", 403, memory="2TiB"))
        expect(memory).to_have_value("2TiB")
        memory.fill("")
        press(tab.button("Change limits"))
        alert(main, "Enter a new limit first.")

        # In dialogs.
        press(tab.button("Change GPUs"))
        tab.dialog().get_by_role("checkbox", name=re.compile("GPU 0")).uncheck()
        press(tab.button("Change GPUs", within=tab.dialog()))
        alert(tab.dialog(), "Tick the GPUs")
        tab.dialog().get_by_label("How many GPUs").fill("9")
        press(tab.button("Change GPUs", within=tab.dialog()))
        alert(tab.dialog(), sentence("/pod/gpus", 400, gpus="9"))
        tab.page.keyboard.press("Escape")

        press(tab.button("Make an image of work"))
        tab.dialog().get_by_label("Tag").fill("not so!")
        press(tab.button("Make an image", within=tab.dialog()))
        alert(tab.dialog(), sentence("/pod/commit", 400, tag="not so!"))
        tab.page.keyboard.press("Escape")

        press(tab.button("Copy the pod"))
        for to, status in (("-no-", 400), ("work", 409)):
            tab.dialog().get_by_label("Name").fill(to)
            press(tab.button("Copy", within=tab.dialog()))
            alert(tab.dialog(), sentence("/pod/copy", status, to=to))
        problems = look(tab, "a refusal in a dialog")
        tab.page.keyboard.press("Escape")

        tab.go("/pods/work/snapshots")
        name, make = tab.page.get_by_label("Name of the new snapshot"), tab.button("Make snapshot")
        for value, status in (("kept", 409), ("not/so", 400)):
            send(name, value, make)
            alert(main, sentence("/pod/snapshot", status, name=value))
            expect(name).to_have_value(value)
        problems += look(tab, "a refusal on the page")
        # Another window has deleted it meanwhile.
        alice.post("/pod/snapshot", ins="work", name="gone").ok
        tab.go("/pods/work").go("/pods/work/snapshots")
        expect(make).to_have_attribute("title", re.compile("Your quota is 2 snapshots"))
        press(tab.button("Restore work to gone"))
        alice.post("/pod/snapshot-delete", ins="work", name="gone").ok
        press(tab.button("Restore", within=tab.dialog()))
        alert(main, sentence("/pod/restore", 404, name="gone"))
        expect(tab.row("gone")).to_have_count(0)
        expect(make).not_to_have_attribute("aria-disabled", "true")

        tab.go("/pods/work/ports")
        press(tab.button(re.compile("Stop forwarding .* to 8888")))
        alice.post("/pod/port-delete", ins="work", port=8888).ok
        press(tab.button("Stop forwarding", within=tab.dialog()))
        alert(main, sentence("/pod/port-delete", 404, port=8888))
        expect(tab.row("8888")).to_have_count(0)
        send(
            tab.page.get_by_label(re.compile("^Forward to the pod")), "8888", tab.button("Forward")
        )
        expect(tab.row("8888")).to_contain_text("http://", timeout=WORK_MS)
        # ssh has the other.
        expect(tab.button("Forward")).to_have_attribute("title", re.compile("Your quota is 2"))
    assert not problems, "\n".join(problems)


def test_what_is_refused_of_cards(enter: Doors, alice: Client, bob: Client) -> None:
    with enter(bob, "/cards") as tab:
        press(tab.button("Lease GPUs …"))
        dialog = tab.dialog()
        lease = tab.button("Lease, or queue", within=dialog)
        for count, hours, status in (("9", "1", 400), ("1", "9000", 403)):
            dialog.get_by_label("How many GPUs").fill(count)
            dialog.get_by_label("Hours").fill(hours)
            press(lease)
            body = bob.post("/gpu/queue", ins="other", gpus=count, hours=hours).refused(status)
            alert(dialog, body["detail"])
        dialog.get_by_role("radio", name="these").check()
        dialog.get_by_label("Hours").fill("1")
        press(lease)
        alert(dialog, "Tick the GPUs")
        # Not to wait is to be refused.
        alice.post("/gpu/lease", ins="work", gpus="1,", hours=1).ok
        dialog.get_by_role("checkbox", name=re.compile("GPU 1")).check()
        dialog.get_by_label("Queue for them").uncheck()
        press(tab.button("Lease now", within=dialog))
        body = bob.post("/gpu/lease", ins="other", gpus="1,", hours=1).refused(409)
        alert(dialog, body["detail"].split(" until ")[0])
        tab.page.keyboard.press("Escape")
        # Its lease ends while the dialog is open that asks about it.
        alice.post("/gpu/release", ins="work").ok
        bob.post("/gpu/lease", ins="other", gpus="1,", hours=1).ok
        release = tab.button("Release …")
        press(release)
        bob.post("/gpu/release", ins="other").ok
        press(tab.button("Release", within=dialog))
        expect(dialog).to_have_count(0)
        expect(release).to_have_count(0)


# --- GPUs ---------------------------------------------------------------------------------------


def compute(
    scene: Scene, client: Client, ins: str, index: int, *, is_stubborn: bool = False
) -> int:
    """A process of a pod's on a GPU, by the host's number; a stubborn one ignores SIGTERM."""
    ignore = "trap '' TERM;" if is_stubborn else ""
    client.exec(ins, f"({ignore} exec setsid sleep 4242) >/dev/null 2>&1 &")
    wait_until(lambda: bool(running("4242")), "it")
    (pid,) = running("4242")
    scene.driver.write(FakeNvml().holding(index, FakeProcess(pid)))
    return pid


def test_a_card_that_its_pod_uses_is_given_up_by_force(
    scene: Scene, enter: Doors, alice: Client
) -> None:
    compute(scene, alice, "work", 0)
    with enter(alice, "/pods/work") as tab:
        tab.button("Change GPUs").click()
        tab.dialog().get_by_role("radio", name="none").check()
        force = tab.dialog().get_by_label("Take it away anyway")
        expect(force).to_be_hidden()
        change = tab.button("Change GPUs", within=tab.dialog())
        press(change)
        alert(tab.dialog(), alice.post("/pod/gpus", ins="work", gpus="none").refused(409)["detail"])
        force.check()
        press(change)
        tab.shows("The pod has no GPUs.", WORK_SECONDS)
        wait_until(lambda: not running("4242"), "its end")
        scene.driver.write(FakeNvml())
        # Two, whichever they are; then one of them for this pod alone.
        tab.button("Change GPUs").click()
        tab.dialog().get_by_label("How many GPUs").fill("2")
        press(tab.button("Change GPUs", within=tab.dialog()))
        for index in (0, 1):
            expect(tab.row(f"GPU {index}")).to_contain_text("shared", timeout=WORK_MS)
        alice.post("/gpu/lease", ins="work", gpus="1,", hours=1).ok
        expect(tab.row("GPU 1")).to_contain_text("leased until")
        compute(scene, alice, "work", 1)
        tab.go("/cards/1")
        tab.shows("sleep 4242")
        press(tab.button("Release …"))
        # Only who knows what is ended gives it up.
        release = tab.button("Release, and end the process", within=tab.dialog())
        press(release)
        expect(tab.dialog().get_by_role("checkbox")).to_be_focused()
        tab.page.keyboard.press("Space")
        press(release)
        expect(tab.dialog()).to_have_count(0, timeout=WORK_MS)
        wait_until(lambda: not running("4242"), "its end")
        expect(tab.button("Lease …")).to_be_visible()
    alice.post("/pod/gpus", ins="work", gpus="0,").ok


def test_a_process_without_a_right_to_a_gpu_is_shown(
    scene: Scene, enter: Doors, alice: Client, bob: Client
) -> None:
    name = bob.get("/pod/info", ins="other").ok["name"]
    alice.post("/gpu/lease", ins="work", gpus="0,", hours=1).ok
    pid = compute(scene, bob, "other", 0, is_stubborn=True)
    try:
        with enter(alice, "/cards/0") as tab:
            said = f"without a right to this GPU is being ended: {name} ({bob.user})."
            tab.shows(said)
            tab.shows(f"{name} ({bob.user}) does not have it, but a process has it open")
            problems = look(tab, "an intruder")
            tab.go("/cards").shows(said)
            os.kill(pid, signal.SIGKILL)
            scene.driver.write(FakeNvml())
            tab.shows_not("without a right")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not problems, "\n".join(problems)


# --- Images -------------------------------------------------------------------------------------


def test_an_image_is_cancelled_made_and_deleted(enter: Doors, bob: Client) -> None:
    # So much that its packing is not over before it is cancelled.
    bob.exec("other", "head -c 300000000 /dev/urandom >/root/large; sync")
    image = f"{bob.user}-mine"
    with enter(bob, "/pods/other") as tab:

        def make() -> None:
            press(tab.button("Make an image of other"))
            tab.dialog().get_by_label("Tag").fill("mine")
            press(tab.button("Make an image", within=tab.dialog()))

        make()
        cancel = tab.button("Cancel the image")
        expect(cancel).to_be_visible()
        expect(tab.button("Stop other")).to_have_attribute("aria-disabled", "true")
        expect(tab.dialog()).to_have_count(0)
        # What is entered now is not dropped without a word.
        tab.page.get_by_label("Memory, at most").fill("200MiB")
        tab.page.keyboard.press("Enter")
        alert(tab.page.locator("form"), "Wait: the pod is being made an image.")
        press(cancel)
        expect(tab.button("Make an image of other")).to_be_focused(timeout=WORK_MS)
        tab.shows_not("Wait:")
        assert image not in bob.get("/host/images").ok
        bob.exec("other", "rm /root/large; sync")
        make()
        problems = look(tab, "an image is being made")
        wait_until(lambda: image in bob.get("/host/images").ok, "the image", 180)
        tab.go("/pods")
        delete = tab.button(f"Delete image {image}")
        problems += look(tab, "own images")
        press(delete)
        tab.page.keyboard.press("Escape")
        expect(delete).to_be_focused()
        press(delete)
        press(tab.button("Delete", within=tab.dialog()))
        expect(delete).to_have_count(0, timeout=WORK_MS)
        expect(tab.page.locator("main h1")).to_be_focused()
    assert image not in bob.get("/host/images").ok
    assert not problems, "\n".join(problems)


# --- The member's own ---------------------------------------------------------------------------


def test_what_is_refused_in_the_account(scene: Scene, enter: Doors) -> None:
    client = scene.member()
    made = client.post("/user/token", name="laptop", days=1).ok
    with enter(client, "/account") as tab:
        main = tab.page.locator("main")
        press(tab.button("Revoke laptop"))
        # Another session is quicker.
        client.post("/user/token-revoke", id=made["id"]).ok
        tab.dialog().get_by_label("Your password").fill(PASSWORD)
        tab.page.keyboard.press("Enter")
        refusal = client.post("/user/token-revoke", id=made["id"]).refused(404)
        alert(tab.dialog(), refusal["detail"])
        tab.page.keyboard.press("Escape")
        expect(tab.row("laptop")).to_have_count(0)

        press(tab.button("Make a token"))
        tab.dialog().get_by_label("Name").fill("long")
        tab.dialog().get_by_label("Days").fill("99999")
        tab.dialog().get_by_label("Your password").fill(PASSWORD)
        tab.page.keyboard.press("Enter")
        refusal = client.post("/user/token", name="long", days=99999).refused(400)
        alert(tab.dialog(), refusal["detail"])
        tab.page.keyboard.press("Escape")

        old, fresh = tab.page.get_by_label("Old password"), "Another-horse-8"
        for password, new, again, said in (
            (PASSWORD, fresh, f"{fresh}9", "The new passwords differ."),
            ("wrong-Horse-7", fresh, fresh, "password"),
            (PASSWORD, "a:b", "a:b", client.post("/user/ch-passwd", passwd="a:b").body["detail"]),
        ):
            old.fill(password)
            tab.page.get_by_label("New password", exact=True).fill(new)
            tab.page.get_by_label("New password, again").fill(again)
            tab.page.keyboard.press("Enter")
            alert(main, said)
        problems = look(tab, "a password that is refused")
        tab.is_live()
    assert not problems, "\n".join(problems)


def test_a_notice_that_comes_again_is_counted(enter: Doors, alice: Client, admin: Client) -> None:
    name = alice.get("/pod/info", ins="work").ok["name"]

    def end_a_lease() -> None:
        alice.post("/gpu/lease", ins="work", gpus="0,", hours=1).ok
        admin.post("/admin/release", pod=name, reason="It is mended.").ok

    end_a_lease()
    end_a_lease()
    with enter(alice, "/account") as tab:
        notice = tab.page.get_by_role("listitem").filter(has_text="It is mended.")
        expect(notice).to_contain_text("(2 times)")
        read = tab.button("Mark all as read")
        read.click()
        expect(read).to_be_hidden()
        expect(notice).not_to_contain_text("new")
        end_a_lease()
        expect(notice).to_have_count(1)
        expect(notice).to_contain_text("new")
        expect(notice).to_contain_text("(3 times)")
        read.click()
        expect(read).to_be_hidden()


# --- The frame ----------------------------------------------------------------------------------


def test_colours_the_way_to_the_content_and_back_from_a_form(enter: Doors, bob: Client) -> None:
    with enter(bob, "/new") as tab:
        page = tab.page
        # The pod is there, also where its limits are refused.
        page.get_by_label("Name").fill("brief")
        page.get_by_label("Image").select_option(SMALL)
        page.get_by_role("radio", name="none").check()
        page.get_by_label("Memory, at most").fill("2TiB")
        press(tab.button("Create pod"))
        title(tab, "brief")
        tray = page.get_by_role("region", name="Work under way")
        refusal = bob.post("/pod/limits", ins="brief", memory="2TiB").refused(403)
        alert(tray, refusal["detail"])
        expect(tray).to_contain_text("Limits of brief")
        press(tab.button("Dismiss", within=tray.get_by_role("status").filter(has_text="Limits")))
        expect(tray.get_by_role("alert")).to_have_count(0)
        tab.go("/pods")
        page.get_by_label("Colours").select_option("dark")
        tab.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.get_by_label("Colours").select_option("as the system")
        expect(page.locator("html")).not_to_have_attribute("data-theme", "dark")
        press(page.get_by_role("link", name="Skip to the content"))
        expect(page.locator("main h1")).to_be_focused()
        # With as many pods as may be, and the way back.
        tab.go("/new")
        expect(tab.button("Create pod")).to_have_attribute("title", re.compile("is 2 pods"))
        press(tab.button("Cancel"))
        title(tab, "Pods")
        tab.go("/pods/brief")
        press(tab.button("Delete brief"))
        page.keyboard.type("brief")
        page.keyboard.press("Enter")
        title(tab, "Pods")
        expect(tab.row("brief")).to_have_count(0)
    assert bob.get("/pod/list").ok == ["other"]


# --- Nothing there ------------------------------------------------------------------------------


def test_where_there_is_nothing(scene: Scene, enter: Doors, admin: Client) -> None:
    """What can be done next is said, and everybody can read it."""
    client = scene.member()
    problems = []
    with enter(client, "/pods") as tab, tab.forgives("Only admins see this page"):
        tab.shows("You have no pods yet")
        problems += look(tab, "no pods")
        tab.go("/cards")
        tab.shows("Nobody waits.")
        press(tab.button("Lease …").first)
        tab.shows("you have none yet")
        problems += look(tab, "no pod for a lease")
        press(tab.dialog().get_by_role("link", name="Make a new pod"))
        title(tab, "New pod")
        tab.go("/account")
        problems += look(tab, "no tokens, no notices")
        tab.go("/admin/people")
        alert(tab.page.locator("main"), "admin")
        tab.go("/cards/9")
        tab.shows("There is no GPU 9.")
        problems += look(tab, "no such GPU")
    with enter(admin, "/admin/leases") as tab:
        tab.shows("Nobody waits.")
        problems += look(tab, "no leases")
    assert not problems, "\n".join(problems)


# --- LXD away -----------------------------------------------------------------------------------


def test_what_is_asked_while_lxd_is_away(scene: Scene, enter: Doors, bob: Client) -> None:
    """It is refused where it was asked, in the API's own words, and works afterwards."""
    with enter(bob, "/pods/other") as tab, tab.forgives("503"):
        tray = tab.page.get_by_role("region", name="Work under way")
        memory, change = tab.page.get_by_label("Memory, at most"), tab.button("Change limits")
        banner = tab.page.locator(".banner")
        expect(change).to_be_visible(timeout=WORK_MS)
        scene.line.hang()
        scene.line.cut()
        try:
            expect(banner).to_contain_text(lab.ENGINE.title, timeout=WORK_MS)
            problems = look(tab, "LXD away")
            with tab.page.expect_response("**/pod/limits", timeout=WORK_MS) as refused:
                send(memory, "210MiB", change)
            alert(tab.page.locator("main form"), refused.value.json()["detail"])
            expect(memory).to_have_value("210MiB")
            press(tab.button("Copy the pod"))
            tab.dialog().get_by_label("Name").fill("copy")
            with tab.page.expect_response("**/pod/copy", timeout=WORK_MS) as refused:
                press(tab.button("Copy", within=tab.dialog()))
            # What takes long is waited for without the dialog.
            expect(tab.dialog()).to_have_count(0)
            alert(tray, refused.value.json()["detail"])
        finally:
            scene.line.pass_on()
        expect(banner).to_be_hidden(timeout=WORK_MS)
        press(tab.button("Dismiss", within=tray))
        expect(tray.get_by_role("alert")).to_have_count(0)
        press(change)
        tab.shows("The limits hold.", WORK_SECONDS)
    assert not problems, "\n".join(problems)
