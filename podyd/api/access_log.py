"""The logs and the metrics of each request, once it is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from podyd.accounting.actions import Actions
from podyd.accounting.metrics import Metrics
from podyd.api.handler import Endpoint, JsonHandler, shown_path
from podyd.contract.operation import GET, Proof


def request_log(metrics: Metrics, actions: Actions) -> Callable[[RequestHandler], None]:
    """The function that Tornado calls once a request is answered."""

    def over(handler: RequestHandler) -> None:
        assert isinstance(handler, JsonHandler)
        if not handler.is_over:
            return  # A WebSocket that was opened; it is logged when it is closed.
        _log_request(handler)
        path = handler.operation.path if isinstance(handler, Endpoint) else ""
        seconds = handler.request.request_time()
        metrics.request(path, _method(handler.request), handler.get_status(), seconds)
        if isinstance(handler, Endpoint):
            _record(handler, actions)

    return over


def _record(handler: Endpoint, actions: Actions) -> None:
    """Record what a member changes; not what they do inside a pod, which is theirs."""
    operation = handler.operation
    if handler.member_name and operation.methods != GET and operation.proof is not Proof.INSIDE:
        actions.record(
            user=handler.member_name,
            operation=operation.path,
            pod=handler.pod_name,
            status=handler.get_status(),
            code=handler.error_code,
        )


def _log_request(handler: JsonHandler) -> None:
    """One line per request, in the journal with its parts as separate fields.

    Never its query, which may contain a password or a command.
    """
    request, status = handler.request, handler.get_status()
    milliseconds = f"{request.request_time() * 1000:.1f}"
    fields = {
        "PODYD_STATUS": status,
        "PODYD_METHOD": _method(request),
        "PODYD_PATH": shown_path(request),
        "PODYD_USER": handler.member_name,
        "PODYD_POD": handler.pod_name,
        "PODYD_ADDRESS": handler.address,
        "PODYD_MILLISECONDS": milliseconds,
    }
    logging.getLogger("podyd.access").log(
        logging.WARNING if status >= 500 else logging.INFO,
        "%s %s %s user=%s from=%s %sms",
        status,
        fields["PODYD_METHOD"],
        fields["PODYD_PATH"],
        handler.member_name or "-",
        handler.address,
        milliseconds,
        extra={name: value for name, value in fields.items() if value},
    )


def _method(request: HTTPServerRequest) -> str:
    """The method, one of a fixed set: a client may send any word there, even escape sequences."""
    return request.method if request.method in JsonHandler.SUPPORTED_METHODS else "other"
