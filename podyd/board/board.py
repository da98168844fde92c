"""What everybody who watches is shown: values by key, each encoded once, and what has changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from datetime import datetime, timezone

from podyd.model.member import Member
from podyd.model.pod import account_key

# Who sees a value: everybody, all admins, all other members, or all who have not logged in.
ALL, ADMINS, MEMBERS, GUESTS = "all", "admins", "members", "guests"
Audience = str
# A value's audience and its key. No two audiences of one viewer have the same key.
Place = tuple[Audience, str]
# By key, the JSON of key and value; None if the key is gone.
Encoded = Mapping[str, str | None]


def owner_of(account: str) -> Audience:
    """The audience of what is of an account's pods, but for admins, who see those of all;
    `account` as `Pod.account` has it."""
    return f"owner {account}"


def oneself(member: Member) -> Audience:
    """The audience of what is for one member alone."""
    kind = "admin" if member.is_admin else "member"
    return f"{kind} {account_key(member.name, member.uid)}"


def audiences_of(member: Member | None) -> frozenset[Audience]:
    """The audiences that a viewer is in; None is one who has not logged in."""
    if member is None:
        return frozenset({ALL, GUESTS})
    if member.is_admin:
        return frozenset({ALL, ADMINS, oneself(member)})
    own = account_key(member.name, member.uid)
    return frozenset({ALL, MEMBERS, oneself(member), owner_of(own), owner_of(member.name)})


class Board:
    """Values by audience and key, put there in sections, and what has changed since `take`."""

    def __init__(self) -> None:
        self._sections: dict[str, dict[Place, str]] = {}
        self._changed: dict[Audience, dict[str, str | None]] = {}

    def put(self, section: str, values: Mapping[Place, object]) -> None:
        """Replace all values of a section."""
        new = {place: _encoded(place[1], value) for place, value in values.items()}
        old = self._sections.get(section, {})
        for (audience, key), text in new.items():
            if old.get((audience, key)) != text:
                self._changed.setdefault(audience, {})[key] = text
        for audience, key in old.keys() - new.keys():
            self._changed.setdefault(audience, {})[key] = None
        self._sections[section] = new

    def take(self) -> Mapping[Audience, Encoded]:
        """What has changed since the last call, by audience."""
        changed, self._changed = self._changed, {}
        return changed

    def whole(self, audiences: Set[Audience]) -> list[Encoded]:
        """All that these audiences see."""
        return [
            {key: text for (audience, key), text in values.items() if audience in audiences}
            for values in self._sections.values()
        ]


def _encoded(key: str, value: object) -> str:
    text = json.dumps(value, default=vars, ensure_ascii=False, separators=(",", ":"))
    return f"{json.dumps(key)}:{text}"


def message(time: float, parts: Iterable[Encoded], *, whole: bool = False) -> bytes:
    """A message as /events sends it; `time` in seconds since 1970."""
    there: dict[str, str] = {}
    gone: set[str] = set()
    for part in parts:
        for key, text in part.items():
            if text is None:
                gone.add(key)
            else:
                there[key] = text
    # Of one that has moved to another audience, its viewers see the new value.
    lost = json.dumps(sorted(gone - there.keys()), separators=(",", ":"))
    moment = datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="milliseconds")
    moment = moment.replace("+00:00", "Z")
    head = '"whole":true,' if whole else ""
    text = f'{{"time":"{moment}",{head}"set":{{{",".join(there.values())}}},"gone":{lost}}}'
    return text.encode(errors="replace")
