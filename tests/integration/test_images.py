"""Images that members make from their pods: whose they are, and what is not in them."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from podyd.base.quantities import typed_size
from tests.integration.harness import DIALECT, IMAGE, SMALL, Client, Json, Node, run, wait_until
from tests.integration.test_client import as_user
from tests.lab.nvml import COMPILE

IDENTITY = "cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub"


def committed(node: Node, user: str) -> list[Json]:
    """LXD's own view of a member's images."""
    return [
        image
        for image in node.lxd.get(f"/1.0/images?recursion=1&project={node.images}")
        if image["properties"].get("user.podyd.owner") == user
    ]


@pytest.fixture
def member(node: Node, new_user: Callable[[], Client]) -> Iterator[Client]:
    """A member; their pods and images go in the end."""
    client = new_user()
    yield client
    for ins in client.get("/pod/list").ok:
        client.post("/pod/delete", ins=ins).ok
    for image in committed(node, client.user):
        node.lxd.change("DELETE", f"/1.0/images/{image['fingerprint']}?project={node.images}")


def write(client: Client) -> None:
    """What LXD takes a second or two to pack."""
    done = client.exec("main", "head -c 100000000 /dev/urandom >/root/file && sync", timeout=60)
    assert done["exit_code"] == 0


def test_the_life_of_an_image(node: Node, debian: Client, bob: Client, admin: Client) -> None:
    own = debian
    wait_until(lambda: own.exec("main", IDENTITY)["exit_code"] == 0, "the pod's identity")
    started = own.get("/pod/info", ins="main").ok["uptime"]
    own.exec("main", "echo kept > /root/file; sync")
    answer = own.post("/pod/commit", ins="main", tag="torch", msg="with torch")
    name = f"{own.user}-torch"
    assert answer.ok["image_name"] == name
    assert answer.ok["log"]
    assert own.get("/pod/info", ins="main").ok["uptime"] > started, "it went on running"
    (image,) = committed(node, own.user)
    assert [alias["name"] for alias in image["aliases"]] == [name]
    assert not image["public"]
    assert not [other for other in node.instances() if "commit" in other]

    # The owner's alone.
    assert {name, IMAGE} <= set(own.get("/host/images").ok)
    inspected = own.get("/image/inspect", image=name).ok
    assert (inspected["description"], inspected["size"]) == ("with torch", image["size"])
    assert inspected["owner"] == own.user
    for other in (bob, admin):
        assert name not in other.get("/host/images").ok
        for call, params in (("/image/delete", {}), ("/pod/create", {"ins": "x"})):
            theirs = other.post(call, image=name, **params).refused(404, "no_such_image")
            none = other.post(call, image="nosuch", **params).refused(404, "no_such_image")
            assert str(theirs) == str(none).replace("nosuch", name)
        other.get("/image/inspect", image=name).refused(404, "no_such_image")

    # Without its maker's identity.
    made = own.post("/pod/create", ins="second", image=name).ok
    assert made["image"] == name
    assert own.exec("second", "cat /root/file")["stdout"] == "kept\n"
    assert own.exec("second", "cat /etc/hostname")["stdout"].strip() == made["name"]
    wait_until(lambda: own.exec("second", IDENTITY)["exit_code"] == 0, "the new identity")
    first, second = (own.exec(ins, IDENTITY)["stdout"].splitlines() for ins in ("main", "second"))
    assert len(first) == len(second) == 4
    assert all(one.split()[:2] != two.split()[:2] for one, two in zip(first, second, strict=True))

    own.post("/image/delete", image=IMAGE).refused(403, "not_your_image")
    assert own.post("/image/delete", image=name).ok["log"]
    own.post("/image/delete", image=name).refused(404, "no_such_image")
    assert committed(node, own.user) == []
    assert own.exec("second", "echo on")["stdout"] == "on\n"


def test_a_tag_is_replaced_when_the_new_image_is_there(node: Node, own: Client) -> None:
    name = own.post("/pod/commit", ins="main").ok["image_name"]
    assert name == f"{own.user}-main"
    (old,) = committed(node, own.user)
    tight = node.serve({"quota": {"default": {"max_images": 1, "image_size": old["size"] // 2}}})
    client = tight.client(own.user)
    body = client.post("/pod/commit", ins="main").refused(403, "quota_exceeded")
    assert body["limit"] == old["size"] // 2
    client.post("/pod/commit", ins="main", tag="more").refused(403, "quota_exceeded")
    assert [image["fingerprint"] for image in committed(node, own.user)] == [old["fingerprint"]]
    assert tight.stop() == 0
    own.exec("main", "echo more > /root/file; sync")
    own.post("/pod/commit", ins="main").ok
    (new,) = committed(node, own.user)
    assert new["fingerprint"] != old["fingerprint"]
    assert own.get("/image/inspect", image=name).ok["fingerprint"] == new["fingerprint"]


def test_a_name_that_the_engine_does_not_take(own: Client) -> None:
    """As long as it may be at all, which Incus 7 would say when the image is packed."""
    longest = DIALECT.longest_alias or len(own.user) + 101
    tag = "t" * (longest - len(own.user) - 1)
    assert own.post("/pod/commit", ins="main", tag=tag).ok["image_name"] == f"{own.user}-{tag}"
    body = own.post("/pod/commit", ins="main", tag=f"{tag}t").refused(400, "malformed_parameter")
    assert body["parameter"] == "tag"
    own.post("/pod/commit", ins="main", tag="v1.").refused(400, "malformed_parameter")


def test_names_that_would_be_the_same_do_not_meet(node: Node, own: Client) -> None:
    short, middle = own.user[:-2], own.user[-2:]
    name = f"{own.user}-x"
    own.post("/pod/commit", ins="main", tag="x").ok
    other = Client(own.port, node.accounts.user(f"{own.user}-x"))
    other.post("/pod/create", ins="p", image=SMALL).ok
    long = other.post("/pod/commit", ins="p", tag="y").ok["image_name"]
    body = own.post("/pod/commit", ins="main", tag="x-y").refused(409, "name_taken")
    assert body["image"] == long
    assert [image["aliases"][0]["name"] for image in committed(node, own.user)] == [name]
    own.post("/image/delete", image=long).refused(404, "no_such_image")
    other.post("/image/delete", image=long).ok
    other.post("/pod/delete", ins="p").ok
    assert short + middle == own.user


def test_others_go_on_and_a_caller_may_hang_up(node: Node, own: Client, alice: Client) -> None:
    write(own)
    connection = own.connection(60)
    connection.request("POST", "/pod/commit?ins=main", headers=own.login_header())
    wait_until(lambda: bool([n for n in node.instances() if "commit" in n]), "the commit")
    own.post("/pod/commit", ins="main", tag="b").refused(409, "commit_under_way")
    connection.close()
    alice.get("/pod/list").ok
    assert own.exec("main", "echo on")["stdout"] == "on\n"
    assert own.get("/pod/progress", ins="main").ok["doing"], "it is not done yet"
    wait_until(lambda: len(committed(node, own.user)) == 1, "the image", 60)
    wait_until(lambda: f"{own.user}-main" in own.get("/host/images").ok, "its name", 60)
    wait_until(lambda: not [n for n in node.instances() if "commit" in n], "nothing left", 60)


def test_how_far_an_image_is(own: Client, bob: Client) -> None:
    nothing = {"doing": None, "percent": None, "bytes_per_second": None}
    assert own.get("/pod/progress", ins="main").ok == nothing
    bob.get("/pod/progress", ins="main").refused(404, "no_such_pod")
    own.post("/pod/create", ins="other", image=SMALL).ok
    write(own)
    seen = []
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(own.post, "/pod/commit", ins="main")
        while not committing.done():
            seen.append(own.get("/pod/progress", ins="main").ok)
            assert own.get("/pod/progress", ins="other").ok == nothing
            time.sleep(0.05)
        committing.result().ok
    assert own.get("/pod/progress", ins="main").ok == nothing
    doing = [item["doing"] for item in seen if item["doing"]]
    assert list(dict.fromkeys(doing)) == ["copying", "packing"]
    known = [item for item in seen if item["percent"] is not None]
    percents = [item["percent"] for item in known]
    assert percents == sorted(percents)
    assert max(percents) > 50
    assert all(item["bytes_per_second"] > 0 for item in known)


def steps(client: Client, watched: str, route: str, **parameters: str) -> list[Json]:
    """What `/pod/progress` of a pod says while a call of another route is under way."""
    seen = []
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(client.post, route, **parameters)
        while not doing.done():
            answer = client.get("/pod/progress", ins=watched)
            seen += [answer.ok] if answer.status == 200 and answer.ok["doing"] else []
            time.sleep(0.02)
        doing.result().ok
    return seen


def names(seen: list[Json]) -> list[str]:
    """Each step once, in order."""
    return list(dict.fromkeys(item["doing"] for item in seen))


def test_how_far_a_new_pod_is(own: Client) -> None:
    write(own)
    image = own.post("/pod/commit", ins="main").ok["image_name"]
    created = steps(own, "second", "/pod/create", ins="second", image=image)
    assert names(created) == ["unpacking", "starting"]
    # LXD says it of an image that is a tar archive.
    assert max(item["percent"] or 0 for item in created) > 50
    assert names(steps(own, "third", "/pod/copy", ins="second", to="third"))[-1] == "starting"
    own.post("/pod/snapshot", ins="second", name="s").ok
    restored = steps(own, "second", "/pod/restore", ins="second", name="s")
    assert names(restored) == ["stopping", "restoring", "starting"]
    assert own.get("/pod/progress", ins="second").ok["doing"] is None


# Says so where it is loaded and there is no /proc: beside the pod, and not in it.
BESIDE = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void)
{
    if (access("/proc/self", F_OK) != 0)
        close(open("/beside", O_CREAT | O_WRONLY, 0644));
}
"""


