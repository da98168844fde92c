"""Which handler serves which operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tornado.web import Application

import podyd
from podyd.accounting.actions import Actions
from podyd.accounting.metrics import Metrics
from podyd.api.access_log import request_log
from podyd.api.binding import Bound
from podyd.api.events import EventStream
from podyd.api.files import Download, Upload
from podyd.api.handler import AddressOf, Endpoint, IsEncrypted, NoRoute
from podyd.api.page import Page, read_page
from podyd.api.routes.meta import suggestion
from podyd.api.socket import Socket
from podyd.api.under_way import Requests
from podyd.contract.answers import (
    Answer,
    Events,
    FileIn,
    FileOut,
    Json,
    JsonOrText,
    PlainText,
    WebSocket,
)
from podyd.contract.operation import AnyOperation
from podyd.people.login import Logins
from podyd.people.notices import Notices
from podyd.people.sessions import Sessions

# The page's files, which are installed beside podyd's modules.
WEB = Path(podyd.__file__).with_name("web")

HANDLERS: Mapping[type[Answer], type[Endpoint]] = {
    Json: Endpoint,
    PlainText: Endpoint,
    JsonOrText: Endpoint,
    FileOut: Download,
    FileIn: Upload,
    WebSocket: Socket,
    Events: EventStream,
}


def application(
    calls: Mapping[AnyOperation, Bound],
    *,
    logins: Logins,
    requests: Requests,
    sessions: Sessions,
    notices: Notices,
    address_of: AddressOf,
    is_encrypted: IsEncrypted,
    has_page: Callable[[], bool],
    metrics: Metrics,
    actions: Actions,
) -> Application:
    """Tornado's, which serves these operations."""
    shared = {
        "logins": logins,
        "requests": requests,
        "sessions": sessions,
        "notices": notices,
        "address_of": address_of,
        "is_encrypted": is_encrypted,
    }
    no_route = {"suggest": suggestion, "address_of": address_of}
    page = {"files": read_page(WEB), "is_on": has_page, **no_route}
    return Application(
        [
            *(
                (
                    operation.path.replace(".", r"\."),
                    HANDLERS[type(operation.answer)],
                    {"operation": operation, "bound": call, **shared},
                )
                for operation, call in calls.items()
            ),
            ("/", Page, page),
            ("/web/(.*)", Page, page),
        ],
        default_handler_class=NoRoute,
        default_handler_args=no_route,
        log_function=request_log(metrics, actions),
    )
