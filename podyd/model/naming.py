"""The name of an instance, from its owner's name and the pod's name.

The engine accepts 1 to 63 letters, digits and '-', without a digit at the start or '-' at the end.
User names of Linux may have other characters, and `a` + `b-c` and `a-b` + `c` would have the same
name: so the owner is never read from the name, and a name that is taken gets a suffix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container

MAX_LENGTH = 63
SUFFIX_LENGTH = 8


def instance_name(owner: str, ins: str, taken: Container[str]) -> str:
    """`<owner>-<ins>`, made valid for the engine; `taken` has names in lower case, as DNS ignores
    case."""
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
