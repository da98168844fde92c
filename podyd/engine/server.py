"""The engine itself, the host that it runs on, and what podyd's project may use of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podyd.engine.gpu_devices import wants_cdi
from podyd.engine.rest import RestClient, project_path
from podyd.engine.types import Allowed, PciCard

# Of a restricted project.
DISK = "restricted.devices.disk"
PATHS = "restricted.devices.disk.paths"
UIDS, GIDS = "restricted.idmap.uid", "restricted.idmap.gid"


class RestServer:
    """The engine's server, without a cache: a request takes 1 ms, and 28 ms for the cards."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    @property
    def project(self) -> str:
        """The name of podyd's project."""
        return self._client.project

    @property
    def kind(self) -> str:
        """Which engine it is, by its word in podyd.yaml."""
        return self._client.dialect.key

    async def version(self) -> str | None:
        """The engine's version; None if it does not report one."""
        version: str | None = (await self._client.get("/1.0"))["environment"].get("server_version")
        return version

    async def trusts_podyd(self) -> bool:
        """Whether the engine trusts podyd's certificate."""
        return bool((await self._client.get("/1.0"))["auth"] == "trusted")

    async def cards(self) -> tuple[PciCard, ...]:
        """The host's graphics cards of all vendors."""
        cards = (await self._client.get("/1.0/resources"))["gpu"]["cards"] or []
        # Asked each time: it may have been updated since.
        by_cdi = wants_cdi((await self._client.get("/1.0"))["api_extensions"])
        return tuple(card_of(item, by_cdi=by_cdi) for item in cards)

    async def allowed(self) -> Allowed:
        """What the project's instances may use of the host."""
        config = (await self._client.get(project_path(self.project)))["config"]
        return Allowed(
            *(frozenset(config.get(key, "").split(",")) - {""} for key in (PATHS, UIDS, GIDS))
        )


def card_of(data: Mapping[str, Any], *, by_cdi: bool = False) -> PciCard:
    """From the engine's JSON of a card; without nvidia-container-cli it knows no UUIDs, and it
    leaves out the address of one at USB."""
    nvidia, drm = data.get("nvidia") or {}, data.get("drm") or {}
    numbers = (nvidia.get("card_device"), drm.get("card_device"), drm.get("render_device"))
    return PciCard(
        data.get("pci_address", ""),
        data.get("vendor_id", ""),
        nvidia.get("uuid", ""),
        nvidia.get("model", data.get("product", "")),
        frozenset(filter(None, numbers)),
        by_cdi,
    )
