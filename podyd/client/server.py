"""One podyd, over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from podyd import __version__
from podyd.client import kept
from podyd.client.base import DEFAULT, Base
from podyd.client.body import PIECE_BYTES, AnsweredEarly, Sent
from podyd.client.failure import Away, Refused, Usage, WrongLogin, whole_text
from podyd.client.login import Login, by_password, log_in, with_password

CONNECT_SECONDS = 10.0
# What only looks is soon answered. A change takes what it takes: an image, a command of hours.
GET_SECONDS = 60.0
# A file stands still no longer, in either direction.
FILE_SECONDS = 300.0
COMPLETE_SECONDS = 1.0

TEXTS = ("text/plain", "text/csv")
JSON = "application/json"
Pairs = Sequence[tuple[str, str]]

# X509_V_ERR_…, as ssl.SSLCertVerificationError.verify_code has them; for all others the CA is not
# known here.
EXPIRED, WRONG_HOST, WRONG_ADDRESS = 10, 62, 64
ADVICE = {
    EXPIRED: "tell its admin",
    WRONG_HOST: "PODY_API_BASE needs the name that the certificate is for",
    WRONG_ADDRESS: "PODY_API_BASE needs the name that the certificate is for",
}
TRUST_IT = "give the lab's CA with --cacert FILE or PODY_CA=FILE"


@dataclass(frozen=True)
class Answer:
    """What podyd said: its bytes, and what they mean, a `str` where they are plain text.

    `hint` is what it says beside that, as what to do where a list is empty.
    """

    body: bytes
    data: Any
    hint: str = ""


def _nothing() -> None: ...


@dataclass(frozen=True)
class _Request:
    """What podyd is asked; `sent` is called once it has that, before its answer."""

    method: str
    route: str
    query: str = ""
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: Callable[[], None] = _nothing


class Server:
    """The podyd at `base`; `cacert` is the file with the only CA to trust, else the system's.

    `log_in` is asked for the login once one is needed.
    """

    def __init__(
        self, base: Base, cacert: str | None, user_agent: str, log_in: Callable[[Base], Login]
    ) -> None:
        self.base = base
        self._cacert = cacert
        self._user_agent = user_agent
        self._log_in = log_in
        self._login: Login | None = None
        self._patience = CONNECT_SECONDS
        # How many notices the caller has not read, by the last answer.
        self.unread = 0

    @property
    def user(self) -> str:
        """Who has called; "" before the first call."""
        return self._login.user if self._login else ""

    @property
    def asks_nobody(self) -> bool:
        """Whether the login is known without a question."""
        return bool(os.environ.get("PODY_PASSWORD")) or kept.load(self.base) is not None

    def log_in(self) -> None:
        """Ask for the login now, if need be, and not while something else is shown."""
        self._known()

    def change_password(self, new: str) -> Answer:
        """Change the caller's password, and go on with the new one."""
        self._known()
        answer = self.post("user/ch-passwd", [("passwd", new)])
        self._login = by_password(self.user, new)
        return answer

    def get(self, route: str, pairs: Pairs = ()) -> Answer:
        """Call with the parameters in the query."""
        query = f"?{urlencode(pairs)}" if pairs else ""
        return self._logged_in(_Request("GET", route, query))

    def post(self, route: str, pairs: Pairs, sent: Callable[[], None] = _nothing) -> Answer:
        """Call with the parameters in a form, so that they stand in no URL and in no log of it;
        `sent` is called once podyd has it, before its answer."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(pairs).encode()
        return self._logged_in(_Request("POST", route, body=body, headers=headers, sent=sent))

    def download(self, route: str, pairs: Pairs, take: Callable[[Coming], None]) -> None:
        """Call with GET for a file, which `take` reads; what fails there it says itself."""
        target = f"{self._target(route)}?{urlencode(pairs)}"
        headers = self._headers(self._known())
        with contextlib.closing(self._connection()) as connection:
            with self.translated("cannot be reached", "is it running, and PODY_API_BASE right?"):
                connection.connect()
            _watch(connection.sock, FILE_SECONDS)
            with self.translated("broke off", "try again."):
                connection.request("GET", target, None, headers)
                response = connection.getresponse()
                if response.status != 200 or response.headers.get_content_type() == JSON:
                    self._answer(response, response.read())
                    raise self.no_podyd("it sends no file")
            take(Coming(self, response))

    def upload(
        self, route: str, pairs: Pairs, give: Callable[[Sent], None], size: int | None = None
    ) -> Answer:
        """Call with POST; `give` writes the body, of `size` bytes if that is known."""
        target = f"{self._target(route)}?{urlencode(pairs)}"
        headers = self._headers(self._known()) | {"Content-Type": "application/octet-stream"}
        length = ("Transfer-Encoding", "chunked") if size is None else ("Content-Length", str(size))
        with contextlib.closing(self._connection()) as connection:
            with self.translated("cannot be reached", "is it running, and PODY_API_BASE right?"):
                connection.connect()
            _watch(connection.sock, FILE_SECONDS)
            with self.translated("broke off", "nothing is changed in the pod."):
                connection.putrequest("POST", target)
                for name, value in [*headers.items(), length]:
                    connection.putheader(name, value)
                connection.endheaders()
                body = Sent(connection, size)
                with contextlib.suppress(AnsweredEarly):
                    give(body)
                    body.end()
                response = body.response()
                return self._answer(response, response.read())

    def websocket(self, route: str, pairs: Pairs, timeout: float) -> Any:
        """Open a WebSocket (of the library websocket-client); what comes is there in `timeout` s.

        The connection is our own: it trusts whom we trust, and goes through no proxy.
        """
        websocket = _websocket_client()
        headers = self._headers(self._known())
        scheme = "wss" if self.base.scheme == "https" else "ws"
        address = str(self.base).partition("://")[2]
        url = f"{scheme}://{address}/{quote(route.lstrip('/'))}?{urlencode(pairs)}"
        connection = self._connection()
        try:
            with self.translated("cannot be reached", "is it running, and PODY_API_BASE right?"):
                connection.connect()
                connection.sock.settimeout(timeout)
                return websocket.create_connection(
                    url,
                    socket=connection.sock,
                    header=[f"{name}: {value}" for name, value in headers.items()],
                    suppress_origin=True,
                    redirect_limit=0,
                )
        except websocket.WebSocketBadStatusException as error:
            connection.close()
            # What podyd says is the same, and this library's older versions do not read it.
            self.get(route, pairs)
            raise self.no_podyd(f"HTTP {error.status_code}") from error
        except websocket.WebSocketException as error:
            connection.close()
            raise self.no_podyd("it speaks no WebSocket") from error

    def listed(self, route: str, pairs: Pairs) -> list[Any]:
        """What a route lists, for a shell that completes: soon, and asking for nothing, or Away."""
        if not self.asks_nobody:
            return []
        self._patience = COMPLETE_SECONDS
        return list(self.get(route, pairs).data)

    def version(self) -> str:
        """podyd's version: the one call that needs no login."""
        headers = {"User-Agent": self._user_agent}
        numbers = self._call(_Request("GET", "version"), headers).data
        if not isinstance(numbers, list) or not all(isinstance(part, int) for part in numbers):
            raise self.no_podyd("its /version is not podyd's")
        return ".".join(str(part) for part in numbers)

    def routes(self, path: str) -> Answer:
        """The route `path`, or those below it if it ends in '/', as /help describes them."""
        answer = self.get("help", [("path", path)])
        entries = answer.data
        if not isinstance(entries, list) or not entries or not all(map(_is_route, entries)):
            raise self.no_podyd("its /help is not podyd's")
        return answer

    def _logged_in(self, request: _Request) -> Answer:
        login = self._known()
        try:
            return self._call(request, self._headers(login))
        except Refused as refused:
            if refused.code != "password_needed" or not login.by_token:
                raise
        # podyd has done nothing yet: it wants the password itself for this.
        self._login = with_password(login.user, self.base)
        return self._call(request, self._headers(self._login))

    def _headers(self, login: Login) -> dict[str, str]:
        return {"User-Agent": self._user_agent, "Authorization": login.header}

    def _known(self) -> Login:
        """The login, which is asked for once."""
        if self._login is None:
            self._refuse_clear_text()
            self._login = self._log_in(self.base)
        return self._login

    def _refuse_clear_text(self) -> None:
        insecure = os.environ.get("PODY_INSECURE") == "1"
        if self.base.scheme == "http" and not self.base.is_loopback and not insecure:
            raise Usage(
                f"Your password or token would be sent to {self.base} unencrypted; use https://,"
                " or set PODY_INSECURE=1 where the network itself is safe."
            )

    def _call(self, request: _Request, caller: Mapping[str, str]) -> Answer:
        """Ask podyd; `caller` are the headers that say who does."""
        target = f"{self._target(request.route)}{request.query}"
        with contextlib.closing(self._connection()) as connection:
            with self.translated("cannot be reached", "is it running, and PODY_API_BASE right?"):
                connection.connect()
            _watch(connection.sock, self._answer_seconds(request.method))
            with self.translated("broke off", "what was asked for may be done all the same."):
                headers = {**request.headers, **caller}
                connection.request(request.method, target, request.body, headers)
                request.sent()
                response = connection.getresponse()
                return self._answer(response, response.read())

    def _target(self, route: str) -> str:
        return f"{self.base.prefix}/{quote(route.lstrip('/'))}"

    def _answer_seconds(self, method: str) -> float | None:
        if self._patience < CONNECT_SECONDS:
            return self._patience
        return GET_SECONDS if method == "GET" else None

    def _connection(self) -> http.client.HTTPConnection:
        if self.base.scheme == "http":
            return http.client.HTTPConnection(
                self.base.host, self.base.port, timeout=self._patience
            )
        try:
            context = ssl.create_default_context(cafile=self._cacert)
        except OSError as error:  # ssl.SSLError is one.
            raise Usage(f"The CA in {self._cacert!r} cannot be used: {_reason(error)}.") from error
        return http.client.HTTPSConnection(
            self.base.host, self.base.port, timeout=self._patience, context=context
        )

    @contextlib.contextmanager
    def translated(self, what: str, hint: str) -> Iterator[None]:
        """The library's errors as ours."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            advice = ADVICE.get(error.verify_code, TRUST_IT)
            why = error.verify_message.rstrip(".")
            raise Away(
                f"The certificate of {self.base} is not trusted ({why}); {advice}."
            ) from error
        except ssl.SSLError as error:
            raise Away(
                f"{self.base} has no usable TLS ({_reason(error)}); is it http://?"
            ) from error
        except (ConnectionResetError, BrokenPipeError) as error:  # RemoteDisconnected is one.
            hint = f"{hint} Is it https://?" if self.base.scheme == "http" else hint
            raise Away(f"{self.base} closed the connection without an answer; {hint}") from error
        except http.client.BadStatusLine as error:
            raise self.no_podyd("it does not use HTTP") from error
        except (OSError, http.client.HTTPException) as error:
            # A server without TLS may wait for the rest of what it takes for a request.
            hint = "is it http://?" if "handshake" in str(error) else hint
            raise Away(f"podyd at {self.base} {what} ({_reason(error)}); {hint}") from error

    def _answer(self, response: http.client.HTTPResponse, body: bytes) -> Answer:
        media = response.headers.get_content_type()
        hint = response.headers.get("X-Podyd-Hint", "")
        unread = response.headers.get("X-Podyd-Notices", "")
        self.unread = int(unread) if re.fullmatch("[0-9]{1,4}", unread) else 0
        if 300 <= response.status < 400:
            place = response.headers.get("Location", "elsewhere")
            raise Away(f"{self.base} redirects to {place}; set PODY_API_BASE to podyd itself.")
        if media in TEXTS and response.status == 200:
            return Answer(body, body.decode(errors="replace"), hint)
        try:
            if media != JSON:
                raise ValueError
            data = json.loads(body.decode())
            if response.status >= 400:
                detail = whole_text(data)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self.no_podyd(f"HTTP {response.status}, {media}") from None
        if response.status == 401:
            advice = self._login.advice if self._login else ""
            raise WrongLogin(f"{detail} {advice}".rstrip(), body)
        if response.status >= 400:
            raise Refused(detail, body)
        return Answer(body, data, hint)

    def no_podyd(self, why: str) -> Away:
        """The error for an answer that podyd would not give."""
        return Away(f"What answers at {self.base} is no podyd ({why}); is PODY_API_BASE right?")


class Coming:
    """A file that podyd sends."""

    def __init__(self, server: Server, response: http.client.HTTPResponse) -> None:
        self._server = server
        self._response = response
        length = response.headers.get("Content-Length")
        # In bytes, None if podyd does not know it either.
        self.size = None if length is None else int(length)
        self._left = self.size

    def header(self, name: str) -> str:
        """What podyd says of it; "" if it does not."""
        return self._response.headers.get(name, "")

    def read(self, count: int = PIECE_BYTES) -> bytes:
        """The next piece, b"" at the end. Raises Away if that came too early."""
        with self._server.translated("broke off", "try again."):
            data = self._response.read(count)
            if not data and self._left:
                raise http.client.IncompleteRead(data, self._left)
        if self._left is not None:
            self._left -= len(data)
        return data


def base_of() -> Base:
    """The address that the environment names. Raises Usage."""
    return Base.of(os.environ.get("PODY_API_BASE") or DEFAULT)


def server_of(cacert: str | None, how: Callable[[Base], Login] = log_in) -> Server:
    """The podyd that the environment names. Raises Usage."""
    cacert = cacert or os.environ.get("PODY_CA") or None
    return Server(base_of(), cacert, f"pody/{__version__}", how)


def _is_route(entry: Any) -> bool:
    try:
        texts = [entry["path"], *entry["methods"], *(param["name"] for param in entry["params"])]
        return bool(entry["methods"]) and all(isinstance(text, str) for text in texts)
    except (TypeError, KeyError):
        return False


def _websocket_client() -> Any:
    try:
        import websocket
    except ImportError:
        raise Usage(
            "This needs the Python library websocket-client: apt install python3-websocket, or"
            " pip install websocket-client."
        ) from None
    return websocket


def _watch(sock: socket.socket, seconds: float | None) -> None:
    """Wait for an answer so long; one without a limit ends all the same if the network does."""
    sock.settimeout(seconds)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or error) or type(error).__name__
