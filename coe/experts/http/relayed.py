"""Replies of operations that CoE does not route by text, such as audio, images and scores.

JSON is read to its end, for its token counts and the model's name. Anything else goes to the client as it arrives.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from coe import json_text
from coe.experts.api_formats import record_usage
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http.client import Response
from coe.experts.http.replies import MAX_ANSWER_BYTES, JsonReply, ModelNameRewriter
from coe.usage import Usage

DEFAULT_TYPE = "application/octet-stream"


class RelayedReply:
    """A response of any media type. `begin` reads the first chunk, or all of a JSON body."""

    def __init__(
        self,
        response: Response,
        *,
        errors: ErrorMapping,
        rewriter: ModelNameRewriter,
        stream_idle_timeout: float,
        held: HeldAnswer,
    ) -> None:
        self._response = response
        self._errors = errors
        self._rewriter = rewriter
        self._stream_idle_timeout = stream_idle_timeout
        self._held = held
        self._is_json = response.media_type == JsonReply.media_type
        self.media_type = response.media_type if self._is_json else response.headers.get("content-type", DEFAULT_TYPE)
        self._first = b""
        self.usage = Usage()

    async def begin(self) -> None:
        self._first = await (self._json() if self._is_json else self._response.chunk())

    async def _json(self) -> bytes:
        body = await self._response.read(MAX_ANSWER_BYTES, report=self._held.resize)
        if len(body) > MAX_ANSWER_BYTES:
            raise self._errors.invalid_response("an answer longer than the limit of 64 MiB")
        try:
            answer: Any = json_text.loads(body)
        except ValueError:
            raise self._errors.invalid_response("something that is not JSON") from None
        if not isinstance(answer, dict):
            return body
        if answer.get("error"):
            raise self._errors.server_error("answered with an error", answer)
        record_usage(self.usage, answer.get("usage"))
        return self._rewriter.in_answer(body, answer)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        chunk, self._first = self._first, b""
        try:
            while chunk:
                yield chunk
                if self._is_json:
                    return
                chunk = await self._response.chunk(self._stream_idle_timeout)
        except TimeoutError:
            raise self._errors.timed_out(f"sent nothing for {self._stream_idle_timeout:g} s") from None
        except OSError as error:
            raise self._errors.connection_lost("broke off the answer") from error

    async def aclose(self) -> None:
        self._held.resize(0)
        self._response.release()
