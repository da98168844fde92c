"""The engine's REST API over TLS, with podyd's restricted client certificate.

Everything here is asynchronous, because the engine may take long or hang. The engine's answers are
returned as Python data, its errors are raised as kinds of `EngineRefused` (see refusals.py), and
`Unavailable` is raised if it cannot be reached. API:
https://documentation.ubuntu.com/lxd/en/latest/rest-api/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.netutil import DefaultExecutorResolver, Resolver, is_valid_ip
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient

from podyd.base.engine_words import ENGINE
from podyd.base.errors import EngineRefused, Gone, NotSetUp, Slipped, TimedOut, Unavailable
from podyd.engine import websocket
from podyd.engine.bound import Bound, meant_for
from podyd.engine.dialect import CERTIFICATE, Dialect
from podyd.engine.refusals import refusal
from podyd.engine.websocket import Websocket

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 15.0
# After this part of it, a GET is sent again.
FIRST_TIMEOUT = 5.0
MAX_CONNECTIONS = 512
MAX_FILE_BYTES = 1024**2
# The errors of a connection that is made without Tornado's client: the last three for an answer
# that is not HTTP.
_NO_UPGRADE = (
    OSError,
    EOFError,
    asyncio.TimeoutError,
    asyncio.LimitOverrunError,
    ValueError,
    IndexError,
)


@dataclass(frozen=True)
class Credentials:
    """The files of `podyd setup` with podyd's certificate and key, and an engine's certificate."""

    directory: Path
    dialect: Dialect

    @classmethod
    def below(cls, state_dir: str, dialect: Dialect) -> Credentials:
        """Each engine's are in a directory of their own."""
        return cls(Path(state_dir) / dialect.key, dialect)

    @property
    def certificate(self) -> Path:
        return self.directory / CERTIFICATE

    @property
    def key(self) -> Path:
        return self.directory / "client.key"

    @property
    def server_certificate(self) -> Path:
        return self.directory / "server.crt"

    @property
    def endpoint(self) -> Path:
        """The file with the engine's address, for `lxd.endpoint: auto`."""
        return self.directory / "endpoint"


class _ResumingContext(ssl.SSLContext):
    """A TLS context that resumes its last session.

    Tornado's client makes a new connection for every request. A full handshake with client
    certificates costs the engine and podyd some 2 ms each, a resumed one a fraction; an exec needs
    five.
    """

    _latest: ssl.SSLSocket | None = None
    _session: ssl.SSLSession | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        # With TLS 1.3 the ticket comes after the handshake, so it is read from the last socket now.
        with contextlib.suppress(ValueError):  # Its handshake is not over yet.
            session = self._latest.session if self._latest is not None else None
            if session is not None and session.has_ticket:
                self._session = session
        self._latest = super().wrap_socket(*args, **{**kwargs, "session": self._session})
        return self._latest


