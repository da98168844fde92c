"""Calls about accounts: members, quotas, passwords and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.base.clock import MAX_HOURS
from podyd.contract.answers import Json
from podyd.contract.kinds import Duration, Password, Text, TokenId, UserLogin, Word, param
from podyd.contract.operation import GET, POST, Access, Log, Nothing, Operation, Proof
from podyd.model.token import TokenScope

MAX_DAYS = MAX_HOURS / 24


@dataclass(frozen=True)
class NewPassword:
    passwd: str = param(Password(), "the new password")


@dataclass(frozen=True)
class NewToken:
    name: str = param(Text(100), "what it is for, such as the machine that will keep it")
    days: float | None = param(
        Duration("days", MAX_DAYS), "for how long it works; without it 30", default=None
    )
    scope: TokenScope = param(
        Word(("all", "read")),
        "all that you may do, or read: what only looks, and at nothing that is in a pod",
        default="all",
    )


@dataclass(frozen=True)
class RevokeToken:
    id: str = param(TokenId(), "a token's id, or all")
    user: str | None = param(UserLogin(), "whose; somebody else's for admins", default=None)


@dataclass(frozen=True)
class UserName:
    name: str
    is_admin: int


@dataclass(frozen=True)
class QuotaInfo:
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
    """A new token; `token` is the secret itself, and is shown this once."""

    token: str
    id: str
    name: str
    scope: TokenScope
    created: str
    expires: str


@dataclass(frozen=True)
class TokenInfo:
    """A token without what is secret; `last_used` to the minute, null if it never was."""

    id: str
    name: str
    scope: TokenScope
    created: str
    expires: str
    last_used: str | None


USER_INFO = Operation(
    "/user/info",
    GET,
    Nothing,
    Json(UserInfo),
    "The caller and their quota.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
USER_LIST = Operation(
    "/user/list",
    GET,
    Nothing,
    Json(list[UserName]),
    "The members of this node.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
USER_CH_PASSWD = Operation(
    "/user/ch-passwd",
    GET + POST,
    NewPassword,
    Json(Log),
    "Change the caller's own Linux password, also one that has expired, and revoke their tokens.",
    access=Access.MEMBER,
    proof=Proof.OLD_PASSWORD,
    takes_turns=False,
)
USER_TOKEN = Operation(
    "/user/token",
    POST,
    NewToken,
    Json(CreatedToken),
    "Make a token, which a program can have instead of the password.",
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
    "Revoke a token, or all; with a token none but itself.",
    access=Access.MEMBER,
    proof=Proof.ANY_TOKEN,
    takes_turns=False,
)
