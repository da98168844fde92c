"""One Tornado handler for every operation of the API table.

It checks the method, the login and the parameters, makes the one call that the operation is bound
to, and turns what comes back, or whatever is raised, into JSON. A route without an access rule
cannot be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from asyncio import Future
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from podyd.api.address import source_of
from podyd.api.binding import Bound, Call, Headed, Text, WithSession
from podyd.api.credentials import credentials
from podyd.api.cross_site import (
    has_own_login,
    is_of_script,
    need_own_page,
    page_key,
    refuse_other_sites,
)
from podyd.api.parameters import parameters
from podyd.api.session_cookie import cookie_name, cookies_in, set_cookie
from podyd.api.under_way import Requests
from podyd.base.errors import (
    Forbidden,
    MethodNotAllowed,
    NotFound,
    PodydError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from podyd.base.longtext import HeldAnswer, json_pieces
from podyd.contract.admin import EndLeases
from podyd.contract.answers import JSON, PlainText
from podyd.contract.kinds import parse
from podyd.contract.operation import Access, AnyOperation, Ends, Proof
from podyd.model.member import Member
from podyd.model.naming import instance_name
from podyd.model.token import TokenScope
from podyd.people.login import Login, Logins
from podyd.people.notices import Notices
from podyd.people.origins import Source
from podyd.people.sessions import Sessions
from podyd.people.web_sessions import ended, is_web_cookie, is_web_secret, joined

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024**2
# A larger body is read and dropped up to here, so that the client sees the answer; a client that
# sends still more is disconnected.
MAX_DROPPED_BYTES = 64 * 1024**2
# A long answer is written in chunks, each of which takes a few ms to encode; it must be read within
# a time.
CHUNK_CHARACTERS = 64 * 1024
CHUNK_PIECES = 2000
TAKE_SECONDS = 300.0

AddressOf = Callable[[HTTPServerRequest], str]
IsEncrypted = Callable[[HTTPServerRequest], bool]
# A request that the page makes by itself, and not for its user, has this header.
BY_ITSELF = "X-Podyd-Live"


@stream_request_body
class JsonHandler(RequestHandler):
    """Reads a bounded body, and answers in JSON whatever happens."""

    SUPPORTED_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
    member_name = ""
    # The engine's name of the requested pod, unless another one had that name already.
    pod_name = ""
    # The code of the error that was answered.
    error_code = ""
    address_of: AddressOf
    # Whether the request is over once it is answered; an open WebSocket is not.
    is_over = True

    @property
    def address(self) -> str:
        """The client's address; not Tornado's `remote_ip`, which may be a proxy's."""
        return self.address_of(self.request)

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", JSON)
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.clear_header("Server")

    def prepare(self) -> Awaitable[None] | None:
        self._body = bytearray()
        self._too_large = False
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._too_large:
            return None
        self._body += chunk
        if len(self._body) > MAX_BODY_BYTES:
            self._too_large = True
            self._body.clear()
        return None

    def refuse(self, error: PodydError) -> None:
        """Answer with an error, now."""
        self.finish(self.refusal(error))

    def refusal(self, error: PodydError) -> bytes:
        """Set the status and the headers of an error; returns its body."""
        self.error_code = error.code
        self.set_status(error.status)
        # A browser that gets WWW-Authenticate for a script's request opens a dialog of its own.
        is_script = is_of_script(self.request.headers)
        for name, value in error.headers().items():
            if not (is_script and name == "WWW-Authenticate"):
                self.set_header(name, value)
        return json.dumps(error.body(), ensure_ascii=False).encode()

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log the traceback and the type of an exception; Tornado would also log the query.

        The exception's text is left out for the same reason: it may contain a password or a
        command.
        """
        if not isinstance(value, HTTPError):
            frames = "".join(traceback.format_tb(tb))
            log.error("%s crashed: %s\n%s", shown_path(self.request), type(value).__name__, frames)

    def crash(self, error: Exception) -> PodydError:
        """Log an unexpected exception; returns the error for the caller."""
        self.log_exception(type(error), error, error.__traceback__)
        return _crashed()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Called by Tornado for requests that it refuses itself, or after a crash."""
        refusal = PodydError(
            f"The request is not valid HTTP for podyd ({status_code}).", code="bad_request"
        )
        self.finish(json.dumps((_crashed() if status_code >= 500 else refusal).body()))


