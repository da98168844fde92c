"""From a user's name and the name they give a pod to a name that LXD takes.

LXD wants 1 to 63 letters, digits and '-', not beginning with a digit nor ending with '-'. Linux
names may hold more, and `a` + `b-c` and `a-b` + `c` would give the same: so the owner is never
read from the name, and a name that is taken gets a suffix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container

MAX_LENGTH = 63
SUFFIX_LENGTH = 8


def instance_name(owner: str, ins: str, taken: Container[str]) -> str:
    """`<owner>-<ins>`, made fit for LXD; `taken` holds names in lower case, as DNS sees them."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", f"{owner}-{ins}").strip("-")
    if not plain[0].isalpha():
        plain = f"u{plain}"
    if len(plain) <= MAX_LENGTH and plain.lower() not in taken:
        return plain
    stem = plain[: MAX_LENGTH - SUFFIX_LENGTH - 1].rstrip("-")
    attempt = 0
    while True:
        seed = f"{owner}\0{ins}\0{attempt}".encode()
        name = f"{stem}-{hashlib.sha256(seed).hexdigest()[:SUFFIX_LENGTH]}"
        if name.lower() not in taken:
            return name
        attempt += 1
