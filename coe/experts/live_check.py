"""Checks experts live: requests a short answer from each server, and reports cause and remedy of each failure.

`coe check --live`, `coe up` and the gateway's start use it. The request bypasses breakers and incidents, so a check
does not affect traffic.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from coe.core import Api, Call
from coe.errors import Cause, ExpertError, ExpertRejected, InvalidRequest
from coe.experts.api_formats import LENGTH_FIELDS, Fields
from coe.experts.error_mapping import REMEDIES, redacted
from coe.experts.http.client import Client
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.experts.translation.chat_answer import ChatReader
from coe.registry import ExpertSpec
from coe.urls import join_path, redact_url

ANSWER_TIMEOUT = 30.0
"""Seconds for the one token."""
LIST_TIMEOUT = 5.0
"""Seconds for the list of models."""
MAX_ANSWER_BYTES = 64 * 1024
"""Bytes of an answer that are read for its text."""
MAX_ANSWER_CHARACTERS = 200
MAX_LIST_BYTES = 2**20
MAX_LISTED = 500
"""Listed names that are compared with the declared one."""
MAX_NAME = 100
"""Characters of a listed name."""
MAX_NAMES = 5
"""Listed names that a finding mentions."""
CONCURRENCY = 8
"""Servers checked at a time."""
MAX_ANSWER_TOKENS = 16
"""The fewest that OpenAI allows for some models and APIs; others are requested to answer with one."""
GREETING = [{"role": "user", "content": "Hi"}]
_REQUESTS: Mapping[Api, Fields] = {
    "chat": {"messages": GREETING, "max_tokens": 1},
    "completions": {"prompt": "Hi", "max_tokens": 1},
    "messages": {"messages": GREETING, "max_tokens": 1},
    "responses": {"input": "Hi", "max_output_tokens": MAX_ANSWER_TOKENS},
    "embeddings": {"input": "Hi"},
    "rerank": {"query": "Hi", "documents": ["Hi"]},
    "score": {"text_1": "Hi", "text_2": "Hi"},
    "tokenize": {"prompt": "Hi"},
    "moderations": {"input": "Hi"},
}
_ELSEWHERE: frozenset[Cause] = frozenset({"not_found", "invalid_response", "unexpected_status"})
"""Causes for which the API may be at another path of the same server."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one server of an expert. Without a `cause` it answered, in `ms` milliseconds."""

    expert: str
    address: str
    cause: Cause | None = None
    problem: str = ""
    remedy: str = ""
    ms: float = 0.0
    first_token_ms: float = 0.0
    answer: str = ""
    """The beginning of the answer; like `first_token_ms` of a stream only."""

    @property
    def ok(self) -> bool:
        return self.cause is None

    @property
    def sentence(self) -> str:
        """The result as one line."""
        if self.ok:
            return f"expert {self.expert} answers at {self.address} ({self.ms:.0f} ms)"
        return f"expert {self.expert} at {self.address}: {self.problem} ({self.cause}); {self.remedy}"


async def check_experts(
    experts: Iterable[ReplicatedExpert], *, session: Client, streams: bool = False
) -> list[Finding]:
    """Requests one token from every server of the experts. Returns findings in their order. Raises nothing.

    With `streams`, chat is requested as a stream, so that findings have the time to the first token and the answer."""
    limit = asyncio.Semaphore(CONCURRENCY)

    async def checked(expert: ReplicatedExpert, index: int) -> Finding:
        async with limit:
            return await _Check(expert, index, session, streams=streams).run()

    checks = [checked(expert, index) for expert in experts for index in range(len(expert.replicas))]
    return await asyncio.gather(*checks)


def log_findings(findings: Sequence[Finding]) -> None:
    """Logs one line for each server that did not answer, and a summary."""
    for finding in findings:
        if not finding.ok:
            _log.warning("check at start: %s", finding.sentence)
    answered = sum(finding.ok for finding in findings)
    _log.info("check at start: %d of %d expert servers answer", answered, len(findings))


