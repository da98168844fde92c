"""bpf(2): programs that decide which devices the processes of a cgroup may open."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALL = {"x86_64": 321, "aarch64": 280}

# Commands of bpf(2), and the kind of program, as in linux/bpf.h.
_LOAD, _ATTACH, _DETACH, _BY_ID, _INFO, _QUERY = 5, 8, 9, 13, 15, 16
_DEVICE_PROGRAM, _DEVICE = 15, 6
# All programs of a cgroup and of those above it must allow; those of others (systemd) stay.
_MULTI = 2
_LICENCE = b"GPL\0"
_INFO_BYTES = 80  # struct bpf_prog_info, up to its name
# The kernel allows 64 at a cgroup.
_MAX_PROGRAMS = 64
# union bpf_attr is larger in later kernels; what is beyond must be zero.
_ATTRIBUTE_BYTES = 128


def _call(command: int, attribute: bytes) -> tuple[int, bytes]:
    """The result, and the attribute as the kernel left it. Raises OSError."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2) on {platform.machine()} is not known")
    buffer = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    result = _libc.syscall(number, command, buffer, _ATTRIBUTE_BYTES)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result), buffer.raw


@contextlib.contextmanager
def loaded(code: bytes, name: str) -> Iterator[int]:
    """A descriptor of a program; the cgroups to which it is attached keep it. Raises OSError."""
    program = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(_LICENCE)
    descriptor, _ = _call(
        _LOAD,
        struct.pack(
            "<IIQQIIQII16sII",
            *(_DEVICE_PROGRAM, len(code) // 8, ctypes.addressof(program)),
            *(ctypes.addressof(licence), 0, 0, 0, 0, 0, name.encode(), 0, _DEVICE),
        ),
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def attach(cgroup: int, program: int) -> None:
    """Raises OSError; both are descriptors."""
    _call(_ATTACH, struct.pack("<IIIII", cgroup, program, _DEVICE, _MULTI, 0))


def detach(cgroup: int, program: int) -> None:
    """Raises OSError; both are descriptors."""
    _call(_DETACH, struct.pack("<III", cgroup, program, _DEVICE))


def attached(cgroup: int) -> list[int]:
    """The ids of the programs that are attached to a cgroup itself. Raises OSError."""
    ids = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    _, answer = _call(
        _QUERY,
        struct.pack("<IIIIQI", cgroup, _DEVICE, 0, 0, ctypes.addressof(ids), _MAX_PROGRAMS),
    )
    (count,) = struct.unpack_from("<I", answer, 24)
    return list(ids[:count])


@contextlib.contextmanager
def opened(identity: int) -> Iterator[int]:
    """A descriptor of the program with this id. Raises OSError."""
    descriptor, _ = _call(_BY_ID, struct.pack("<III", identity, 0, 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def name_and_tag(program: int) -> tuple[str, bytes]:
    """A program's name, and its tag, which is the same for the same code. Raises OSError."""
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _call(_INFO, struct.pack("<IIQ", program, _INFO_BYTES, ctypes.addressof(info)))
    tag, name = struct.unpack_from("<8s", info.raw, 8)[0], info.raw[64:80]
    return name.rstrip(b"\0").decode(errors="replace"), tag
