"""LXC's own log of an instance's start; the engine itself says only that forkstart failed."""

from __future__ import annotations

import re

from podyd.base.engine_words import ENGINE

LOG_LINES = 3
# What LXC's functions say, once a start has failed for whatever reason.
_CONSEQUENCES = frozenset({"sync_wait", "wait_on_daemonized_start", "__lxc_start"})
# What those say that ask about an instance, or run a command in it, while it ends: this need not be
# at its start.
_OF_ENDS = ("lxc_cmd", "lxc_abstract_unix", "lxc_attach", "get_attach_context")


def why_not_started(log_text: str) -> str:
    """The last errors of an lxc.log that say something, and what to do about the usual one."""
    lines = re.findall(r" ERROR +\S+ - \S+?:(\w+):\d+ - (.*)", log_text)
    errors = [line for line in lines if not line[0].startswith(_OF_ENDS)]
    telling = [message for function, message in errors if function not in _CONSEQUENCES]
    reasons = "; ".join(dict.fromkeys((telling or [message for _, message in errors])[-LOG_LINES:]))
    if "mount hooks" in reasons:
        reasons += " (the hook brings the NVIDIA driver in; your admin's 'podyd doctor' knows more)"
    if re.search("new[ug]idmap", reasons):
        reasons += f" ({ENGINE} may not map these ids; your admin's 'podyd doctor' knows more)"
    return reasons
