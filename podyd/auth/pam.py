"""PAM: checking a password and changing one. The only importer of the library `pam`.

Everything here may block for as long as LDAP does, and must run in a process of its own that can
be killed. Linux-PAM's interface is in pam(3), pam_conv(3) and pam_fail_delay(3).
"""

from __future__ import annotations

import ctypes
import enum
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pam
from pam.__internals import PamConv, PamHandle, PamResponse, conv_func

SERVICE_DIR = Path("/etc/pam.d")

# The limit of libxcrypt: CRYPT_MAX_PASSPHRASE_SIZE (512) counts the final NUL.
PASSWORD_MAX_BYTES = 511

# Debian's and Ubuntu's hash and its default cost, from crypt_gensalt(3); it protects nothing.
_SALT = b"$y$j9T$kx4NtF46n/LNiFqQUELOh/"

_PAM_FAIL_DELAY = 10  # from security/_pam_types.h; python-pam does not name it

_fail_delay_func = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)

_BACKEND_FAILURES = frozenset(
    {
        pam.PAM_ABORT,
        pam.PAM_AUTHINFO_UNAVAIL,
        pam.PAM_AUTHTOK_LOCK_BUSY,
        pam.PAM_BUF_ERR,
        pam.PAM_CONV_ERR,
        pam.PAM_CRED_UNAVAIL,
        pam.PAM_MODULE_UNKNOWN,
        pam.PAM_OPEN_ERR,
        pam.PAM_SERVICE_ERR,
        pam.PAM_SYMBOL_ERR,
        pam.PAM_SYSTEM_ERR,
        pam.PAM_TRY_AGAIN,
    }
)

_REFUSALS = {
    pam.PAM_ACCT_EXPIRED: "The account has expired.",
    pam.PAM_AUTHTOK_EXPIRED: "The password has expired, and the account is locked because of it.",
    pam.PAM_NEW_AUTHTOK_REQD: "The password has expired and must be changed.",
}


class Outcome(enum.Enum):
    """PAM's answer."""

    OK = "ok"
    DENIED = "denied"  # wrong password, unknown user, too many attempts: deliberately one answer
    REFUSED = "refused"  # the password is right, but the account may not log in now
    EXPIRED = "expired"  # the password is right, and must be changed before anything else
    WEAK = "weak"  # the new password breaks a rule
    UNAVAILABLE = "unavailable"  # PAM or its backend does not work


@dataclass(frozen=True)
class Result:
    """An outcome; `reason` is a sentence for the user, empty for OK and DENIED."""

    outcome: Outcome
    reason: str = ""


_OK = Result(Outcome.OK)
_DENIED = Result(Outcome.DENIED)


def check(service: str) -> Result:
    """OK if PAM has `service`, else UNAVAILABLE with the reason.

    It also loads libpam, for children that are forked later.
    """
    try:
        _library()
    except (OSError, AttributeError):  # no such file; or python-pam opened Python itself instead
        return Result(Outcome.UNAVAILABLE, "libpam cannot be loaded; is libpam0g installed?")
    path = SERVICE_DIR / service
    # Without its file PAM would silently use the policy of /etc/pam.d/other.
    if not path.is_file():
        return Result(Outcome.UNAVAILABLE, f"{path} is missing; `podyd setup` installs it.")
    return _OK


@dataclass(frozen=True)
class Secret:
    """The state of an account's password, if this host stores it, in shadow(5).

    `mark` changes with each new password, also an equal one, and reveals nothing about it; "" if
    the password is stored elsewhere.
    """

    mark: str = ""
    locked: bool = False


class _Shadow(ctypes.Structure):
    """The first members of struct spwd, of getspnam(3)."""

    _fields_ = (("name", ctypes.c_char_p), ("password", ctypes.c_char_p))


def secret_of(user: str) -> Secret:
    """The entry of an account in shadow(5). Not by spwd, which Python 3.13 has removed."""
    find = ctypes.CDLL(None).getspnam
    find.restype = ctypes.POINTER(_Shadow)
    entry = find(user.encode())
    if not entry:
        return Secret()
    text: bytes = entry.contents.password
    # usermod(8) locks by a '!' prefix.
    password = text.lstrip(b"!")
    # It includes the salt, so the password cannot be found by guessing.
    mark = hashlib.sha256(password).hexdigest()[:32] if password.startswith(b"$") else ""
    return Secret(mark, locked=password != text)


