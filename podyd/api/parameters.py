"""The parameters of a request: names and values, from the query and the body."""

from __future__ import annotations

from urllib.parse import parse_qsl

from podyd.base.errors import BadRequest
from podyd.contract.answers import JSON
from podyd.contract.kinds import decode, json_pairs

MAX_PARAMETERS = 50


def parameters(query: str, body: bytes, content_type: str) -> list[tuple[str, str]]:
    """Those of the query and of the body; one that is in both is refused.

    Raises BadRequest.
    """
    in_query = _decode_form(query, "the query string")
    in_body = _decode_body(body, content_type.partition(";")[0])
    both = {name for name, _ in in_query} & {name for name, _ in in_body}
    if both:
        name = min(both)
        raise BadRequest(
            f"Parameter {name[:64]!r} is both in the query and in the body.",
            advice="Give it once.",
            code="repeated_parameter",
            parameter=name[:64],
        )
    return in_query + in_body


def _decode_form(text: str, where: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        raise BadRequest(f"A parameter in {where} is not UTF-8.", code="not_utf8") from None
    except ValueError:
        raise BadRequest(
            f"There are more than {MAX_PARAMETERS} parameters in {where}.", code="bad_request"
        ) from None


def _decode_body(body: bytes, content_type: str) -> list[tuple[str, str]]:
    if not body:
        return []
    text = decode(body, "The body")
    if content_type == "application/x-www-form-urlencoded":
        return _decode_form(text, "the body")
    if content_type == JSON:
        return json_pairs(text, "The body")
    raise BadRequest(
        "The body must be application/x-www-form-urlencoded or application/json.",
        code="bad_content_type",
    )
