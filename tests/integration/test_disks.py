"""The disks of pods: how large they may become, and what is said of them.

The image needs some 280 MiB, on ZFS, which packs it, 142. All sizes here are small: the pool is
everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.harness import IMAGE, Answer, Client, Node, Pool, wait_until
from tests.integration.test_metrics import figure, scrape

MIB = 1024**2


@pytest.fixture(scope="module")
def limited(node: Node, thin: Pool) -> Iterator[Client]:
    """A member with a quota of disk for each pod and for all, and a pod `main` of 400 MiB."""
    user = node.accounts.user()
    quota = {"max_pods": 3, "disk_limit": "700MiB", "disk_total": "1100MiB"}
    server = node.serve(
        {
            "quota": {"users": {user: quota}},
            "pods": {"user_profiles": {user: thin.profiles}},
            "usage": {"interval": 1},
            "metrics": {"allow": ["127.0.0.1"]},
        }
    )
    client = server.client(user)
    client.post("/pod/create", ins="main", image=IMAGE, disk="400MiB").ok
    thin.count_anew()
    yield client
    client.post("/pod/delete", ins="main").ok
    assert server.stop() == 0


def disk_of(client: Client, ins: str) -> tuple[int | None, int | None]:
    info = client.get("/pod/info", ins=ins).ok
    return info["disk_used"], info["disk_limit"]


def write(client: Client, ins: str, mib: int) -> bool:
    """Whether so much more goes onto a pod's disk."""
    cmd = f"head -c {mib}M /dev/urandom >/big && sync -f /big"
    done = client.exec(ins, cmd, timeout=60)
    return bool(done["exit_code"] == 0)


def test_a_limit_holds_and_is_shown(limited: Client, node: Node) -> None:
    before, limit = disk_of(limited, "main")
    assert limit == 400 * MIB
    assert before is not None
    assert write(limited, "main", 40)
    after, _ = disk_of(limited, "main")
    assert after is not None
    assert after - before >= 40 * MIB
    assert not write(limited, "main", 300)
    limited.exec("main", "rm -f /big; sync -f /")
    root = node.instance_of(limited.user, "main")["devices"]["root"]
    assert root == {"type": "disk", "path": "/", "pool": root["pool"], "size": str(400 * MIB)}


def test_it_grows_and_shrinks_while_the_pod_runs(limited: Client) -> None:
    assert limited.post("/pod/limits", ins="main", disk="600MiB").ok["disk_limit"] == 600 * MIB
    assert write(limited, "main", 280)
    body = limited.post("/pod/limits", ins="main", disk="400MiB").refused(409, "disk_in_use")
    assert body["asked"] == 400 * MIB
    assert body["used"] > 400 * MIB
    assert disk_of(limited, "main")[1] == 600 * MIB
    limited.exec("main", "rm /big; sync -f /")
    assert limited.post("/pod/limits", ins="main", disk="400MiB").ok["disk_limit"] == 400 * MIB
    assert not write(limited, "main", 280)
    limited.exec("main", "rm -f /big; sync -f /")


def test_nobody_is_above_the_quota_of_a_pod(limited: Client) -> None:
    body = limited.post("/pod/limits", ins="main", disk="800MiB").refused(403, "quota_exceeded")
    assert (body["limit"], body["asked"], body["parameter"]) == (700 * MIB, 800 * MIB, "disk")
    assert "700 MiB of disk" in body["detail"]
    create = limited.post("/pod/create", ins="more", image=IMAGE, disk="800MiB")
    assert create.refused(403, "quota_exceeded")["limit"] == 700 * MIB


def test_two_at_once_are_not_above_the_quota_of_all(limited: Client) -> None:
    def make(ins: str) -> Answer:
        if ins == "new":
            return limited.post("/pod/create", ins=ins, image=IMAGE, disk="380MiB")
        return limited.post("/pod/copy", ins="main", to=ins, disk="380MiB")

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(make, ("new", "copy")))
    assert sorted(answer.status for answer in answers) == [200, 403]
    refused = next(answer for answer in answers if answer.status == 403)
    assert refused.refused(403, "quota_exceeded")["limit"] == (1100 - 400 - 380) * MIB
    info = next(answer.ok for answer in answers if answer.status == 200)
    made = info["ins"]
    assert info["disk_limit"] == disk_of(limited, made)[1] == 380 * MIB
    grown = limited.post("/pod/limits", ins=made, disk="701MiB").refused(403, "quota_exceeded")
    assert grown["limit"] == 700 * MIB
    limited.post("/pod/delete", ins=made).ok


def test_an_equal_share_and_what_was_without_a_limit(limited: Client, node: Node) -> None:
    name = node.instance_of(limited.user, "main")["name"]
    node.lxc("config", "device", "remove", name, "root")
    limited.sees("main", disk_limit=-1)
    body = limited.post("/pod/create", ins="more", image=IMAGE).refused(403, "quota_exceeded")
    assert name in body["detail"]
    share = limited.post("/pod/limits", ins="main", disk="none").ok["disk_limit"]
    assert share == 1100 * MIB // 3
    limited.post("/pod/limits", ins="main", disk="400MiB").ok


@pytest.mark.controllers("io")
def test_what_an_admin_has_set_stays(limited: Client, node: Node) -> None:
    name = node.instance_of(limited.user, "main")["name"]
    node.lxc("config", "device", "set", name, "root", "limits.read=500MB")
    limited.post("/pod/limits", ins="main", disk="500MiB").ok
    root = node.instance_of(limited.user, "main")["devices"]["root"]
    assert (root["limits.read"], root["size"]) == ("500MB", str(500 * MIB))


def test_prometheus_is_told(limited: Client, node: Node, thin: Pool) -> None:
    nobody = Client(limited.port)
    name = node.instance_of(limited.user, "main")["name"]
    labels = {"pod": name, "owner": limited.user}
    size = figure(scrape(nobody), "podyd_pod_disk_limit_bytes", **labels)
    assert size == disk_of(limited, "main")[1]
    wait_until(
        lambda: bool(figure(scrape(nobody), "podyd_pod_disk_used_bytes", **labels)), "the figure"
    )
    metrics = scrape(nobody)
    whole = figure(metrics, "podyd_pool_bytes", pool=thin.name)
    # ZFS keeps some for itself.
    assert 2.5 * 1024 * MIB < (whole or 0) <= 3 * 1024 * MIB
    assert 0 < (figure(metrics, "podyd_pool_used_bytes", pool=thin.name) or 0) < (whole or 0)


@pytest.fixture(scope="module")
def on_dir(node: Node) -> Iterator[Client]:
    """A member whose pods are on a pool of kind dir, on a filesystem without project quotas."""
    with Pool(node, "dir") as pool:
        user = node.accounts.user()
        server = node.serve({"pods": {"user_profiles": {user: pool.profiles}}})
        yield server.client(user)
        assert server.stop() == 0


def test_a_pool_that_holds_no_limit_says_so(on_dir: Client, node: Node) -> None:
    create = on_dir.post("/pod/create", ins="p", image=IMAGE, disk="500MiB")
    assert "kind dir" in create.refused(409, "disk_not_limited")["detail"]
    assert on_dir.get("/pod/list").ok == []
    info = on_dir.post("/pod/create", ins="p", image=IMAGE).ok
    assert (info["disk_used"], info["disk_limit"]) == (None, None)
    before = node.instance_of(on_dir.user, "p")["devices"]
    on_dir.post("/pod/limits", ins="p", disk="500MiB").refused(409, "disk_not_limited")
    assert node.instance_of(on_dir.user, "p")["devices"] == before
    on_dir.post("/pod/delete", ins="p").ok
