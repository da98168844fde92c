"""Two members' names and pods that give one name in LXD: `x` + `y-main` and `x-y` + `main`."""

from __future__ import annotations

from tests.integration.harness import IMAGE, Node, wait_until
from tests.integration.talking import Talk, connect


def test_what_was_opened_in_a_pod_is_refused_in_its_namesake(node: Node) -> None:
    # podyd waits so long for the first message, and a slow machine may need more than the usual.
    server = node.serve(constants={"podyd.api.frames.START_SECONDS": 120.0})
    user = node.accounts.user()
    one, other = server.client(user), server.client(node.accounts.user(f"{user}-y"))
    name = one.post("/pod/create", ins="y-main", image=IMAGE).ok["name"]
    opened = [Talk(connect(one, path, ins="y-main")) for path in ("/pod/shell", "/pod/exec-stream")]
    one.post("/pod/delete", ins="y-main").ok
    assert other.post("/pod/create", ins="main", image=IMAGE).ok["name"] == name
    shell, command = opened
    shell.control(cmd="echo whose >/root/mine")
    command.control(cmd="echo whose >/root/mine")
    for talk in opened:
        assert talk.end()["code"] == "no_such_pod"
        assert not talk.out
        talk.connection.shutdown()
    assert other.exec("main", "ls /root")["stdout"] == ""
    # LXD may need a moment to say so of the last one.
    wait_until(
        lambda: not [item for item in node.operations() if item["status"] == "Running"],
        "nothing to be under way",
    )
    other.post("/pod/delete", ins="main").ok
    assert server.stop() == 0