def may_log_in(user: str, service: str, remote_address: str = "") -> Result:
    """Whether the account may log in now: OK, REFUSED, EXPIRED, UNAVAILABLE.

    By PAM's account rules, without authentication. They do not check a lock: `secret_of` does.
    """
    ready = check(service)
    if ready.outcome is not Outcome.OK:
        return ready
    with _Transaction(service, user, _no_answer, remote_address) as dialog:
        return _judge(dialog, dialog.account())


def authenticate(user: str, password: str, service: str, remote_address: str = "") -> Result:
    """Check the password and that the account may log in now: any outcome but WEAK."""
    ready = check(service)
    if ready.outcome is not Outcome.OK:
        return ready
    if not user or not password or not all(map(_fits, (user, password, remote_address))):
        return _DENIED
    with _Transaction(service, user, lambda _prompt: password, remote_address) as dialog:
        code = dialog.authenticate()
        if code in _BACKEND_FAILURES:
            return Result(Outcome.UNAVAILABLE, dialog.describe(code))
        # With `nullok`, any password is accepted for an account without one, and none is asked for.
        if code != pam.PAM_SUCCESS or not dialog.asked:
            return _DENIED
        dialog.complaints.clear()
        return _judge(dialog, dialog.account())


def change_password(user: str, uid: int, old: str, new: str, service: str) -> Result:
    """Change the password as passwd(1) would for the user: any outcome but EXPIRED.

    The process must end then: its real uid is the user's afterwards.
    """
    if not _fits(new):
        return Result(Outcome.WEAK, "The password cannot be used.")
    # pam_unix asks for no old password where the account has none, so it is checked first.
    verdict = authenticate(user, old, service)
    if verdict.outcome not in (Outcome.OK, Outcome.EXPIRED):
        return verdict
    # For a real uid of 0, the administrator's, modules apply no rules.
    os.setresuid(uid, 0, 0)

    def answer(prompt: str) -> str:
        return old if _asks_for_old(prompt) else new

    with _Transaction(service, user, answer) as dialog:
        code = dialog.change()
    if code == pam.PAM_SUCCESS:
        return _OK
    if code in (pam.PAM_AUTH_ERR, pam.PAM_AUTHTOK_RECOVER_ERR) and not dialog.complaints:
        return _DENIED
    if code in _BACKEND_FAILURES:
        return Result(Outcome.UNAVAILABLE, dialog.reason(code))
    return Result(Outcome.WEAK, dialog.reason(code))


def spend_time(password: str) -> None:
    """Hash the password, so that a name that PAM is not asked about takes about as long.

    The times are not equal: LDAP and other hashes have their own. A server on a network must also
    answer all failures after one fixed time.
    """
    if _fits(password):
        ctypes.CDLL("libcrypt.so.1").crypt(password.encode(), _SALT)


def _judge(dialog: _Transaction, code: int) -> Result:
    """The result for PAM's code for an account."""
    if code == pam.PAM_SUCCESS:
        return _OK
    if code in _BACKEND_FAILURES:
        return Result(Outcome.UNAVAILABLE, dialog.describe(code))
    outcome = Outcome.EXPIRED if code == pam.PAM_NEW_AUTHTOK_REQD else Outcome.REFUSED
    return Result(outcome, _REFUSALS.get(code) or dialog.reason(code))


def _no_answer(_prompt: str) -> str:
    raise ValueError("a question, where there is nobody to ask")


def _fits(text: str) -> bool:
    """Whether the text can be passed to C as a whole: it would end at a NUL."""
    try:
        return "\0" not in text and len(text.encode()) <= PASSWORD_MAX_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can have
        return False


def _asks_for_old(prompt: str) -> bool:
    words = prompt.lower()
    if any(word in words for word in ("new", "retype", "again")):
        return False
    return "current" in words or "old" in words


