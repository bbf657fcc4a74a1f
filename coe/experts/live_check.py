"""Checks experts live: requests a short answer from each server, and reports cause and remedy of each failure.

`coe check --live`, `coe up` and the gateway's start use it. The request bypasses breakers and incidents, so a check
does not affect traffic.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from coe.core import Api, Call
from coe.errors import Cause, ExpertError, InvalidRequest
from coe.experts.api_formats import Fields
from coe.experts.error_mapping import REMEDIES, redacted
from coe.experts.http.client import Client
from coe.experts.replicas import ReplicatedExpert
from coe.settings import Endpoint
from coe.urls import join_path

ANSWER_TIMEOUT = 30.0
"""Seconds for the answer."""
LIST_TIMEOUT = 5.0
"""Seconds for the list of models."""
MAX_LIST_BYTES = 2**20
MAX_NAME = 100
"""Characters of a listed name."""
MAX_NAMES = 5
"""Listed names that a finding mentions."""
CONCURRENCY = 8
"""Servers checked at a time."""
MAX_ANSWER_TOKENS = 16
"""The fewest that OpenAI allows for some models and APIs."""
GREETING = [{"role": "user", "content": "Hi"}]
_REQUESTS: Mapping[Api, Fields] = {
    "chat": {"messages": GREETING, "max_tokens": MAX_ANSWER_TOKENS},
    "completions": {"prompt": "Hi", "max_tokens": MAX_ANSWER_TOKENS},
    "messages": {"messages": GREETING, "max_tokens": MAX_ANSWER_TOKENS},
    "responses": {"input": "Hi", "max_output_tokens": MAX_ANSWER_TOKENS},
    "embeddings": {"input": "Hi"},
    "rerank": {"query": "Hi", "documents": ["Hi"]},
    "score": {"text_1": "Hi", "text_2": "Hi"},
    "tokenize": {"prompt": "Hi"},
    "moderations": {"input": "Hi"},
}
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

    @property
    def ok(self) -> bool:
        return self.cause is None

    @property
    def sentence(self) -> str:
        """The result as one line."""
        if self.ok:
            return f"expert {self.expert} answers at {self.address} ({self.ms:.0f} ms)"
        return f"expert {self.expert} at {self.address}: {self.problem} ({self.cause}); {self.remedy}"


async def check_experts(experts: Iterable[ReplicatedExpert], *, session: Client) -> list[Finding]:
    """Requests a few tokens from every server of the experts. Returns findings in their order. Raises nothing."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def check(expert: ReplicatedExpert, index: int) -> Finding:
        async with slots:
            return await _check(expert, index, session)

    return await asyncio.gather(*(check(expert, index) for expert in experts for index in range(len(expert.replicas))))


def log_findings(findings: Sequence[Finding]) -> None:
    """Logs one line for each server that did not answer, and a summary."""
    for finding in findings:
        if not finding.ok:
            _log.warning("check at start: %s", finding.sentence)
    answered = sum(finding.ok for finding in findings)
    _log.info("check at start: %d of %d expert servers answer", answered, len(findings))


async def _check(expert: ReplicatedExpert, index: int, session: Client) -> Finding:
    """Checks one server."""
    spec, replica, began = expert.spec, expert.replicas[index], time.monotonic()
    key = spec.api_key.get_secret_value() if spec.api_key else ""
    endpoint = expert.endpoints[index] if expert.endpoints else None

    def problem(cause: Cause, text: str, remedy: str = "") -> Finding:
        what, usual = REMEDIES[cause]
        return Finding(spec.name, replica.address, cause, f"{what} [{text}]", remedy or usual)

    api = next((api for api in _REQUESTS if api in spec.supported_apis), None)
    try:
        if api is not None:
            optional = frozenset(("max_tokens",)) & _REQUESTS[api].keys()
            call = Call(_REQUESTS[api], False, ANSWER_TIMEOUT, ANSWER_TIMEOUT, api=api, optional=optional)
            reply = await replica.expert.stream(call)
            try:
                async for _ in reply.chunks():
                    pass
            finally:
                await reply.aclose()
        elif endpoint is None or await _list_models(endpoint, key, session) is None:
            return problem("not_found", "lists no models")  # audio or images would cost more than a few tokens
    except (ExpertError, InvalidRequest) as error:
        cause: Cause = error.cause if isinstance(error, ExpertError) else "unsupported"
        text = redacted(str(error)).removeprefix(f"expert {spec.name!r} ")
        if (reason := error.__cause__) is not None and str(reason):
            text += f": {redacted(str(reason))}"
        remedy = ""
        if cause == "connection_refused" and not spec.addresses:
            remedy = "start it with `coe up`"
        elif cause == "model_not_found" and endpoint and (names := await _list_models(endpoint, key, session)):
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            served = ", ".join(sorted(names)[:MAX_NAMES]) + more
            remedy = f"correct `model: {endpoint.model}` in experts.yaml; it serves {served}"
        return problem(cause, text, remedy)
    except Exception as error:  # report the class alone: the message may hold anything
        _log.debug("the check of expert %s failed", spec.name, exc_info=True)
        return problem("error", type(error).__name__)
    return Finding(spec.name, replica.address, ms=(time.monotonic() - began) * 1000)


async def _list_models(endpoint: Endpoint, key: str, session: Client) -> list[str] | None:
    """The models that a server lists, empty if it shows none to this key; None for another kind of page."""
    headers = {"authorization": f"Bearer {key}", "x-api-key": key} if key else {}
    headers["anthropic-version"] = "2023-06-01"
    try:
        async with asyncio.timeout(LIST_TIMEOUT):
            url = join_path(endpoint.base_url, "models")
            status, page = await session.get(url, headers, max_bytes=MAX_LIST_BYTES)
        models = [] if status in (401, 403) else orjson.loads(page)["data"] if status == 200 else None
        return None if models is None else [redacted(str(model["id"]))[:MAX_NAME] for model in models]
    except (OSError, ValueError, TypeError, KeyError):
        return None
