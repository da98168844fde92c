"""What is so now, for pages that stay open."""

from __future__ import annotations

from podyd.api.binding import Call, serves
from podyd.board.live import Live, Viewer
from podyd.contract.events import EVENTS
from podyd.contract.operation import Nothing


class EventRoutes:
    def __init__(self, *, live: Live) -> None:
        self._live = live

    @serves(EVENTS)
    async def events(self, call: Call[Nothing]) -> Viewer:
        member = call.login.member if call.login is not None else None
        return self._live.viewer(member, call.address)
