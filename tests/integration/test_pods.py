"""Pods: made, owned, limited, seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from podyd.engine.view import instance_of
from podyd.model.pod import is_half_made
from tests.integration.harness import IMAGE, SMALL, Client, Node, Server, run, wait_until


@pytest.fixture
def limited(node: Node) -> Iterator[Server]:
    """A podyd with a small quota."""
    quota = {"default": {"max_pods": 2, "memory_limit": "256MiB", "cpu_limit": 1}}
    server = node.serve({"quota": quota})
    yield server
    assert server.stop() == 0


def test_a_life(alice: Client, ins: str, node: Node) -> None:
    made = alice.post("/pod/create", ins=ins, image=IMAGE).ok
    assert (made["status"], made["ins"], made["owner"]) == ("running", ins, alice.user)
    assert made["profiles"][0] == "podyd-base"
    instance = node.instance_of(alice.user, ins)
    assert instance["config"]["user.podyd.image"] == IMAGE
    assert ins in alice.get("/pod/list").ok

    assert "already" in alice.post("/pod/start", ins=ins).ok["log"]
    assert alice.post("/pod/stop", ins=ins).ok["log"]
    assert alice.get("/pod/info", ins=ins).ok["status"] == "stopped"
    assert node.instance_of(alice.user, ins)["status"] == "Stopped"
    assert "already" in alice.post("/pod/stop", ins=ins).ok["log"]
    info = alice.get("/pod/info", ins=ins).ok
    assert (info["addresses"], info["uptime"]) == ([], None)

    assert alice.post("/pod/restart", ins=ins).ok["log"]
    assert alice.get("/pod/info", ins=ins).ok["status"] == "running"
    alice.exec(ins, "echo kept > /root/file")
    assert alice.post("/pod/restart", ins=ins).ok["log"]
    answer = alice.exec(ins, "cat /root/file")
    assert (answer["exit_code"], answer["stdout"], answer["stderr"]) == (0, "kept\n", "")

    assert alice.post("/pod/delete", ins=ins).ok["log"]
    assert ins not in alice.get("/pod/list").ok
    assert instance["name"] not in node.instances()
    for path in ("delete", "start", "stop", "restart"):
        alice.post(f"/pod/{path}", ins=ins).refused(404, "no_such_pod")
    alice.post("/pod/exec", ins=ins, cmd="true").refused(404, "no_such_pod")


def test_a_frozen_pod_is_started_and_stopped(alice: Client, ins: str, node: Node) -> None:
    name = alice.post("/pod/create", ins=ins, image=SMALL).ok["name"]
    node.lxc("pause", name)
    alice.sees(ins, status="frozen")
    alice.post("/pod/exec", ins=ins, cmd="true").refused(409, "pod_not_running")
    alice.post("/pod/start", ins=ins).ok
    assert alice.get("/pod/info", ins=ins).ok["status"] == "running"
    node.lxc("pause", name)
    alice.sees(ins, status="frozen")
    alice.post("/pod/stop", ins=ins).ok
    assert alice.get("/pod/info", ins=ins).ok["status"] == "stopped"
    alice.post("/pod/delete", ins=ins).ok


def test_a_pod_that_was_just_started_shuts_down(alice: Client, ins: str) -> None:
    """Its systemd may be too young to hear the first signal."""
    alice.post("/pod/create", ins=ins, image=IMAGE).ok
    for _ in range(3):
        assert alice.post("/pod/stop", ins=ins).ok["log"] == f"Pod {ins} has stopped."
        alice.post("/pod/start", ins=ins).ok
    alice.post("/pod/delete", ins=ins).ok


def test_a_name_is_taken_once(alice: Client, pod: str) -> None:
    body = alice.post("/pod/create", ins=pod, image=IMAGE).refused(409, "name_taken")
    assert body["ins"] == pod


def test_an_image_that_is_not_there_or_not_offered(node: Node, alice: Client, ins: str) -> None:
    alice.post("/pod/create", ins=ins, image="no-such").refused(404, "no_such_image")
    picky = node.serve({"images": {"offer": ["cuda-*"]}})
    client = picky.client(alice.user)
    assert client.get("/host/images").ok == []
    client.post("/pod/create", ins=ins, image=IMAGE).refused(403, "image_not_offered")
    assert ins not in client.get("/pod/list").ok
    assert picky.stop() == 0


def test_latest_is_the_image_itself(new_user: Callable[[], Client], ins: str) -> None:
    client = new_user()
    made = client.post("/pod/create", ins=ins, image=f"{SMALL}:latest").ok
    assert made["image"] == SMALL
    client.post("/pod/delete", ins=ins).ok


# --- Names and owners ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["2021302112", "li_meng2", "a.b2", "Zhang2", "podydt".ljust(32, "y")]
)
def test_odd_user_names_have_pods(node: Node, server: Server, name: str) -> None:
    client = server.client(node.accounts.user(name))
    longest = "My_pod-" + "z" * 56
    for ins in ("exp", longest):
        made = client.post("/pod/create", ins=ins, image=SMALL).ok
        assert (made["ins"], made["owner"]) == (ins, name)
        assert node.instance_of(name, ins)["name"] == made["name"]
        assert client.exec(ins, "echo $((6*7))")["stdout"] == "42\n"
    assert client.get("/pod/list").ok == sorted(["exp", longest])
    for ins in ("exp", longest):
        client.post("/pod/delete", ins=ins).ok


def test_names_that_would_be_the_same_do_not_meet(node: Node, server: Server) -> None:
    short = node.accounts.user("podydta")
    long = node.accounts.user("podydta-b")
    first, second = server.client(short), server.client(long)
    one = first.post("/pod/create", ins="b-c", image=SMALL).ok
    two = second.post("/pod/create", ins="c", image=SMALL).ok
    assert one["name"] == "podydta-b-c" != two["name"]
    assert (first.get("/pod/list").ok, second.get("/pod/list").ok) == (["b-c"], ["c"])
    first.post("/pod/delete", ins="b-c").ok
    assert second.get("/pod/info", ins="c").ok["status"] == "running"
    second.post("/pod/delete", ins="c").ok


# What root of a pod sends to the guest API; the state is the command's first word.
TELL = """perl -MIO::Socket::UNIX -e '
my $body = "{\\"state\\":\\"$ARGV[0]\\"}";
my $guest = IO::Socket::UNIX->new(grep { -S } glob "/dev/{incus,lxd}/sock") or die "$!";
print $guest "PATCH /1.0 HTTP/1.0\\r\\nContent-Length: " . length($body) . "\\r\\n\\r\\n$body";
print <$guest>' """