class _Transaction:
    """One PAM handle, from pam_start to pam_end.

    python-pam's own authenticate() does not tell whether auth or account failed nor the kind of
    each message, and cannot change a password; its bindings to libpam are used instead.
    """

    def __init__(
        self, service: str, user: str, answer: Callable[[str], str], remote: str = ""
    ) -> None:
        self.asked = False
        self.complaints: list[str] = []
        self._library = _library()
        self._service = service.encode()
        self._user = user.encode()
        self._remote = remote.encode()
        self._answer = answer
        self._handle = PamHandle()
        self._last = pam.PAM_SUCCESS
        # libpam keeps pointers to these; they must live as long as the handle.
        self._conversation = PamConv(conv_func(self._converse), None)
        self._no_delay = _fail_delay_func(lambda _status, _microseconds, _data: None)

    def __enter__(self) -> _Transaction:
        self._last = self._library.pam_start(
            self._service,
            self._user,
            ctypes.byref(self._conversation),
            ctypes.byref(self._handle),
        )
        if self._last == pam.PAM_SUCCESS:
            # Else libpam sleeps two seconds after a wrong password, and a child with it.
            self._set_item(_PAM_FAIL_DELAY, ctypes.cast(self._no_delay, ctypes.c_void_p))
            if self._remote:
                self._set_item(pam.PAM_RHOST, ctypes.c_char_p(self._remote))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle.handle:
            self._library.pam_end(self._handle, self._last)
            self._handle = PamHandle()

    def authenticate(self) -> int:
        """PAM's code for the password."""
        flags = pam.PAM_DISALLOW_NULL_AUTHTOK
        return self._step(self._library.pam_authenticate, flags)

    def account(self) -> int:
        """PAM's code for whether the account may log in now."""
        return self._step(self._library.pam_acct_mgmt, pam.PAM_DISALLOW_NULL_AUTHTOK)

    def change(self) -> int:
        """PAM's code for the change of the password."""
        return self._step(_chauthtok(), 0)

    def describe(self, code: int) -> str:
        """libpam's text for a code; it needs no handle."""
        text: bytes = self._library.pam_strerror(self._handle, code)
        return f"PAM: {text.decode(errors='replace').rstrip('.')}."

    def reason(self, code: int) -> str:
        """The modules' error messages, each once; if there are none, the text for the code."""
        return " ".join(dict.fromkeys(self.complaints)) or self.describe(code)

    def _set_item(self, item: int, value: object) -> None:
        self._last = self._library.pam_set_item(self._handle, item, value)

    def _step(self, function: Callable[[Any, int], int], flags: int) -> int:
        if self._last == pam.PAM_SUCCESS:  # else pam_start failed: there is no handle to use
            self._last = function(self._handle, flags)
        return int(self._last)

    def _converse(self, count: int, messages: Any, responses: Any, _data: object) -> int:
        """pam_conv(3). It must not raise: ctypes would print the exception and return success."""
        try:
            replies = [self._reply(messages[i].contents) for i in range(count)]
            responses[0] = _allocate_responses(replies)
        except Exception:
            return int(pam.PAM_CONV_ERR)
        return int(pam.PAM_SUCCESS)

    def _reply(self, message: Any) -> bytes | None:
        text = (message.msg or b"").decode(errors="replace").strip()
        if message.msg_style == pam.PAM_PROMPT_ECHO_OFF:
            self.asked = True
            return self._answer(text).encode()
        if message.msg_style == pam.PAM_ERROR_MSG and text:
            self.complaints.append(text)
        if message.msg_style in (pam.PAM_ERROR_MSG, pam.PAM_TEXT_INFO):
            return None
        raise ValueError("a question that a password does not answer")


def _allocate_responses(replies: list[bytes | None]) -> Any:
    """The array of answers, in memory of malloc(3), which the module frees."""
    libc = _library().libc
    libc.strdup.restype = ctypes.c_void_p
    libc.strdup.argtypes = [ctypes.c_char_p]
    address = libc.calloc(len(replies), ctypes.sizeof(PamResponse))
    array = ctypes.cast(address, ctypes.POINTER(PamResponse))
    for i, reply in enumerate(replies):
        if reply is not None:
            array[i].resp = libc.strdup(reply)
    return array


@functools.cache
def _library() -> Any:
    """libpam. Loaded once per process, as the search runs ldconfig."""
    return pam.PamAuthenticator()


@functools.cache
def _chauthtok() -> Any:
    """pam_chauthtok(3), which python-pam does not bind."""
    function = ctypes.CDLL("libpam.so.0").pam_chauthtok
    function.restype = ctypes.c_int
    function.argtypes = [PamHandle, ctypes.c_int]
    return function