class NumericResolver(DefaultExecutorResolver):
    """Returns numeric addresses unchanged; Tornado would use a thread for every connection."""

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        if not is_valid_ip(host):
            return await super().resolve(host, port, family)
        addresses = socket.getaddrinfo(
            host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        return [(item[0], item[4]) for item in addresses]


async def _trusting(name: str, uuid: str) -> bool:
    return True


class RestClient:
    """A client of one engine, in one project.

    Once another instance has a bound name (see Bound), a request to its path, or a copy from it,
    fails as the engine fails for an instance that does not exist.
    """

    def __init__(self, endpoint: str, project: str, credentials: Credentials) -> None:
        """Raises NotSetUp if the certificates of `podyd setup` are missing."""
        self.project = project
        self.dialect = credentials.dialect
        self._endpoint = endpoint
        self._tls = _tls_context(credentials)
        # For the whole process: before Tornado 6.3, a websocket has no parameter for a resolver.
        Resolver.configure(NumericResolver)
        self._http = SimpleAsyncHTTPClient(force_instance=True, max_clients=MAX_CONNECTIONS)
        # The size of a file in a pod is under the control of the pod's root.
        self._files = SimpleAsyncHTTPClient(
            force_instance=True, max_clients=MAX_CONNECTIONS, max_body_size=MAX_FILE_BYTES
        )
        # Whether an instance has this name and this uuid now.
        self.is_there: Callable[[str, str], Awaitable[bool]] = _trusting

    async def check(self, name: object) -> None:
        """Raises Gone if a bound name's instance does not exist any more."""
        if isinstance(name, Bound) and not await self.is_there(name.instance, name.uuid):
            raise Gone("Instance not found")

    def close(self) -> None:
        self._http.close()
        self._files.close()

    async def get(self, path: str, **query: Any) -> Any:
        """The metadata of the engine's answer to a GET, within ANSWER_TIMEOUT."""
        return _answer(await self._ask(path, query))["metadata"]

    async def _ask(self, path: str, query: Mapping[str, Any]) -> HTTPResponse:
        """The engine's answer to a GET, which is sent twice if necessary.

        LXD 5.0.2 sometimes closes a file that another request is reading ("bad file descriptor"),
        or never answers. A second GET changes nothing; the first may still be answered if LXD is
        busy.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + ANSWER_TIMEOUT
        asked = [asyncio.ensure_future(self._fetch("GET", path, None, query, ANSWER_TIMEOUT))]
        try:
            await asyncio.wait(asked, timeout=FIRST_TIMEOUT)
            if not _is_answer(asked[0]):
                again = self._fetch("GET", path, None, query, end - loop.time())
                asked.append(asyncio.ensure_future(again))
            pending = set(asked)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for answer in filter(_is_answer, done):
                    return answer.result()
            return asked[-1].result()
        finally:
            for question in asked:
                question.cancel()

    async def tagged(self, path: str) -> tuple[Any, str]:
        """The metadata of the engine's answer to a GET, and its ETag for a later change."""
        response = await self._ask(path, {})
        return _answer(response)["metadata"], response.headers.get("ETag", "")

    async def text(self, path: str, **query: Any) -> str:
        """A text file that the engine serves, such as a log."""
        response = await self._ask(path, query)
        if response.code >= 400:
            _answer(response)
        return response.body.decode(errors="replace")

    async def file(
        self,
        method: str,
        instance: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """A request for a file of an instance, repeated once if the engine fails, as all of them
        are idempotent. Raises Missing if there is no such file, and Unavailable also for an answer
        of more than MAX_FILE_BYTES.
        """
        for _ in range(2):
            response = await self._fetch(
                method,
                instance_path(instance, "files"),
                None,
                {"path": path},
                ANSWER_TIMEOUT,
                headers=headers,
                http=self._files,
            )
            if response.code < 500:
                break
        if method == "HEAD" and response.code >= 400:  # It has no body with a reason.
            raise refusal(f"{ENGINE} does not show {path} ({response.code})", response.code)
        if response.code >= 400:
            _answer(response)
        return response

    async def change(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float = 60.0,
        etag: str = "",
        began: Callable[[str], None] = lambda operation: None,
        is_repeatable: bool = False,
    ) -> Any:
        """A request that changes something; waits for the end of the engine's operation if there is
        one.

        With `etag`, raises Changed if there was another change meanwhile. `began` is called with
        the operation's path. Raises TimedOut if it is still under way after `timeout` seconds.
        After Slipped it is repeated once; a POST, which may not be idempotent, only if it
        `is_repeatable`.
        """
        if method != "POST" or is_repeatable:
            try:
                return await self._change(method, path, body, timeout, etag, began)
            except Slipped as error:
                log.warning(
                    "%s had a passing error at %s %s: %s", ENGINE, method, path, error.reason
                )
        return await self._change(method, path, body, timeout, etag, began)

    async def _change(
        self,
        method: str,
        path: str,
        body: Any,
        timeout: float,
        etag: str,
        began: Callable[[str], None],
    ) -> Any:
        answer = await self._call(method, path, body=body, etag=etag)
        if answer["type"] != "async":
            return answer["metadata"]
        # With the project behind it, if it is another member's of a cluster.
        operation = urlsplit(answer["operation"]).path
        began(operation)
        metadata = await self._ended(operation, timeout)
        if metadata["status_code"] < 200:
            raise TimedOut(
                f"{ENGINE} has not finished within {timeout:g} s and continues.",
                advice="Ask /pod/info later.",
                code="lxd_timed_out",
            )
        if metadata["status_code"] >= 400:
            # The operation's status is not one of HTTP; later LXDs have that in `err_code`.
            raise refusal(metadata["err"], metadata.get("err_code", 0))
        return metadata

    async def _ended(self, operation: str, timeout: float) -> Mapping[str, Any]:
        """An operation when it has ended, or as it is after `timeout` seconds.

        From LXD 5.15 and 5.0.9 on, the answer is its error in place of it, and an error as well
        after the timeout (operationWaitGet in lxd/operations.go).
        """
        try:
            waited = await self._call(
                "GET", f"{operation}/wait", query={"timeout": int(timeout)}, timeout=timeout + 10
            )
        except EngineRefused:
            with contextlib.suppress(EngineRefused):
                present: Mapping[str, Any] = await self.get(operation)
                if present["status_code"] < 200:
                    return present
            raise
        metadata: Mapping[str, Any] = waited["metadata"]
        return metadata

    async def start(self, path: str, body: Any) -> Mapping[str, Any]:
        """Start an operation and return it (`id`, `metadata`) without waiting for its end."""
        answer = await self._call("POST", path, body=body)
        operation: Mapping[str, Any] = answer["metadata"]
        return operation

    async def websocket(
        self,
        path: str,
        *,
        ping_interval: float | None = None,
        answers_pings: bool = True,
        **query: Any,
    ) -> Websocket:
        """Connect to one of the engine's websockets."""
        try:
            return await websocket.connect(
                self._url(path, query).replace("https:", "wss:", 1),
                tls=self._tls,
                timeout=CONNECT_TIMEOUT,
                ping_interval=ping_interval,
                answers_pings=answers_pings,
            )
        except HTTPClientError as error:
            if error.response is not None:
                _answer(error.response)
            raise unreachable(error) from error
        except (OSError, HTTPTimeoutError) as error:
            raise unreachable(error) from error

    async def upgraded(
        self, path: str, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the engine that is upgraded to another protocol."""
        url = urlsplit(self._url(path, {}))
        head = (
            f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        )
        with contextlib.ExitStack() as failing:
            try:
                opening = asyncio.open_connection(url.hostname, url.port, ssl=self._tls)
                reader, writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT)
                failing.callback(writer.close)
                writer.write(head.encode())
                answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_TIMEOUT)
                status = int(answer.split()[1])
            except _NO_UPGRADE as error:
                raise unreachable(error) from error
            if status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise refusal(f"{ENGINE} does not speak {protocol} at {path} ({status})", status)
            failing.pop_all()
        return reader, writer

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        etag: str = "",
    ) -> Any:
        timeout = ANSWER_TIMEOUT if timeout is None else timeout
        return _answer(await self._fetch(method, path, body, query or {}, timeout, etag))

    async def _fetch(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, Any],
        timeout: float,
        etag: str = "",
        headers: Mapping[str, str] | None = None,
        http: SimpleAsyncHTTPClient | None = None,
    ) -> HTTPResponse:
        await self.check(path)
        if isinstance(body, Mapping) and isinstance(body.get("source"), Mapping):
            await self.check(body["source"].get("source"))
        request = HTTPRequest(
            self._url(path, query),
            method=method,
            body=None if body is None else json.dumps(body),
            headers={**({"If-Match": etag} if etag else {}), **(headers or {})},
            allow_nonstandard_methods=True,
            ssl_options=self._tls,
            connect_timeout=CONNECT_TIMEOUT,
            request_timeout=timeout,
        )
        try:
            return await (http or self._http).fetch(request, raise_error=False)
        except (OSError, HTTPClientError) as error:
            log.warning("%s does not answer %s %s: %s", ENGINE, method, path, error)
            raise unreachable(error) from error

    def _url(self, path: str, query: Mapping[str, Any]) -> str:
        return f"{self._endpoint}{path}?{urlencode({'project': self.project, **query})}"


async def members_of(client: RestClient, path: str, *, depth: int = 1) -> list[Any]:
    """All members of a collection with their contents, of which `depth` 2 has more."""
    # Incus writes an empty one as null.
    return await client.get(path, recursion=depth) or []


def _is_answer(question: asyncio.Task[HTTPResponse]) -> bool:
    """Whether the engine has answered, also with an error."""
    return question.done() and question.exception() is None and question.result().code < 500


def _answer(response: HTTPResponse) -> Any:
    try:
        answer = json.loads(response.body)
    except ValueError as error:
        raise Unavailable(
            f"{ENGINE} gave HTTP {response.code} and no JSON.", code="lxd_unreachable"
        ) from error
    if answer.get("type") == "error":
        # What fails after the answer has begun has HTTP's 200, and its status in the text.
        status = response.code if response.code >= 400 else answer.get("error_code", 0)
        raise refusal(str(answer["error"]), status)
    return answer


def unreachable(error: BaseException) -> Unavailable:
    """The error for a client when the engine does not answer."""
    return Unavailable(
        f"{ENGINE} cannot be reached at the moment ({error}).",
        advice="Try again shortly, and tell your admin if it stays so.",
        code="lxd_unreachable",
    )


def instance_path(name: str, *parts: str) -> str:
    """The path of an instance, or of a part of it; bound if its name is."""
    return meant_for(name, "/".join(["/1.0/instances", quote(name, safe=""), *parts]))


def project_path(name: str) -> str:
    """The path of a project."""
    return f"/1.0/projects/{quote(name, safe='')}"


def _tls_context(credentials: Credentials) -> ssl.SSLContext:
    context = _ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    # The engine's certificate is self-signed and pinned, so a check of its host name would add
    # nothing.
    context.check_hostname = False
    try:
        context.load_cert_chain(credentials.certificate, credentials.key)
        context.load_verify_locations(credentials.server_certificate)
    except OSError as error:
        raise NotSetUp(
            f"podyd's certificate for {ENGINE} is not in {credentials.directory}"
            f" ({error.strerror}).",
            advice="Run 'podyd setup' as root.",
        ) from error
    return context
