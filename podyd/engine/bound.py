"""Names that are bound to one instance, even if another one has the name later."""

from __future__ import annotations


class Bound(str):
    """A name in the engine, or a path, that is bound to one instance.

    The engine knows instances by their names, and soon a name may be another's: once `x` has
    deleted their pod `y-main`, `x-y` may make a pod `main`.
    """

    instance: str
    uuid: str


def bound(name: str, uuid: str) -> str:
    """The name of the instance with this uuid; "" if the engine has not given it one yet."""
    if not uuid:
        return name
    bound_name = Bound(name)
    bound_name.instance, bound_name.uuid = name, uuid
    return bound_name


def uuid_of(name: str) -> str:
    """The uuid that a name is bound to, "" if it is not."""
    return name.uuid if isinstance(name, Bound) else ""


def meant_for(name: str, text: str) -> str:
    """A text that contains an instance's name, bound to the same instance as the name."""
    if not isinstance(name, Bound):
        return text
    bound_text = Bound(text)
    bound_text.instance, bound_text.uuid = name.instance, name.uuid
    return bound_text
