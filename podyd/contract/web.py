"""Calls that were made for the page: the login of a browser."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.kinds import LoginId, param
from podyd.contract.operation import GET, POST, Access, Log, Nothing, Operation, Proof
from podyd.contract.users import UserName


@dataclass(frozen=True)
class LogOut:
    id: str | None = param(
        LoginId(),
        "a login of /user/logins, or others: all but the one that the request is made with; without"
        " it, that one",
        default=None,
    )


@dataclass(frozen=True)
class LoginInfo:
    """A login of the caller's on the page: from which address it was made, when it was last used,
    exact to a minute, when it ends at the latest, and whether this request is made with it
    (`here`)."""

    id: str
    address: str
    created: str
    last_used: str
    expires: str
    here: bool


@dataclass(frozen=True)
class LoggedIn:
    """A login on the page. At `expires` it ends at the latest. Half of its secret is in the cookie,
    the other one is `key`, which requests have in the header X-Podyd-Page, and WebSockets as the
    subprotocol `podyd-key.<key>` beside `podyd`."""

    user: UserName
    expires: str
    key: str


USER_LOGIN = Operation(
    "/user/login",
    POST,
    Nothing,
    Json(LoggedIn),
    "Log in on the page: the answer sets a cookie, which with the key stands for the password in"
    " requests that the page makes, until /user/logout, 30 days, or web.idle_hours without a"
    " request.",
    access=Access.MEMBER,
    proof=Proof.PASSWORD,
)
USER_LOGINS = Operation(
    "/user/logins",
    GET,
    Nothing,
    Json(list[LoginInfo]),
    "The caller's logins on the page, the last one used first.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
USER_LOGOUT = Operation(
    "/user/logout",
    POST,
    LogOut,
    Json(Log),
    "End a login on the page: the one that the request is made with, whose cookie is removed, or"
    " others of the caller's.",
    access=Access.MEMBER,
    proof=Proof.ANY_TOKEN,
)
