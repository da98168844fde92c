"""What listens, as the kernel has it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from podyd.node.pod_sockets import pod_sockets
from podyd.node.sockdiag import listening_ports


def test_the_kernels_own_lists() -> None:
    with socket.create_server(("127.0.0.1", 0)) as four:
        port = four.getsockname()[1]
        assert (port, "127.0.0.1") in pod_sockets(os.getpid()).listening
        assert port in listening_ports()
    assert port not in listening_ports()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        port = six.getsockname()[1]
        assert (port, "::1") in pod_sockets(os.getpid()).listening
        assert port in listening_ports()


def test_whose_they_are_is_told_with_them(tmp_path: Path) -> None:
    for name in ("tcp", "tcp6"):
        path = tmp_path / "7/net" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("sl\n 0: 0100007F:1F90 00000000:0000 0A\n")
    (tmp_path / "7/cgroup").write_text("0::/lxc.payload.podyd_a\n")
    sockets = pod_sockets(7, tmp_path)
    assert sockets.listening == {(8080, "127.0.0.1")}
    assert sockets.cgroup == ("podyd", "a")