class Endpoint(JsonHandler):
    """Serves one operation."""

    # Whether a request says that its user is there, so that a login on the page goes on.
    is_use = True

    def initialize(
        self,
        operation: AnyOperation,
        bound: Bound,
        logins: Logins,
        requests: Requests,
        sessions: Sessions,
        notices: Notices,
        address_of: AddressOf,
        is_encrypted: IsEncrypted,
    ) -> None:
        self.address_of = address_of
        self._is_encrypted = is_encrypted
        self.sessions = sessions
        self.notices = notices
        self.operation = operation
        self.bound = bound
        self.logins = logins
        self.requests = requests
        self._task: asyncio.Task[Any] | None = None
        self._login: Login | None = None
        # Why the request was cancelled, unless its client has disconnected.
        self._refusal: PodydError | None = None

    def _begin(self, work: Coroutine[Any, Any, Any], *, waited_for: bool = True) -> None:
        """Start the request's work, or the next part of it, as a task."""
        self._task = asyncio.ensure_future(work)
        self.requests.add(self._task, waited_for=waited_for)
        self._bind()

    def _bind(self) -> None:
        """A task that ends when its client disconnects also ends with the login."""
        if self._login is not None and self._task is not None and self._ends_with_caller:
            self.sessions.add(self._task, self._login, self.address, self._end)

    def _end(self, why: PodydError | None = None) -> None:
        self._refusal = self._refusal or why
        if self._task is not None:
            # Later: a task that is cancelled before it has started could not send the reason.
            asyncio.get_running_loop().call_soon(self._task.cancel)

    async def _serve(self) -> None:
        if self.requests.ended:
            self.refuse(going_down())
            return
        self._begin(self._answer())
        assert self._task is not None
        try:
            answer = await self._task
        except PodydError as error:
            if error.status >= 500:
                log.warning("%s: %s", self.operation.path, error)
            self.refuse(error)
        except asyncio.CancelledError:
            # The client has disconnected and does not get the answer; or its login has ended, or
            # podyd is shutting down, and the answer says so.
            self.refuse(self._refusal or going_down())
        else:
            await self._give(answer)

    async def _give(self, answer: Any) -> None:
        if self._login is not None and (unread := self.notices.unread(self._login.member)):
            self.set_header("X-Podyd-Notices", str(unread))
        if isinstance(answer, Headed):
            for name, value in answer.headers.items():
                self.set_header(name, value)
            answer = answer.body
        if isinstance(answer, WithSession):
            self.set_header("Set-Cookie", set_cookie(self._cookie_name, answer.secret))
            answer = answer.body
        if isinstance(answer, HeldAnswer):
            await self._stream_answer(answer)
        elif isinstance(self.operation.answer, PlainText):
            self.set_header("Content-Type", self.operation.answer.media)
            self.finish(answer)
        elif isinstance(answer, Text):
            self.set_header("Content-Type", self.operation.answer.media)
            self.finish(answer.body)
        else:
            self.finish(json.dumps(answer, default=vars, ensure_ascii=False))

    async def _stream_answer(self, answer: HeldAnswer[Any]) -> None:
        """Send an answer in pieces; a client that does not read it in time is disconnected."""
        self._task = asyncio.ensure_future(self._write_pieces(answer.body))
        self.requests.add(self._task)
        try:
            await asyncio.wait({self._task}, timeout=TAKE_SECONDS)
            if self._task.done():
                self._task.result()
            else:
                self._cut()
        except (StreamClosedError, asyncio.CancelledError):
            self._cut()
        except Exception as error:  # Tornado would end half an answer as if it were whole.
            self.crash(error)
            self._cut()
        finally:
            self._task.cancel()
            answer.close()

    async def _write_pieces(self, answer: Any) -> None:
        held: list[str] = []
        size = 0
        for piece in json_pieces(answer):
            held.append(piece)
            size += len(piece)
            if size >= CHUNK_CHARACTERS or len(held) >= CHUNK_PIECES:
                self.write("".join(held))
                await self.flush()
                held, size = [], 0
        await self.finish("".join(held))

    def _cut(self) -> None:
        """Close the connection before the end of the answer, so that it is not taken for whole."""
        self.set_status(500)  # For the log.
        self._stream.close()

    @property
    def _stream(self) -> Any:
        return self.request.connection.stream  # type: ignore[union-attr]

    get = post = head = put = patch = delete = options = _serve

    async def _answer(self) -> Any:
        method = self.request.method or ""
        if method not in self.operation.methods:
            raise MethodNotAllowed(
                f"{self.operation.path} is served for {' and '.join(self.operation.methods)},"
                f" not for {method}.",
                allow=self.operation.methods,
            )
        if self._too_large:
            raise _too_large()
        refuse_other_sites(self.request.headers)
        login, password = await self._caller()
        self._login = login
        self._bind()
        request: Any = parse(
            self.operation.request,
            parameters(
                self.request.query,
                bytes(self._body),
                self.request.headers.get("Content-Type", ""),
            ),
        )
        if login is not None and hasattr(request, "ins"):
            self.pod_name = instance_name(login.member.name, request.ins, ())
        elif isinstance(request, EndLeases):
            self.pod_name = request.pod
        if login is None:
            return await self.bound(Call(request, address=self.address))
        async with self.requests.turn(login.member, self.operation):
            with self._shown(login.member):
                return await self.bound(Call(request, login, password, self.address))

    def _shown(self, member: Member) -> contextlib.AbstractContextManager[None]:
        """Whoever watches the pod sees meanwhile that it is being changed."""
        if self.operation.proof is not Proof.CHANGES or not self.pod_name:
            return contextlib.nullcontext()
        return self.requests.works.on(self.pod_name, self.operation.path, member)

    async def _caller(self) -> tuple[Login | None, str]:
        """The caller's login, None if they need none and have none; and their password, if it is
        proven by that."""
        if self._needs_login():
            return await self._log_in()
        return (
            await self._perhaps_log_in() if self.operation.access is Access.STATUS else (None, "")
        )

    def _needs_login(self) -> bool:
        """Whether who has no login is refused."""
        # X-Forwarded-For proves nothing here: any account of this host can send it.
        is_direct = "X-Forwarded-For" not in self.request.headers
        address = self.request.remote_ip or ""
        match self.operation.access:
            case Access.OPEN:
                return False
            case Access.SCRAPER:
                return not (is_direct and self.logins.may_scrape(address))
            case Access.STATUS:
                return not (is_direct and self.logins.may_see_status(address))
        return True

    async def _perhaps_log_in(self) -> tuple[Login | None, str]:
        """Who has a login sees more; with a cookie whose login has ended, a display on the wall
        goes on without."""
        if has_own_login(self.request.headers):
            return await self._log_in()
        try:
            return await self._log_in() if self._cookies else (None, "")
        except (Unauthorized, Forbidden):
            return None, ""

    @property
    def _cookie_name(self) -> str:
        host = self.request.headers.get("Host", "")
        return cookie_name(host, is_encrypted=self._is_encrypted(self.request))

    @property
    def _cookies(self) -> list[str]:
        """The cookies that may be that of a login on the page."""
        header = self.request.headers.get("Cookie", "")
        return [value for value in cookies_in(header, self._cookie_name) if is_web_cookie(value)]

    async def _credentials(self, source: Source) -> tuple[str, str]:
        """Name and password; or "" and a token, or the secret of a login on the page."""
        headers = self.request.headers
        has_own = has_own_login(headers)
        if not has_own and (cookies := self._cookies):
            need_own_page(headers, is_encrypted=self._is_encrypted(self.request))
            key = page_key(headers)
            secrets = [joined(cookie, key) for cookie in cookies]
            if not is_web_secret(secrets[0]):
                raise ended()
            return "", await self.logins.page_among(secrets, source)
        return credentials(headers["Authorization"] if has_own else "")

    async def _log_in(self) -> tuple[Login, str]:
        source = source_of(self.request, self.address)
        name, secret = await self._credentials(source)
        login = await self.logins.log_in(
            name,
            secret,
            source,
            may_be_expired=self.operation.proof is Proof.OLD_PASSWORD,
        )
        self.member_name = login.member.name
        for_admins = self.operation.access in (Access.ADMIN, Access.SCRAPER)
        if for_admins and not login.member.is_admin:
            raise Forbidden(f"{self.operation.path} is for admins.", code="not_an_admin")
        if login.token is None and login.web is None:
            return login, secret
        self._check_scope("all" if login.token is None else login.token.scope)
        if self.is_use and BY_ITSELF not in self.request.headers:
            self.logins.noticed(login)
        await self.logins.write_use(login)
        return login, ""

    def _check_scope(self, scope: TokenScope) -> None:
        if self.operation.accepts(scope):
            return
        if self.operation.proof in (Proof.PASSWORD, Proof.OLD_PASSWORD):
            raise Forbidden(
                f"{self.operation.path} needs your password, not a token or a login on the page.",
                code="password_needed",
            )
        does = "reaches into a pod" if self.operation.proof is Proof.INSIDE else "changes something"
        raise Forbidden(
            f"This token only reads, and {self.operation.path} {does}.",
            advice="Use one of scope all.",
            code="token_only_reads",
        )

    def finish(self, chunk: Any = None) -> Future[None]:
        """As Tornado's; during shutdown connections are not kept alive, so that clients make new
        ones to the next podyd."""
        if self.requests.ending:
            self.set_header("Connection", "close")
        return super().finish(chunk)

    @property
    def _ends_with_caller(self) -> bool:
        return self.operation.ends is not Ends.WHEN_DONE

    def on_connection_close(self) -> None:
        if self._ends_with_caller and self._task is not None:
            self._task.cancel()


class NoRoute(JsonHandler):
    """Answers where there is no route."""

    def initialize(self, suggest: Callable[[str], str], address_of: AddressOf) -> None:
        self.address_of = address_of
        self.suggest = suggest

    async def _serve(self) -> None:
        self.refuse(no_route(self.request.path, self.suggest))

    get = post = head = put = patch = delete = options = _serve


def no_route(path: str, suggest: Callable[[str], str]) -> NotFound:
    """The error where there is no route; `suggest` says of a path what to try instead."""
    return NotFound(
        f"There is no route {path[:100]!r}.", advice=suggest(path), code="no_such_route"
    )


def _too_large() -> TooLarge:
    return TooLarge(f"The body may have {MAX_BODY_BYTES} bytes at most.", limit=MAX_BODY_BYTES)


def _crashed() -> PodydError:
    return PodydError("Something went wrong inside podyd; it is in its log.")


def going_down() -> Unavailable:
    """The error for requests that are cancelled as podyd shuts down."""
    return Unavailable("podyd is restarting; the request was ended.", code="shutting_down")


def shown_path(request: HTTPServerRequest) -> str:
    """The path, shortened and escaped for logs."""
    return request.path[:200].encode("unicode_escape").decode()
