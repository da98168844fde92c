"""What the kernel has heard of network cards."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from podyd.node.arp import Nic, neighbours, probe

OWN = Nic("lxdbr0", "00:16:3e:00:00:01")


def test_what_the_kernel_lists(tmp_path: Path) -> None:
    (tmp_path / "arp").write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "192.0.2.99       0x1         0x0         00:00:00:00:00:00     *        eth0\n"
        "10.0.0.4         0x1         0x2         00:16:3e:00:00:01     *        lxdbr0\n"
        "10.0.0.2         0x1         0x6         00:16:3E:00:00:01     *        lxdbr0\n"
    )
    assert neighbours(tmp_path / "arp") == {OWN: frozenset({"10.0.0.2", "10.0.0.4"})}
    assert isinstance(neighbours(), dict), "the kernel's own"


def test_asking_never_fails_and_stays_on_its_interface() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 9))
        listener.settimeout(5)
        probe("no-such0", ["127.0.0.1"])
        probe("lo", ["not an address", "127.0.0.1"])
        assert listener.recv(10) == b""
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(10)