@pytest.mark.lacks("lxd", "5.0.2 has no such status")
def test_a_pod_whose_root_has_told_that_it_is_ready_runs(
    node: Node, alice: Client, pod: str
) -> None:

    def is_told() -> bool:
        said = str(alice.exec(pod, f"{TELL} Ready")["stdout"])
        # Incus 6.0.4 does not know who asks while any instance is being stopped.
        assert " 200 " in said or " 500 " in said, said
        return " 200 " in said

    try:
        wait_until(is_told, "the guest API")
        assert node.instance_of(alice.user, pod)["status"] == "Ready"
        assert alice.get("/pod/info", ins=pod).ok["status"] == "running"
        assert alice.exec(pod, "echo 1")["stdout"] == "1\n"
    finally:
        alice.exec(pod, f"{TELL} Started")


def test_somebody_elses_pod_is_like_none(
    alice: Client, bob: Client, pod: str, admin: Client
) -> None:
    calls: list[Callable[[str], object]] = [
        lambda ins: bob.get("/pod/info", ins=ins).refused(404),
        lambda ins: bob.get("/pod/inspect", ins=ins).refused(404),
        lambda ins: bob.post("/pod/stop", ins=ins).refused(404),
        lambda ins: bob.post("/pod/delete", ins=ins).refused(404),
        lambda ins: bob.post("/pod/exec", ins=ins, cmd="true").refused(404),
        lambda ins: admin.post("/pod/stop", ins=ins).refused(404),
    ]
    for call in calls:
        assert str(call(pod)) == str(call("nosuch")).replace("nosuch", pod)
    assert pod not in bob.get("/pod/list").ok
    assert alice.get("/pod/info", ins=pod).ok["status"] == "running"


# --- What the admin does with lxc ---------------------------------------------------------------