def names_beside(node: Node, client: Client, ins: str, tmp_path: Path) -> str:
    """Have a pod's library say so where names of users are asked for; its nsswitch.conf."""
    source, library = tmp_path / "beside.c", tmp_path / "libnss_beside.so.2"
    source.write_text(BESIDE)
    run(*COMPILE, "-o", str(library), str(source))
    name = node.instance_of(client.user, ins)["name"]
    node.lxc("file", "push", str(library), f"{name}/usr/lib/{library.name}")
    names = "passwd: beside files\\ngroup: beside files\\n"
    client.exec(ins, f"printf '{names}' >/etc/nsswitch.conf; getent passwd nosuch; sync")
    assert client.exec(ins, "ls /beside")["exit_code"] != 0
    return names.replace("\\n", "\n")


def test_nothing_of_a_pod_is_run_beside_it(node: Node, debian: Client, tmp_path: Path) -> None:
    own = debian
    names = names_beside(node, own, "main", tmp_path)

    own.post("/pod/copy", ins="main", to="second").ok
    answer = own.exec("second", "ls /beside; cat /etc/nsswitch.conf; ls /etc | grep podyd")
    assert answer["stdout"] == names
    # Where the library, and who writes times, would wait for ever.
    own.exec("main", "cd /etc && rm -f group localtime && mkfifo group localtime; sync")
    own.post("/pod/commit", ins="main").ok
    assert not [other for other in node.instances() if "commit" in other]


