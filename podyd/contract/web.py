"""Calls that were made for the page: the login of a browser."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.operation import POST, Access, Log, Nothing, Operation, Proof
from podyd.contract.users import UserName


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
USER_LOGOUT = Operation(
    "/user/logout",
    POST,
    Nothing,
    Json(Log),
    "End the login on the page that the request is made with, and remove its cookie.",
    access=Access.MEMBER,
    proof=Proof.ANY_TOKEN,
)
