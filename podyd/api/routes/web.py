"""About logins on the page."""

from __future__ import annotations

from podyd.api.binding import Call, WithSession, serves
from podyd.base.clock import iso_of
from podyd.base.errors import Conflict
from podyd.contract.operation import Log, Nothing
from podyd.contract.users import UserName
from podyd.contract.web import USER_LOGIN, USER_LOGOUT, LoggedIn
from podyd.people.login import Logins
from podyd.people.web_sessions import halves


class WebRoutes:
    def __init__(self, *, logins: Logins) -> None:
        self._logins = logins

    @serves(USER_LOGIN)
    async def log_in(self, call: Call[Nothing]) -> WithSession[LoggedIn]:
        secret, session = await self._logins.open_page(call.proven)
        user = UserName(call.caller.name, int(call.caller.is_admin))
        expires = iso_of(session.expires)
        cookie, key = halves(secret)
        return WithSession(LoggedIn(user, expires, key), cookie)

    @serves(USER_LOGOUT)
    async def log_out(self, call: Call[Nothing]) -> WithSession[Log]:
        if call.proven.web is None:
            raise Conflict(
                "This request is made without a login on the page.",
                advice="A token ends with /user/token-revoke.",
                code="no_session",
            )
        await self._logins.close_page(call.proven.web)
        return WithSession(Log("You are logged out."), "")