def hole(node: Node, client: Client) -> str:
    """Make a file that takes no room, and LXD a minute to pack; its path."""
    space = node.lxd.get("/1.0/storage-pools/default/resources")["space"]
    size = (space["total"] - space["used"]) // 3 * 2
    client.exec("main", f"truncate -s {size} /root/hole; sync")
    return "/root/hole"


def packing(node: Node) -> list[Json]:
    """LXD's operations that make images."""
    return [
        item
        for item in node.operations()
        if item["status_code"] < 200 and "image" in item["description"]
    ]


def assert_nothing_left(node: Node, user: str) -> None:
    assert committed(node, user) == []
    assert not [name for name in node.instances() if "commit" in name]
    assert not packing(node)


def test_what_is_too_large_is_not_packed(node: Node, own: Client) -> None:
    own.exec("main", f"truncate -s {4 << 60} /root/hole; sync")
    body = own.post("/pod/commit", ins="main").refused(409, "disk_full")
    assert body["files"] > 4 << 60
    assert "'/root/hole' (4611686018427387904)" in body["advice"]
    own.exec("main", "rm /root/hole; sync")
    own.exec("main", "head -c 30000000 /dev/zero >/root/file; sync")
    tight = node.serve({"quota": {"default": {"image_size": 2_000_000}}})
    client = tight.client(own.user)
    body = client.post("/pod/commit", ins="main").refused(403, "quota_exceeded")
    assert (body["limit"], body["used"]) == (2_000_000, 0)
    assert body["files"] > 30_000_000
    assert tight.stop() == 0
    assert_nothing_left(node, own.user)


def test_what_becomes_too_large_is_ended_while_it_is_packed(node: Node, own: Client) -> None:
    """No file is so large that podyd looks into it, and ten times what is left would do for all."""
    quota, count = 20 * 1024**2, 160
    fill = f"for n in $(seq {count}); do head -c {1024**2} /dev/urandom >/root/$n; done; sync"
    assert own.exec("main", fill, timeout=60)["exit_code"] == 0
    tight = node.serve(
        {"quota": {"default": {"image_size": quota}}},
        constants={"podyd.engine.room.WATCH_SECONDS": 0.05},
    )
    body = tight.client(own.user).post("/pod/commit", ins="main").refused(403, "quota_exceeded")
    assert (body["limit"], body["used"]) == (quota, 0)
    match = re.search(r"this one has ([^,(]+)", body["detail"])
    assert match
    size = typed_size(match[1].strip())
    assert size
    assert quota < size < count * 1024**2, "it was packed to its end"
    assert_nothing_left(node, own.user)
    assert tight.stop() == 0


