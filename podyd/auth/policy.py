"""Whom `podyd auth` lets log in: its questions to PAM and NSS, and its answers."""

from __future__ import annotations

import pwd
import time
from dataclasses import dataclass, replace
from syslog import LOG_INFO, LOG_NOTICE, LOG_WARNING

from podyd.auth import pam
from podyd.auth.accounts import account_of, all_accounts, find, has_login_shell
from podyd.auth.log import log, quoted
from podyd.auth.protocol import (
    AllAccounts,
    Error,
    LoginRequest,
    OneAccount,
    Passwd,
    Ping,
    Reply,
    Request,
)

# Of what a person could want to see among many logins; else LOG_INFO.
_LEVELS = {
    Error.DENIED: LOG_NOTICE,
    Error.REFUSED: LOG_NOTICE,
    Error.EXPIRED: LOG_NOTICE,
    Error.UNAVAILABLE: LOG_WARNING,
}


@dataclass(frozen=True)
class Policy:
    """How the helper judges: `limit_s` is the longest that one request may take."""

    service: str
    allowed_uids: frozenset[int]
    max_children: int
    limit_s: float
    min_uid: int


def perform(request: Request, policy: Policy) -> Reply:
    """Do what was asked; it may block for as long as a PAM or NSS module does."""
    match request:
        case LoginRequest() | Passwd() | OneAccount():
            return judge(request, policy)
        case AllAccounts():
            return Reply(accounts=all_accounts(policy.min_uid))
        case Ping():
            return Reply()


def judge(request: LoginRequest | Passwd | OneAccount, policy: Policy) -> Reply:
    """Answer about one account, and log what was said."""
    began = time.monotonic()
    entry = find(request.user, policy.min_uid)
    match request:
        case LoginRequest():
            what, remote, answer = "login", request.remote, _login(request, entry, policy)
        case OneAccount():
            what, remote, answer = "account", request.remote, _one(request, entry, policy)
        case Passwd():
            what, remote, answer = "passwd", "-", _passwd(request, entry, policy)
    outcome = answer.error.value if answer.error else "ok"
    took_ms = (time.monotonic() - began) * 1000
    # An unknown name may be a password that was typed in the wrong place.
    who = quoted(entry.pw_name) if entry else "somebody unknown"
    level = _LEVELS.get(answer.error, LOG_INFO) if answer.error else LOG_INFO
    log(f"{what} {who} from {quoted(remote)}: {outcome}, {took_ms:.0f} ms", level)
    return answer


def _login(request: LoginRequest, entry: pwd.struct_passwd | None, policy: Policy) -> Reply:
    if entry is None:
        pam.spend_time(request.password)
        return Reply(Error.DENIED)
    # Before: a password that changes meanwhile must not leave its mark on this login.
    secret = pam.secret_of(entry.pw_name)
    result = pam.authenticate(entry.pw_name, request.password, policy.service, request.remote)
    return _admit(entry, secret, result)


def _one(request: OneAccount, entry: pwd.struct_passwd | None, policy: Policy) -> Reply:
    if entry is None:
        return Reply(Error.DENIED)
    secret = pam.secret_of(entry.pw_name)
    if secret.locked:
        return Reply(Error.REFUSED, "The account is locked.")
    result = pam.may_log_in(entry.pw_name, policy.service, request.remote)
    return _admit(entry, secret, result)


def _admit(entry: pwd.struct_passwd, secret: pam.Secret, result: pam.Result) -> Reply:
    if result.outcome not in (pam.Outcome.OK, pam.Outcome.EXPIRED):
        return _from_pam(result)
    if not has_login_shell(entry):  # only after all other checks have passed
        return Reply(Error.REFUSED, "The account has no login shell.")
    return replace(_from_pam(result), account=account_of(entry), mark=secret.mark)


def _passwd(request: Passwd, entry: pwd.struct_passwd | None, policy: Policy) -> Reply:
    problem = _unusable(request.new)
    if problem:
        return Reply(Error.INVALID, problem)
    if entry is None:
        pam.spend_time(request.old)
        return Reply(Error.DENIED)
    return _from_pam(
        pam.change_password(entry.pw_name, entry.pw_uid, request.old, request.new, policy.service)
    )


def _from_pam(result: pam.Result) -> Reply:
    if result.outcome is pam.Outcome.OK:
        return Reply()
    return Reply(Error(result.outcome.value), result.reason)


def _unusable(password: str) -> str:
    """Why this cannot be a password at all, or nothing."""
    if not password:
        return "The new password is empty."
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in password):
        return "The new password holds a control character, such as a line break."
    try:
        length = len(password.encode())
    except UnicodeEncodeError:
        return "The new password is not valid Unicode."
    if length > pam.PASSWORD_MAX_BYTES:
        return f"The new password is longer than {pam.PASSWORD_MAX_BYTES} bytes."
    return ""
