"""The project's profiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podyd.engine.rest import RestClient, members_of
from podyd.engine.types import Instance, Profile, profiles_of


class RestProfiles:
    """Asks the engine each time: an admin may have edited one."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def all(self) -> Mapping[str, Profile]:
        """The profiles by name."""
        profiles = await members_of(self._client, "/1.0/profiles")
        return {item["name"]: profile_of(item) for item in profiles}

    async def of(self, instance: Instance) -> list[Profile]:
        """An instance's profiles, in the order in which the engine applies them."""
        return profiles_of(instance.profiles, await self.all())


def profile_of(data: Mapping[str, Any]) -> Profile:
    """From the engine's JSON of one."""
    return Profile(data["name"], data["description"], data["config"], data["devices"])