def test_what_an_admin_does_is_seen(node: Node, new_user: Callable[[], Client], ins: str) -> None:
    client = new_user()
    assert client.get("/pod/list").ok == []
    name = f"adm-{ins}"
    node.lxc("init", SMALL, name, "--profile", "podyd-base")
    assert client.get("/pod/list").ok == [], "without an owner it is nobody's"
    node.lxc("config", "set", name, f"user.podyd.owner={client.user}", f"user.podyd.ins={ins}")
    client.lists(ins)
    node.lxc("start", name)
    client.sees(ins, status="running")
    node.lxc("config", "set", name, "limits.memory=300MiB")
    client.sees(ins, memory_limit=300 * 1024**2)
    node.lxc("copy", name, f"{name}-copy", "--instance-only", "--stateless")
    client.lists(ins, f"{name}-copy")
    node.lxc("delete", "-f", f"{name}-copy")
    client.lists(ins)
    node.lxc("config", "unset", name, "user.podyd.owner")
    client.lists()
    client.get("/pod/info", ins=ins).refused(404)
    node.lxc("delete", "-f", name)


def test_an_account_that_is_made_anew_has_nothing_of_the_old_one(
    node: Node, server: Server, ins: str
) -> None:
    user = node.accounts.user()
    uid = int(run("id", "-u", user))
    name = server.client(user).post("/pod/create", ins=ins, image=SMALL).ok["name"]
    node.accounts.remove(user)
    node.accounts.user(user, "-o", "-u", str(uid + 1000), password="Next-Horse-8")
    new = server.client(user, "Next-Horse-8")
    assert new.get("/pod/list").ok == []
    new.post("/pod/exec", ins=ins, cmd="true").refused(404, "no_such_pod")
    assert new.post("/pod/create", ins=ins, image=SMALL).ok["name"] != name
    new.post("/pod/delete", ins=ins).ok
    assert (
        f"Pod {name} is of an earlier account {user}"
        in node.command("doctor", "--config", str(server.config)).stdout
    )
    # As the README says.
    node.lxc("config", "unset", name, "user.podyd.account")
    new.sees(ins, name=name)
    new.post("/pod/delete", ins=ins).ok


def test_a_pod_that_is_given_away(node: Node, new_user: Callable[[], Client], ins: str) -> None:
    giver, taker = new_user(), new_user()
    name = giver.post("/pod/create", ins=ins, image=SMALL).ok["name"]
    node.lxc("config", "set", name, f"user.podyd.owner={taker.user}")
    giver.lists()
    taker.sees(ins, name=name)
    taker.post("/pod/delete", ins=ins).ok


def test_settings_that_are_just_being_changed_stop_nobody(
    node: Node, alice: Client, ins: str
) -> None:
    name = alice.post("/pod/create", ins=ins, image=SMALL).ok["name"]
    enough = threading.Event()

    def keep_changing() -> int:
        times = 0
        while not enough.is_set():
            node.lxc("config", "set", name, f"limits.processes={1000 + times}", check=False)
            times += 1
        return times

    with ThreadPoolExecutor() as pool:
        changing = [pool.submit(keep_changing)]
        try:
            for mebibytes in range(300, 310):
                alice.post("/pod/limits", ins=ins, memory=f"{mebibytes}MiB").ok
            changing.append(pool.submit(keep_changing))
            for path in ("stop", "start", "restart", "delete"):
                alice.post(f"/pod/{path}", ins=ins).ok
        finally:
            enough.set()
        assert all(future.result() > 3 for future in changing)


# --- Quota --------------------------------------------------------------------------------------


def test_ten_creates_at_once_make_as_many_as_allowed(node: Node, limited: Server) -> None:
    client = limited.client(node.accounts.user())
    with ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(
                lambda number: client.post("/pod/create", ins=f"race{number}", image=SMALL),
                range(10),
            )
        )
    assert sorted(answer.status for answer in answers) == [200] * 2 + [403] * 8
    refused = next(answer for answer in answers if answer.status == 403)
    body = refused.refused(403, "quota_exceeded")
    assert (body["limit"], body["used"]) == (2, 2)
    listed = client.get("/pod/list").ok
    owned = [
        item["name"]
        for item in node.instances().values()
        if item["config"].get("user.podyd.owner") == client.user
    ]
    assert len(listed) == len(owned) == 2
    # A place that becomes free can be taken.
    client.post("/pod/delete", ins=listed[0]).ok
    client.post("/pod/create", ins="again", image=SMALL).ok
    for ins in client.get("/pod/list").ok:
        client.post("/pod/delete", ins=ins).ok


