"""About accounts, passwords and tokens."""

from __future__ import annotations

from podyd.api.binding import Call, serves
from podyd.base.clock import iso_of
from podyd.contract.operation import Log, Nothing
from podyd.contract.users import (
    USER_CH_PASSWD,
    USER_INFO,
    USER_LIST,
    USER_NOTICES,
    USER_NOTICES_READ,
    USER_TOKEN,
    USER_TOKEN_REVOKE,
    USER_TOKENS,
    CreatedToken,
    ListNotices,
    NewPassword,
    NewToken,
    NoticeInfo,
    NoticesRead,
    QuotaInfo,
    RevokeToken,
    TokenInfo,
    UserInfo,
    UserName,
)
from podyd.model.member import Member
from podyd.model.token import Token
from podyd.people.login import Logins
from podyd.people.notices import Notices


class UserRoutes:
    def __init__(self, *, logins: Logins, notices: Notices) -> None:
        self._logins = logins
        self._notices = notices

    @serves(USER_INFO)
    async def user_info(self, call: Call[Nothing]) -> UserInfo:
        return UserInfo(
            user=_user_name(call.caller),
            quota=QuotaInfo(**vars(call.caller.quota)),
        )

    @serves(USER_LIST)
    async def user_list(self, call: Call[Nothing]) -> list[UserName]:
        return [_user_name(member) for member in await self._logins.all()]

    @serves(USER_CH_PASSWD)
    async def change_password(self, call: Call[NewPassword]) -> Log:
        count = await self._logins.change_password(call.caller, call.password, call.request.passwd)
        done = "The password is changed; the old one no longer works."
        return Log(f"{done} Tokens that are revoked: {count}." if count else done)

    @serves(USER_TOKEN)
    async def create_token(self, call: Call[NewToken]) -> CreatedToken:
        request = call.request
        secret, token = await self._logins.create_token(
            call.proven, request.name, request.days, request.scope
        )
        return CreatedToken(
            token=secret,
            id=token.id,
            name=token.name,
            scope=token.scope,
            created=iso_of(token.created),
            expires=iso_of(token.expires),
        )

    @serves(USER_TOKENS)
    async def tokens(self, call: Call[Nothing]) -> list[TokenInfo]:
        return [_token_info(token) for token in await self._logins.tokens(call.proven)]

    @serves(USER_TOKEN_REVOKE)
    async def revoke_token(self, call: Call[RevokeToken]) -> Log:
        request = call.request
        return Log(await self._logins.revoke_token(call.proven, request.id, request.user))

    @serves(USER_NOTICES)
    async def notices(self, call: Call[ListNotices]) -> list[NoticeInfo]:
        since, most = call.request.since or 0.0, call.request.limit
        notices = await self._notices.of(call.caller, since=since, most=most)
        return [
            NoticeInfo(
                id=item.id,
                time=iso_of(item.notice.time),
                pod=item.notice.pod,
                text=item.notice.text,
                count=item.notice.count,
                to="admins" if item.notice.account is None else "you",
                read=self._notices.is_read(call.caller, item.id),
            )
            for item in notices
        ]

    @serves(USER_NOTICES_READ)
    async def notices_read(self, call: Call[NoticesRead]) -> Log:
        await self._notices.read(call.caller, call.request.id)
        return Log(f"Notices that are not read: {self._notices.unread(call.caller)}.")


def _token_info(token: Token) -> TokenInfo:
    return TokenInfo(
        id=token.id,
        name=token.name,
        scope=token.scope,
        created=iso_of(token.created),
        expires=iso_of(token.expires),
        last_used=None if token.last_used is None else iso_of(token.last_used),
    )


def _user_name(member: Member) -> UserName:
    return UserName(member.name, int(member.is_admin))
