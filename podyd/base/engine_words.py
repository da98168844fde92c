"""What the engine below podyd is called in sentences, hints and logs: LXD or Incus.

A process talks to one engine, and podyd.engine.dialect says at its start which. What is fixed when
it is imported (help, descriptions of the API) says "the engine".
"""

from __future__ import annotations


class EngineWords:
    """The words; as a string, the engine's name."""

    def __init__(self) -> None:
        self.say("LXD", command="lxc", service="lxd", group="lxd")

    def say(self, name: str, *, command: str, service: str, group: str) -> None:
        """Say from now on that it is this one.

        `command` is what admins type (`lxc`), `service` its unit in systemd without `.service`,
        and members of `group` may do everything in it.
        """
        self._name = name
        self.command = command
        self.service = service
        self.group = group

    def __str__(self) -> str:
        return self._name

    def __format__(self, specification: str) -> str:
        return format(self._name, specification)


ENGINE = EngineWords()