class _Check:
    """The check of one server."""

    def __init__(self, expert: ReplicatedExpert, index: int, session: Client, *, streams: bool) -> None:
        self._spec: ExpertSpec = expert.spec
        self._replica: Replica = expert.replicas[index]
        self._base_url = expert.endpoints[index].base_url.rstrip("/") if expert.endpoints else ""
        self._model = expert.endpoints[index].model if expert.endpoints else expert.spec.model
        self._session = session
        self._streams = streams
        self._first_token_ms = 0.0
        self._answer = b""

    async def run(self) -> Finding:
        began = time.monotonic()
        api = next((api for api in _REQUESTS if api in self._spec.supported_apis), None)
        try:
            if api is not None:
                await self._request(api, _REQUESTS[api])
            elif await self._list_models(join_path(self._base_url, "models")) is None:
                return self._problem("not_found", "lists no models")  # audio or images would cost more than a token
        except (ExpertError, InvalidRequest) as error:
            return await self._finding(error)
        except Exception as error:  # report the class alone: the message may hold anything
            _log.debug("the check of expert %s failed", self._spec.name, exc_info=True)
            return self._problem("error", type(error).__name__)
        return Finding(
            self._spec.name,
            self._replica.address,
            ms=(time.monotonic() - began) * 1000,
            first_token_ms=self._first_token_ms,
            answer=redacted(_chat_text(self._answer)),
        )

    async def _request(self, api: Api, fields: Fields) -> None:
        began, streams = time.monotonic(), self._streams and api == "chat"
        sent = {**fields, "stream": True} if streams else fields
        try:
            reply = await self._replica.expert.stream(Call(sent, streams, ANSWER_TIMEOUT, ANSWER_TIMEOUT, api=api))
        except ExpertRejected as error:
            limits = [name for name in LENGTH_FIELDS if error.param == name or name in str(error)]
            if not limits or "max_completion_tokens" in fields:
                raise
            unlimited = {name: value for name, value in fields.items() if name not in LENGTH_FIELDS}
            await self._request(api, {**unlimited, "max_completion_tokens": MAX_ANSWER_TOKENS})  # of reasoning models
            return
        if streams:
            self._first_token_ms = (time.monotonic() - began) * 1000
        try:
            async for chunk in reply.chunks():
                if streams:
                    self._answer += chunk if len(self._answer) + len(chunk) <= MAX_ANSWER_BYTES else b""
        finally:
            await reply.aclose()

    async def _finding(self, error: ExpertError | InvalidRequest) -> Finding:
        cause: Cause = error.cause if isinstance(error, ExpertError) else "unsupported"
        text = redacted(str(error)).removeprefix(f"expert {self._spec.name!r} ")
        if (reason := error.__cause__) is not None and str(reason):
            text += f": {redacted(str(reason))}"
        remedy = ""
        if cause == "model_not_found":
            remedy = await self._nearest_models()
        elif cause in _ELSEWHERE and self._base_url:
            remedy = await self._other_path()
        elif cause == "connection_refused" and not self._spec.addresses:
            remedy = "start it with `coe up`"
        return self._problem(cause, text, remedy)

    def _problem(self, cause: Cause, text: str, remedy: str = "") -> Finding:
        what, usual = REMEDIES[cause]
        return Finding(self._spec.name, self._replica.address, cause, f"{what} [{text}]", remedy or usual)

    async def _nearest_models(self) -> str:
        """The remedy for a model that is not served: the listed names nearest to it. Empty if the server lists none."""
        names = await self._list_models(join_path(self._base_url, "models")) if self._base_url else None
        if not names:
            return ""
        near = difflib.get_close_matches(self._model, names, n=MAX_NAMES, cutoff=0.4) or sorted(names)[:MAX_NAMES]
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        return f"correct `model: {self._model}` in experts.yaml; it serves {', '.join(near)}{more}"

    async def _other_path(self) -> str:
        """The remedy for a path without an API if the same server has one at a path nearby; empty otherwise."""
        parts = urlsplit(self._base_url)
        paths = (f"{parts.path}/v1", f"{parts.path.partition('/v1')[0]}/v1", "/v1")
        for path in dict.fromkeys(paths):
            url = parts._replace(path=path, fragment="").geturl()
            if path != parts.path and await self._list_models(join_path(url, "models")) is not None:
                return f"its API is at /v1: write `base_url: {redacted(redact_url(url))}` in experts.yaml"
        return ""

    async def _list_models(self, url: str) -> list[str] | None:
        """The models that a page lists, empty if it shows none to this key; None for another kind of page."""
        key = self._spec.api_key.get_secret_value() if self._spec.api_key else ""
        headers = {"authorization": f"Bearer {key}", "x-api-key": key} if key else {}
        headers["anthropic-version"] = "2023-06-01"
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                status, page = await self._session.get(url, headers, max_bytes=MAX_LIST_BYTES)
        except (OSError, ValueError):
            return None
        try:
            models = [] if status in (401, 403) else orjson.loads(page)["data"] if status == 200 else None
            return None if models is None else [redacted(str(model["id"]))[:MAX_NAME] for model in models[:MAX_LISTED]]
        except (ValueError, TypeError, KeyError):
            return None


def _chat_text(events: bytes) -> str:
    """The text of a chat stream's events, at most MAX_ANSWER_CHARACTERS; events of another form are left out."""
    try:
        return "".join(delta.text or delta.reasoning for delta in ChatReader().deltas(events))[:MAX_ANSWER_CHARACTERS]
    except ValueError:
        return ""
