"""An expert behind an HTTP server that speaks OpenAI's or Anthropic's APIs.

This is the hot path: the client's body passes through with the model name and the declared defaults changed, and
response bytes are relayed as they arrive.

A multipart form, which is written anew for the expert's server, so that the server reads what the gateway read.

Parsers of forms disagree about repeated headers and parameters, folded lines, bare line feeds, and text between parts.
Nothing of that is sent on: each part gets one head in one form, the boundary is drawn at random, and the only field
`model` is the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import get_args

import orjson

from coe import json_text
from coe.core import PASS_THROUGH_APIS, TEXT_APIS, Api, Call, Health, Reply
from coe.errors import ExpertError, InvalidRequest
from coe.experts.api_formats import (
    API_FORMATS,
    NEWER_NAMES,
    applicable_defaults,
    rejected_field,
    without_field,
    without_foreign_items,
)
from coe.experts.error_mapping import ErrorMapping
from coe.experts.http import sse
from coe.experts.http.client import Client, Response, Target, Unreachable
from coe.experts.http.replies import (
    HeldAnswer,
    ModelNameRewriter,
    RelayedReply,
    StreamedReply,
    WholeReply,
    read_json,
    shows_usage,
)
from coe.registry import ExpertSpec, SelectingField
from coe.settings import Endpoint
from coe.urls import join_path, remove_suffix
from coe.usage import SentCall, Usage

MAX_PARTS = 256
MAX_HEAD_BYTES = 2**13
"""Bytes of the headers of a part."""
MODEL = "model"
_BOUNDARY = re.compile(rb"--[0-9A-Za-z'()+_,./:=? -]{0,69}?[0-9A-Za-z'()+_,./:=?-](?=\r\n|--\s*\Z)")
"""The beginning of a form (RFC 2046, section 5.1.1)."""
_HEADER = re.compile(rb"([!-9;-~]+):[ \t]*([^\x00-\x1f\x7f]*)")
_DISPOSITION = re.compile(
    rb'form-data; *name=("?)((?!_charset_)[\w.-]+(?:\[[\w.-]*\])*)\1'
    rb'(?:; *filename=(?:"((?:\\"|[^"\x00-\x1f\x7f])*)"|([^"; \x00-\x1f\x7f]+))(?:; *filename\*=[^"; ]+)?)? *',
    re.IGNORECASE,
)
"""A name, and the name of a file, which .NET repeats in `filename*`. The field `_charset_` changes what others mean."""
_MEDIA_TYPE = re.compile(rb"(?!multipart/|message/)[ -~]*", re.IGNORECASE)
"""A type of content that no parser takes for further parts."""
_PLAIN_ENCODINGS = (b"", b"7bit", b"8bit", b"binary")


class FormBody(dict[str, str]):
    """The value of the field `model` if the form has it. Raises ValueError for a body that is not a form, or that
    parsers may read in different ways."""

    def __init__(self, body: bytes | bytearray) -> None:
        super().__init__()
        first = _BOUNDARY.match(body)
        if first is None:
            raise ValueError("it does not begin with a boundary")
        self.size = len(body)
        self._boundary = secrets.token_hex(16)
        self._parts: list[tuple[str, bytes, memoryview]] = []
        """Bare name, head to send, and value of each part but `model`."""
        delimiter, view, begin = b"\r\n" + first[0], memoryview(body), len(first[0])
        for _ in range(MAX_PARTS + 1):
            line_end = body[begin : begin + 2]
            if line_end == b"--":
                return
            if line_end != b"\r\n":
                raise ValueError("its boundary is part of its content")
            if (end := body.find(delimiter, begin)) < 0:
                raise ValueError("its last part does not end")
            blank = body.find(b"\r\n\r\n", begin + 2, min(end, begin + MAX_HEAD_BYTES))
            if blank < 0:
                raise ValueError("a part of it has no end of its headers")
            self._add_part(bytes(body[begin + 2 : blank]), view[blank + 4 : end])
            begin = end + len(delimiter)
        raise ValueError(f"it has more than {MAX_PARTS} parts")

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def names(self) -> list[str]:
        """Names of the other fields and files; `list` for `list[]`."""
        return [name for name, *_ in self._parts]

    def with_model(self, model: str, *, leave_out: Collection[str] = ()) -> bytes:
        """The form with this model, without the fields of some of the other `names`."""
        delimiter = b"--%b" % self._boundary.encode()
        chunks: list[bytes | memoryview] = [delimiter, _head(MODEL.encode()), model.encode()]
        for name, head, value in self._parts:
            if name not in leave_out:
                chunks += (b"\r\n", delimiter, head, value)
        return b"".join((*chunks, b"\r\n", delimiter, b"--\r\n"))

    def _add_part(self, head: bytes, value: memoryview) -> None:
        headers: dict[bytes, bytes] = {}
        for line in head.split(b"\r\n"):
            header = _HEADER.fullmatch(line)
            if header is None or header[1].lower() in headers:
                raise ValueError("a part of it has a broken or repeated header")
            headers[header[1].lower()] = header[2].rstrip()
        disposition = _DISPOSITION.fullmatch(headers.get(b"content-disposition", b""))
        if disposition is None:
            raise ValueError('a part of it is not declared as form-data; name="NAME"; filename="FILE"')
        if headers.get(b"content-transfer-encoding", b"").lower() not in _PLAIN_ENCODINGS:
            raise ValueError("a part of it has a content-transfer-encoding")
        media_type = headers.get(b"content-type", b"")
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise ValueError("a part of it has a content-type of several parts")
        name, quoted, plain = disposition[2], disposition[3], disposition[4]
        file_name = plain if quoted is None else quoted
        bare_name = name.partition(b"[")[0].decode()  # some parsers read x[] and x[0] as x
        if bare_name.casefold() != MODEL:
            self._parts.append((bare_name, _head(name, file_name, media_type), value))
        elif MODEL in self or bare_name.encode() != name:
            raise ValueError("it has the field model twice")
        elif file_name is not None:
            raise ValueError("its model is a file")
        else:
            self[MODEL] = bytes(value).decode()


def _head(name: bytes, file_name: bytes | None = None, media_type: bytes = b"") -> bytes:
    """The headers of a part, with the blank line after them."""
    head = b'\r\nContent-Disposition: form-data; name="%b"' % name
    if file_name is not None:
        head += b'; filename="%b"' % file_name.replace(b'\\"', b"%22").replace(b"\\", b"%5C")
    if media_type:
        head += b"\r\nContent-Type: " + media_type
    return head + b"\r\n\r\n"


MAX_REFUSAL_BYTES = 2**16
"""Bytes of an error body that are read."""
REFUSAL_TIMEOUT = 1.0
"""Seconds for the body of an error response."""
APIS_WITH_STREAM_OPTIONS: frozenset[Api] = frozenset(("chat", "completions"))
"""APIs whose streams report token counts only on request."""
USAGE_OPTION = "stream_options"
_DEFAULT_VERSION = {"anthropic-version": "2023-06-01"}
"""Sent with Messages requests if the client names no version: their servers require one."""


class HttpExpert:
    """Calls one `endpoint`, each call in its own API. Adds the declared system prompt, default parameters, model name
    and key. Its server must speak the API of a call.
    """

    health = Health()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint, *, session: Client) -> None:
        self.name = spec.name
        self._base_url = endpoint.base_url
        self._model = endpoint.model
        self._rewriter = ModelNameRewriter(server_name=endpoint.model, client_name=spec.name)
        self._defaults = {api: api_format.defaults(spec.parameters) for api, api_format in API_FORMATS.items()}
        if spec.supported_apis & TEXT_APIS:  # the declared parameters are meant for these
            self._defaults |= {api: {} for api in self._defaults if api not in TEXT_APIS}
        self._system_prompt = spec.system_prompt
        unsent = {MODEL, *get_args(SelectingField)} - spec.allowed_fields
        self._unsent = frozenset(name.casefold() for name in unsent)
        """Names in lower case of the client's fields that are not sent, as they could select another model."""
        self._session = session
        self._key = spec.api_key.get_secret_value() if spec.api_key else ""
        self._targets: dict[Api, Target] = {}
        self._rejected_fields = {name for name, newer in NEWER_NAMES.items() if newer in spec.parameters}
        """Optional fields that this server always rejects."""
        self._errors = ErrorMapping(spec.name, key=self._key, base_url=endpoint.base_url)

    async def stream(self, call: Call) -> Reply:
        """Calls the server; returns once the first chunk is there. Raises an ExpertError, or InvalidRequest for the
        body."""
        record, held = SentCall(self.name), HeldAnswer(call.memory)
        limit = asyncio.get_running_loop().time() + call.first_token_timeout
        response: Response | None = None
        try:
            response = await self._send_until_accepted(call, limit, record)
            reply = await self._reply(call, response, record.usage, held)
            if isinstance(reply, StreamedReply):
                await reply.begin()
            response.lift_limit()
            return reply
        except BaseException as error:
            if response is not None:
                response.release()
            held.resize(0)
            failure = error
            if isinstance(error, TimeoutError):
                what = "first chunk" if call.stream else "answer"
                failure = self._errors.timed_out(f"gave no {what} within {call.first_token_timeout:g} s")
            elif isinstance(error, (Unreachable, ValueError)):  # ValueError: an invalid address
                failure = self._errors.unreachable(error)
            elif isinstance(error, OSError):
                failure = self._errors.connection_lost("broke off the connection")
            if isinstance(failure, ExpertError) and not failure.may_be_billed and record in call.sent:
                call.sent.remove(record)
            if failure is error:
                raise
            raise failure from error

    async def _send_until_accepted(self, call: Call, limit: float, record: SentCall) -> Response:
        """Returns a response with status 200, or raises the refusal as an ExpertError, or TimeoutError. What the
        server rejects is left out if it may be, and the request is sent again. Adds `record` to the sent calls."""

        def on_write() -> None:
            if record not in call.sent:
                call.sent.append(record)

        headers = {**_DEFAULT_VERSION, **call.headers} if call.api == "messages" else call.headers
        if call.api in PASS_THROUGH_APIS:
            form = call.fields.content_type if isinstance(call.fields, FormBody) else "application/json"
            headers = {**headers, "content-type": form}
        if call.stream and call.api in APIS_WITH_STREAM_OPTIONS and not shows_usage(call):
            call = replace(call, optional=call.optional | {USAGE_OPTION})  # CoE requests the counts for itself
        for name in self._rejected_fields & call.optional:
            call = without_field(call, name)
        target, learned = self._target(call.api), set[str]()
        while True:
            body = self._body(call)
            record.size = len(body)
            response = await self._session.send(target, body, headers, limit=limit, on_write=on_write)
            if response.status == 200:
                break
            error = await self._refusal(call, response)
            if name := rejected_field(call, error):
                call = without_field(call, name)
                if name == USAGE_OPTION or (name in NEWER_NAMES and error.param):  # a text may quote the request
                    learned.add(name)
                elif name not in NEWER_NAMES and call.dropped is not None:
                    call.dropped.add(name)  # and asked for again: the server may reject it in some requests only
            elif (changed := without_foreign_items(call, error)) is not call:
                call = changed
            else:
                raise error
        self._rejected_fields |= learned
        return response

    async def _refusal(self, call: Call, response: Response) -> ExpertError:
        """The error for another status than 200. Releases the response."""
        body = b""
        try:
            with contextlib.suppress(OSError):  # also a TimeoutError: what has arrived counts
                async with asyncio.timeout(REFUSAL_TIMEOUT):
                    while len(body) < MAX_REFUSAL_BYTES and (chunk := await response.chunk()):
                        body += chunk
        finally:
            response.release()
        return self._errors.refusal(response.status, response.headers, body[:MAX_REFUSAL_BYTES], api=call.api)

    async def _not_a_stream(self, response: Response) -> ExpertError:
        """The error for a response that is no event stream. Servers may send an error as JSON with status 200."""
        if response.media_type == WholeReply.media_type:
            with contextlib.suppress(ValueError):
                answer = json_text.loads(await response.read(MAX_REFUSAL_BYTES))
                if isinstance(answer, dict) and answer.get("error"):
                    return self._errors.server_error("answered with an error", answer)
        return self._errors.invalid_response(f"{response.media_type} where an event stream was requested")

    def _target(self, api: Api) -> Target:
        if (target := self._targets.get(api)) is None:
            path = API_FORMATS[api].path
            base = remove_suffix(self._base_url, "/v1") if path.startswith("/") else self._base_url
            headers = {} if api in PASS_THROUGH_APIS else {"content-type": "application/json"}
            if self._key:
                headers["authorization"] = f"Bearer {self._key}"
                headers |= {"x-api-key": self._key} if api == "messages" else {}
            target = self._targets[api] = Target(join_path(base, path.removeprefix("/")), headers)
        return target

    def _body(self, call: Call) -> bytes:
        if isinstance(call.fields, FormBody):
            return call.fields.with_model(self._model, leave_out=self._left_out(call, call.fields.names))
        fields = call.fields
        if left_out := self._left_out(call, fields):
            fields = {name: value for name, value in fields.items() if name not in left_out}
        defaults = self._defaults[call.api]
        body = {**applicable_defaults(defaults, fields), **fields, MODEL: self._model}
        if USAGE_OPTION in call.optional:
            body[USAGE_OPTION] = {**(body.get(USAGE_OPTION) or {}), "include_usage": True}
        if self._system_prompt:
            body |= API_FORMATS[call.api].system_prompt_fields(fields, self._system_prompt)
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
            raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error

    def _left_out(self, call: Call, names: Iterable[str]) -> list[str]:
        """The client's fields that are not sent and reported: they could select another model. Servers in Go (Ollama)
        ignore the case of names."""
        left_out = [name for name in names if name.casefold() in self._unsent and name != MODEL]
        if left_out and call.dropped is not None:
            call.dropped.update(map(str.casefold, left_out))
        return left_out

    async def _reply(
        self, call: Call, response: Response, usage: Usage, held: HeldAnswer
    ) -> WholeReply | StreamedReply | RelayedReply:
        whole = not call.stream
        if call.api in PASS_THROUGH_APIS and not (whole := response.media_type == WholeReply.media_type):
            first = await response.chunk()
            return RelayedReply(response, first, errors=self._errors, stream_idle_timeout=call.stream_idle_timeout)
        api_format, errors, rewriter = API_FORMATS[call.api], self._errors, self._rewriter
        if whole:
            return await read_json(
                response, api_format=api_format, errors=errors, rewriter=rewriter, usage=usage, held=held
            )
        if response.media_type != sse.EVENT_STREAM:
            raise await self._not_a_stream(response)
        return StreamedReply(
            response,
            api_format=api_format,
            errors=errors,
            rewriter=rewriter,
            stream_idle_timeout=call.stream_idle_timeout,
            usage=usage,
            held=held,
            hides_usage=call.api in APIS_WITH_STREAM_OPTIONS and not shows_usage(call),
            has_one_choice=call.fields.get("n") in (None, 1),
        )
