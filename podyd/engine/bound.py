"""Names that mean one instance alone, whoever has them later."""

from __future__ import annotations


class Bound(str):
    """A name in LXD, or a path, that is meant for one instance alone.

    LXD knows instances by their names, and soon a name may be another's: once `x` has deleted their
    pod `y-main`, `x-y` may make a pod `main`.
    """

    instance: str
    uuid: str


def bound(name: str, uuid: str) -> str:
    """The name of the instance that has this uuid; "" where LXD has not given it one yet."""
    if not uuid:
        return name
    found = Bound(name)
    found.instance, found.uuid = name, uuid
    return found


def uuid_of(name: str) -> str:
    """The uuid that a name is bound to, "" if it is not."""
    return name.uuid if isinstance(name, Bound) else ""


def meant_for(name: str, text: str) -> str:
    """A text that holds an instance's name, for that instance alone if the name is bound."""
    if not isinstance(name, Bound):
        return text
    found = Bound(text)
    found.instance, found.uuid = name.instance, name.uuid
    return found