def test_ten_creates_of_one_name_make_one(node: Node, limited: Server) -> None:
    client = limited.client(node.accounts.user())
    with ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(lambda _: client.post("/pod/create", ins="same", image=SMALL), range(10))
        )
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200] + [409] * 9, [answer.body for answer in answers]
    client.post("/pod/delete", ins="same").ok


@pytest.mark.controllers("cpuset", "memory")
def test_limits_hold_inside_the_pod(node: Node, limited: Server) -> None:
    client = limited.client(node.accounts.user())
    made = client.post("/pod/create", ins="small", image=IMAGE).ok
    assert (made["memory_limit"], made["cpu_limit"]) == (256 * 1024**2, 1)
    total = int(client.exec("small", "awk '/^MemTotal/ {print $2}' /proc/meminfo")["stdout"])
    assert total == 256 * 1024
    assert client.exec("small", "nproc")["stdout"] == "1\n"
    done = client.exec("small", "head -c 400M /dev/zero | tail", timeout=20)
    assert done["exit_code"] != 0
    client.post("/pod/delete", ins="small").ok


# --- Nothing is lost ----------------------------------------------------------------------------


def test_a_pod_that_an_admin_has_copied_is_not_taken_for_half_made(
    node: Node, alice: Client, ins: str
) -> None:
    name = alice.post("/pod/create", ins=ins, image=SMALL).ok["name"]
    alice.exec(ins, "echo kept > /root/file; sync")
    node.lxc("copy", name, f"{name}-new", "--stateless")
    alice.post("/pod/delete", ins=ins).ok
    node.lxc("rename", f"{name}-new", name)
    alice.sees(ins, name=name)
    copied = instance_of(node.instance_of(alice.user, ins))
    assert copied.started is None, "LXD does not say that it ever ran"
    assert not is_half_made(copied)
    alice.post("/pod/start", ins=ins).ok
    assert alice.exec(ins, "cat /root/file")["stdout"] == "kept\n"
    alice.post("/pod/delete", ins=ins).ok


def test_what_lxd_does_not_delete_is_tried_again(
    node: Node, new_user: Callable[[], Client]
) -> None:
    member = new_user()
    name = f"{member.user}-main"
    node.lxc("init", SMALL, name, "-p", "podyd-base", "-c", f"user.podyd.made_as={name}")
    node.lxc("config", "set", name, f"user.podyd.owner={member.user}")
    node.lxc("config", "set", name, "security.protection.delete=true")
    server = node.serve()
    server.wait_for_log(f"half-made pod {name} is still there")
    # It stands in nobody's way.
    assert server.client(member.user).get("/pod/list").ok == []
    node.lxc("config", "unset", name, "security.protection.delete")
    wait_until(lambda: name not in node.instances(), "it to go", 60)
    assert server.stop() == 0


# --- Failures -----------------------------------------------------------------------------------


def test_a_pod_that_cannot_start_leaves_nothing_and_says_why(
    node: Node, alice: Client, ins: str
) -> None:
    node.lxc("profile", "create", "broken")
    node.lxc("profile", "set", "broken", "limits.kernel.nofile=99999999999999999999")
    server = node.serve({"pods": {"profiles": ["podyd-base", "broken"]}})
    client = server.client(alice.user)
    body = client.post("/pod/create", ins=ins, image=IMAGE).refused(502)
    assert body["code"] in ("pod_start_failed", "pod_create_failed")
    assert "forkstart" not in body["detail"]
    assert ins not in client.get("/pod/list").ok
    wait_until(
        lambda: (
            not any(
                item["config"].get("user.podyd.ins") == ins for item in node.instances().values()
            )
        ),
        "the half-made pod to go",
    )
    node.lxc("profile", "delete", "broken")
    assert server.stop() == 0


def test_a_profile_that_is_missing_is_named(node: Node, alice: Client, ins: str) -> None:
    server = node.serve({"pods": {"profiles": ["podyd-base", "no-such-profile"]}})
    body = server.client(alice.user).post("/pod/create", ins=ins, image=IMAGE).refused(500)
    assert "no-such-profile" in body["detail"]
    assert server.stop() == 0
