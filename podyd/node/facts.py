"""Facts about the host that do not change while it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """The name of the host and the release of its kernel, as in uname(2), and its memory in
    bytes."""

    name: str
    kernel: str
    memory_bytes: int

    @classmethod
    def of_this_host(cls) -> Facts:
        return cls(
            name=os.uname().nodename,
            kernel=os.uname().release,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
