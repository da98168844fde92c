"""The limits of a pod by its owner's quota, if its profiles allow more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from podyd.base.quantities import UNLIMITED, numbers_of, parse_size
from podyd.engine.types import Profile, config_of
from podyd.model.member import Member
from podyd.node.facts import Facts

MEMORY, CPU = "limits.memory", "limits.cpu"


def limits(member: Member, profiles: Sequence[Profile]) -> dict[str, str]:
    """The keys of an instance that limit a pod to its owner's quota, if its profiles allow more."""
    config = config_of(profiles)
    keys = {}
    quota = member.quota
    if quota.memory_limit != UNLIMITED and not 0 <= memory_limit(config) <= quota.memory_limit:
        keys[MEMORY] = str(quota.memory_limit)
    if quota.cpu_limit != UNLIMITED and not 0 <= cpu_limit(config) <= quota.cpu_limit:
        keys[CPU] = str(quota.cpu_limit)
    return keys


def memory_limit(config: Mapping[str, str]) -> int:
    """`limits.memory` in bytes, or -1; a percentage is one of the host's memory."""
    text = config.get(MEMORY, "")
    if text.endswith("%"):
        return Facts.of_this_host().memory_bytes * int(text[:-1]) // 100
    return parse_size(text) if text else UNLIMITED


def cpu_limit(config: Mapping[str, str]) -> int:
    """The number of CPUs of `limits.cpu` (a count, or a set such as 0-3,8), or -1."""
    text = config.get(CPU, "")
    if not text:
        return UNLIMITED
    if text.isdecimal():
        return int(text)
    return len(numbers_of(text))
