"""Calls about accounts: members, quotas, passwords and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from podyd.base.clock import MAX_HOURS
from podyd.contract.answers import Json
from podyd.contract.kinds import (
    Duration,
    Moment,
    Password,
    Text,
    TokenId,
    UserLogin,
    Whole,
    Word,
    param,
)
from podyd.contract.operation import GET, POST, Access, Log, Nothing, Operation, Proof
from podyd.model.token import TokenScope

MAX_DAYS = MAX_HOURS / 24
# More than are kept for one reader, an admin.
MAX_NOTICES = 1000


@dataclass(frozen=True)
class NewPassword:
    passwd: str = param(Password(), "the new password")


@dataclass(frozen=True)
class NewToken:
    name: str = param(
        Text(100), "a description of the token, such as the machine that will store it"
    )
    days: float | None = param(
        Duration("days", MAX_DAYS),
        "after how many days it expires; without it, 30 or the server's maximum if that is less",
        default=None,
    )
    scope: TokenScope = param(
        Word(("all", "read")),
        "all: every call that the user may make, except those that need the password; read: only"
        " calls that read data of podyd itself, not files, logs or output from inside a pod",
        default="all",
    )


@dataclass(frozen=True)
class RevokeToken:
    id: str = param(TokenId(), "the id of a token from /user/tokens, or all")
    user: str | None = param(
        UserLogin(),
        "the owner of the token; only admins may name another user; without it, the caller",
        default=None,
    )


@dataclass(frozen=True)
class ListNotices:
    since: float | None = param(
        Moment(),
        "only notices of this time and later: ISO 8601, or how long ago, such as 2d",
        default=None,
    )
    limit: int = param(
        Whole(1, MAX_NOTICES), "at most so many, the newest; without it, all", default=MAX_NOTICES
    )


@dataclass(frozen=True)
class NoticesRead:
    id: int = param(Whole(1, 10**12), "this notice and all with a lower id become read")


@dataclass(frozen=True)
class UserName:
    """A user. `is_admin` is 1 or 0."""

    name: str
    is_admin: int


@dataclass(frozen=True)
class QuotaInfo:
    """What a user may have; -1 is no limit.

    For each pod: `memory_limit` in bytes, `cpu_limit` in CPUs, `disk_limit` in bytes,
    `max_snapshots`, `max_ports` (TCP ports of the host that are forwarded to it). For all pods of
    the user together: `max_pods`, `gpu_count`, `disk_total` in bytes. For all images that the user
    made with /pod/commit: `max_images`, and `image_size`, their size as stored in bytes.
    """

    max_pods: int
    gpu_count: int
    memory_limit: int
    cpu_limit: int
    disk_limit: int
    disk_total: int
    max_snapshots: int
    max_ports: int
    max_images: int
    image_size: int


@dataclass(frozen=True)
class UserInfo:
    user: UserName
    quota: QuotaInfo


@dataclass(frozen=True)
class CreatedToken:
    """A new token. `token` is the secret; podyd stores only its hash and cannot show it again."""

    token: str
    id: str
    name: str
    scope: TokenScope
    created: str
    expires: str


@dataclass(frozen=True)
class TokenInfo:
    """A token without its secret. `last_used` is exact to a minute, null if it was never used."""

    id: str
    name: str
    scope: TokenScope
    created: str
    expires: str
    last_used: str | None


NoticeReader = Literal["you", "admins"]


@dataclass(frozen=True)
class NoticeInfo:
    """A message of podyd to the caller (`to` is you) or to all admins, kept for 30 days.

    A later notice has a higher `id`. A text that is repeated within a minute is one notice: `count`
    is how often it was sent, `time` when last. `pod` is the instance's name in the engine, "" if
    the notice is about no pod. `read`: whether the caller has marked it as read
    (/user/notices-read).
    """

    id: int
    time: str
    pod: str
    text: str
    count: int
    to: NoticeReader
    read: bool


USER_INFO = Operation(
    "/user/info",
    GET,
    Nothing,
    Json(UserInfo),
    "The caller, and their quota.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
USER_LIST = Operation(
    "/user/list",
    GET,
    Nothing,
    Json(list[UserName]),
    "All members: the users who may use podyd.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
USER_CH_PASSWD = Operation(
    "/user/ch-passwd",
    GET + POST,
    NewPassword,
    Json(Log),
    "Change the caller's Linux password, which may have expired, and revoke all of their tokens.",
    access=Access.MEMBER,
    proof=Proof.OLD_PASSWORD,
    takes_turns=False,
)
USER_TOKEN = Operation(
    "/user/token",
    POST,
    NewToken,
    Json(CreatedToken),
    "Create a token, which a program can use in place of the password.",
    access=Access.MEMBER,
    proof=Proof.PASSWORD,
    takes_turns=False,
)
USER_TOKENS = Operation(
    "/user/tokens",
    GET,
    Nothing,
    Json(list[TokenInfo]),
    "The caller's tokens.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
USER_TOKEN_REVOKE = Operation(
    "/user/token-revoke",
    POST,
    RevokeToken,
    Json(Log),
    "Revoke a token, or all tokens; a token can revoke only itself.",
    access=Access.MEMBER,
    proof=Proof.ANY_TOKEN,
    takes_turns=False,
)
USER_NOTICES = Operation(
    "/user/notices",
    GET,
    ListNotices,
    Json(list[NoticeInfo]),
    "The notices of podyd to the caller, for admins also those to all admins, the newest last. The"
    " header X-Podyd-Notices of a JSON answer that is no error is the number of unread ones, absent"
    " if there are none.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
USER_NOTICES_READ = Operation(
    "/user/notices-read",
    POST,
    NoticesRead,
    Json(Log),
    "Mark the caller's notices as read.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
