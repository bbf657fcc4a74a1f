"""Parses requests that pass through to an expert: only the field `model` is read, in JSON or in a form.

The expert checks everything else. Errors have the form of OpenAI's API.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from coe.core import PASS_THROUGH_APIS, Chat, PassThroughApi
from coe.errors import InvalidRequest
from coe.experts.http.form import FormBody
from coe.registry import AUTO
from gateway.dialects import Dialect
from gateway.dialects.chat import error_event, parse_object
from gateway.errors import body_of

FORM_APIS: frozenset[PassThroughApi] = frozenset(
    ("audio/transcriptions", "audio/translations", "images/edits", "images/variations")
)
"""APIs whose requests may be forms, because they carry files."""


def _parse(body: bytes | bytearray, *, api: PassThroughApi) -> Chat:
    """A chat without messages. A request without a model is one for `auto`."""
    fields = _form(body) if api in FORM_APIS and body[:2] == b"--" else parse_object(body)
    name: Any = fields.get("model")
    if name is None:
        name = AUTO
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model must be text: 'auto' or the name of an expert", param="model")
    return Chat(name, (), False, frozenset(), 0, fields, api)


def _form(body: bytes | bytearray) -> FormBody:
    try:
        return FormBody(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not a multipart form: {error}", code="invalid_form") from None


PASS_THROUGH: dict[PassThroughApi, Dialect] = {
    api: Dialect(api, partial(_parse, api=api), body_of, error_event, forms=api in FORM_APIS)
    for api in sorted(PASS_THROUGH_APIS)
}
