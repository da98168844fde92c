"""About logins on the page."""

from __future__ import annotations

from podyd.api.binding import Call, WithSession, serves
from podyd.base.clock import iso_of
from podyd.base.errors import Conflict
from podyd.contract.operation import Log, Nothing
from podyd.contract.users import UserName
from podyd.contract.web import USER_LOGIN, USER_LOGINS, USER_LOGOUT, LoggedIn, LoginInfo, LogOut
from podyd.people.login import Logins
from podyd.people.web_sessions import halves


class WebRoutes:
    def __init__(self, *, logins: Logins) -> None:
        self._logins = logins

    @serves(USER_LOGIN)
    async def log_in(self, call: Call[Nothing]) -> WithSession[LoggedIn]:
        secret, session = await self._logins.open_page(call.proven, call.address)
        user = UserName(call.caller.name, int(call.caller.is_admin))
        expires = iso_of(session.expires)
        cookie, key = halves(secret)
        return WithSession(LoggedIn(user, expires, key), cookie)

    @serves(USER_LOGINS)
    async def logins(self, call: Call[Nothing]) -> list[LoginInfo]:
        return [
            LoginInfo(
                id=session.id,
                address=session.address,
                created=iso_of(session.created),
                last_used=iso_of(used),
                expires=iso_of(session.expires),
                here=session == call.proven.web,
            )
            for session, used in await self._logins.pages(call.proven)
        ]

    @serves(USER_LOGOUT)
    async def log_out(self, call: Call[LogOut]) -> Log | WithSession[Log]:
        own, wanted = call.proven.web, call.request.id
        if wanted is not None and (own is None or wanted != own.id):
            count = await self._logins.close_pages(call.proven, wanted)
            return Log(f"Logins on the page that are ended: {count}.")
        if own is None:
            raise Conflict(
                "This request is made without a login on the page.",
                advice="A token ends with /user/token-revoke.",
                code="no_session",
            )
        await self._logins.close_page(own)
        return WithSession(Log("You are logged out."), "")
