"""The API table as an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from typing import Any

from podyd import __version__
from podyd.base.longtext import LongText
from podyd.contract.answers import (
    JSON,
    Answer,
    Events,
    FileIn,
    FileOut,
    Json,
    JsonOrText,
    PlainText,
    WebSocket,
)
from podyd.contract.kinds import Param, params_of
from podyd.contract.operation import Access, AnyOperation
from podyd.contract.table import OPERATIONS
from podyd.model.token import TokenScope

FILES = ("application/octet-stream", "application/x-tar")
ERROR_SCHEMA = {
    "type": "object",
    "required": ["detail", "code"],
    "properties": {
        "detail": {"type": "string", "description": "one sentence: what is wrong"},
        "advice": {
            "type": "string",
            "description": "what the user can do about it; absent if there is nothing to do",
        },
        "code": {
            "type": "string",
            "description": "the kind of the error, in snake_case; later versions keep it",
        },
    },
}


def document() -> dict[str, Any]:
    """The whole API, ready for `json.dumps`."""
    schemas: dict[str, Any] = {"Error": ERROR_SCHEMA}
    paths = {
        operation.path: {
            method.lower(): _operation(operation, method, schemas) for method in operation.methods
        }
        for operation in OPERATIONS
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "podyd",
            "version": __version__,
            "description": "Sizes are in bytes, durations in seconds and times in ISO 8601 in UTC,"
            " unless a field says otherwise. A limit of -1 is no limit. In a call's parameters,"
            " `ins` is the name of a pod as its owner uses it.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "a Linux account's name and password",
                },
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a token from /user/token of a scope that the call names",
                },
                "page": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "podyd",
                    "description": "the cookie of /user/login in requests of podyd's own page;"
                    " with a port in the URL it is called podyd-8799, and under TLS it begins with"
                    " __Host-",
                },
            },
        },
    }


def _operation(operation: AnyOperation, method: str, schemas: dict[str, Any]) -> dict[str, Any]:
    name = operation.path.strip("/").replace("/", "_").replace("-", "_").replace(".", "_")
    described: dict[str, Any] = {
        "operationId": f"{name}_{method.lower()}",
        "summary": operation.summary,
        "parameters": [_parameter(item, operation, method) for item in operation.params],
        "security": _security(operation),
        "responses": _responses(operation.answer, schemas),
    }
    if isinstance(operation.answer, WebSocket):
        # OpenAPI has no WebSockets; these are in the form of AsyncAPI.
        described["description"] = operation.answer.protocol
        described["x-websocket"] = {
            "first": _parameters(operation.answer.first),
            "last": _schema(operation.answer.last, schemas),
        }
    if isinstance(operation.answer, Events):
        described["description"] = operation.answer.protocol
        described["x-websocket"] = {
            "message": _schema(operation.answer.message, schemas),
            "values": {key: _schema(kind, schemas) for key, kind in operation.answer.values},
        }
    if isinstance(operation.answer, FileIn):
        described["requestBody"] = {"required": True, "content": {kind: {} for kind in FILES}}
    elif method == "POST" and operation.params:
        described["requestBody"] = _body(operation)
    return described


def _responses(answer: Answer, schemas: dict[str, Any]) -> dict[str, Any]:
    error = {
        "description": "an error",
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if isinstance(answer, (Events, WebSocket)):
        return {"default": error, "101": {"description": "the WebSocket is open; see x-websocket"}}
    return {
        "200": {"description": "success", "content": _content(answer, schemas)},
        "default": error,
    }


def _content(answer: Answer, schemas: dict[str, Any]) -> dict[str, Any]:
    """The content of an answer, by its media type."""
    match answer:
        case PlainText(media):
            return {media: {"schema": _schema(str, schemas)}}
        case JsonOrText(body, media):
            return {
                kind: {"schema": _schema(what, schemas)}
                for kind, what in ((JSON, body), (media, str))
            }
        case Json(body) | FileIn(body):
            return {JSON: {"schema": _schema(body, schemas)}}
        case FileOut(about):
            described = {JSON: {"schema": _schema(about, schemas)}}
            return described | {kind: {} for kind in FILES}
    raise TypeError(f"no description of {answer!r}")


def _security(operation: AnyOperation) -> list[dict[str, list[str]]]:
    if operation.access is Access.OPEN:
        return []
    scopes = [scope for scope in typing.get_args(TokenScope) if operation.accepts(scope)]
    page: list[dict[str, list[str]]] = [{"page": []}] if operation.accepts("all") else []
    return [{"basic": []}, *({"token": [scope]} for scope in scopes), *page]


def _parameter(item: Param, operation: AnyOperation, method: str) -> dict[str, Any]:
    # A POST may have each parameter in its body instead, so none is required in the query.
    in_query = method == "GET" or isinstance(operation.answer, FileIn)
    return {
        "name": item.name,
        "in": "query",
        "required": not item.optional and in_query,
        "description": item.help,
        "schema": item.kind.schema(),
    }


def _body(operation: AnyOperation) -> dict[str, Any]:
    schema = _parameters(operation.request)
    schema["description"] = "the parameters that are not in the query"
    kinds = (JSON, "application/x-www-form-urlencoded")
    return {"required": False, "content": {kind: {"schema": schema} for kind in kinds}}


def _parameters(request: type) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            item.name: item.kind.schema() | {"description": item.help}
            for item in params_of(request)
        },
    }


def _schema(hint: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type hint; dataclasses go to `schemas` under their name."""
    plain = {
        str: "string",
        LongText: "string",
        int: "integer",
        float: "number",
        bool: "boolean",
        type(None): "null",
    }
    if hint in plain:
        return {"type": plain[hint]}
    if hint is Any:
        return {}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _component(hint, schemas)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], schemas)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], schemas)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, schemas) for argument in arguments]}
    raise TypeError(f"no JSON schema for {hint!r}")


def _component(kind: type, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in schemas:
        hints = typing.get_type_hints(kind)
        described: dict[str, Any] = {
            "type": "object",
            "required": list(hints),
            "properties": {name: _schema(hint, schemas) for name, hint in hints.items()},
        }
        if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("):
            described["description"] = inspect.cleandoc(kind.__doc__)
        schemas[kind.__name__] = described
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