def test_a_commit_is_cancelled(node: Node, own: Client, bob: Client) -> None:
    own.post("/pod/commit-cancel", ins="main").refused(404, "no_commit")
    hole(node, own)
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(own.post, "/pod/commit", ins="main")
        wait_until(lambda: own.get("/pod/progress", ins="main").ok["percent"], "packing", 180)
        bob.post("/pod/commit-cancel", ins="main").refused(404, "no_such_pod")
        assert "nothing of it is left" in own.post("/pod/commit-cancel", ins="main").ok["log"]
        assert_nothing_left(node, own.user)
        committing.result().refused(409, "commit_cancelled")
    own.post("/pod/commit-cancel", ins="main").refused(404, "no_commit")


def test_ctrl_c_cancels_a_commit(node: Node, own: Client) -> None:
    hole(node, own)
    with as_user(own).at_terminal("commit", "main", "torch") as terminal:
        terminal.wait_for("packing")
        terminal.type("\3")
        assert terminal.end() == 130
        assert "nothing of it is left" in terminal.text
    assert_nothing_left(node, own.user)
    with as_user(own).at_terminal("commit", "main", "torch") as terminal:
        terminal.wait_for("packing")
        terminal.type("\3")
        terminal.wait_for("ends pody at once")
        terminal.type("\3")
        assert terminal.end() == 130
        assert "is left" not in terminal.text
    # The copy goes first, and then LXD finds out that it packs what is gone.
    wait_until(lambda: not [n for n in node.instances() if "commit" in n], "podyd to end it", 30)
    wait_until(lambda: not packing(node), "LXD to end it", 30)
    assert_nothing_left(node, own.user)


@pytest.mark.parametrize("is_packed", [False, True], ids=["packing", "packed"])
def test_a_podyd_that_is_killed_leaves_nothing_half(
    node: Node, own: Client, is_packed: bool
) -> None:
    server = node.serve()
    client = server.client(own.user)
    if is_packed:
        write(own)
    else:
        hole(node, own)

    def commit() -> None:
        with pytest.raises((http.client.HTTPException, OSError)):
            client.post("/pod/commit", ins="main")

    calling = threading.Thread(target=commit)
    calling.start()

    how_far = partial(client.get, "/pod/progress", ins="main")
    wait_until(lambda: how_far().ok["percent"], "packing", 180, passes=True)
    server.process.kill()
    calling.join()
    if is_packed:
        wait_until(lambda: bool(committed(node, own.user)), "LXD to have packed it", 60)
    again = node.serve()
    wait_until(lambda: not [n for n in node.instances() if "commit" in n], "the copy to go", 30)
    # LXD would go on with the file that it reads.
    wait_until(lambda: not packing(node), "LXD to end", 10)
    wait_until(lambda: not committed(node, own.user), "the image to go")
    assert_nothing_left(node, own.user)
    assert again.stop() == 0


def test_an_image_of_ubuntu(node: Node, alice: Client, ins: str) -> None:
    """Built from Ubuntu's archive: its oldest release, whose systemd is packaged in another way."""
    alias = f"{node.account}-jammy"
    node.podyd("image", "build", alias, "--suite", "jammy")
    try:
        alice.post("/pod/create", ins=ins, image=alias).ok
        cmd = "timeout 30 systemctl is-system-running --wait"
        wait_until(lambda: alice.exec(ins, cmd, timeout=40)["stdout"] == "running\n", cmd)
        wait_until(lambda: alice.get("/pod/info", ins=ins).ok["addresses"], "an address")
        answer = alice.exec(
            ins,
            ". /etc/os-release; echo $VERSION_ID; python3 -c 'print(6 * 7)'; ip route show default"
            " | wc -l; exec 3<>/dev/tcp/127.0.0.1/22; head -c 4 <&3",
        )
        assert answer["stdout"] == "22.04\n42\n1\nSSH-", answer
        keys = alice.exec(ins, IDENTITY)
        assert (keys["exit_code"], len(keys["stdout"].splitlines())) == (0, 5)
        inspected = alice.get("/image/inspect", image=alias).ok
        assert "Ubuntu jammy" in inspected["description"]
    finally:
        alice.post("/pod/delete", ins=ins)
        fingerprint = node.lxd.get(f"/1.0/images/aliases/{alias}?project={node.images}")["target"]
        node.lxd.change("DELETE", f"/1.0/images/{fingerprint}?project={node.images}")
