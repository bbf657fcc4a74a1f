"""Checks experts live: requests a short answer from each server, and reports cause and remedy of each failure.

`coe check --live` and `coe up` use it. The request bypasses breakers and incidents, so a check
does not affect traffic.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coe.core import Api, Call
from coe.errors import REMEDIES, Cause, ExpertError, InvalidRequest
from coe.experts.api_formats import Fields
from coe.experts.error_mapping import redacted
from coe.experts.http.client import Client
from coe.experts.replicas import ReplicatedExpert
from coe.urls import join_path

ANSWER_TIMEOUT = 30.0
"""Seconds for the answer."""
MAX_LIST_BYTES = 2**20
MAX_ANSWER_TOKENS = 16
"""The fewest that OpenAI allows for some models and APIs."""
GREETING = [{"role": "user", "content": "Hi"}]
_REQUESTS: Mapping[Api, Fields] = {
    "chat": {"messages": GREETING, "max_tokens": MAX_ANSWER_TOKENS},
    "completions": {"prompt": "Hi", "max_tokens": MAX_ANSWER_TOKENS},
    "messages": {"messages": GREETING, "max_tokens": MAX_ANSWER_TOKENS},
    "responses": {"input": "Hi", "max_output_tokens": MAX_ANSWER_TOKENS},
    "embeddings": {"input": "Hi"},
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
    checks = [_check(expert, index, session) for expert in experts for index in range(len(expert.replicas))]
    return await asyncio.gather(*checks)


async def _check(expert: ReplicatedExpert, index: int, session: Client) -> Finding:
    """Checks one server."""
    spec, replica, began = expert.spec, expert.replicas[index], time.monotonic()
    key = spec.api_key.get_secret_value() if spec.api_key else ""
    base_url = expert.endpoints[index].base_url if expert.endpoints else ""

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
        else:  # an answer would cost more than a few tokens
            headers = {"authorization": f"Bearer {key}"} if key else {}
            status, _ = await session.get(join_path(base_url, "models"), headers, max_bytes=MAX_LIST_BYTES)
            if status != 200:
                return problem("not_found", "lists no models")
    except (ExpertError, InvalidRequest) as error:
        cause: Cause = error.cause if isinstance(error, ExpertError) else "unsupported"
        text = redacted(str(error)).removeprefix(f"expert {spec.name!r} ")
        if (reason := error.__cause__) is not None and str(reason):
            text += f": {redacted(str(reason))}"
        is_local = cause == "connection_refused" and not spec.addresses
        return problem(cause, text, "start it with `coe up`" if is_local else "")
    except Exception as error:  # report the class alone: the message may hold anything
        _log.debug("the check of expert %s failed", spec.name, exc_info=True)
        return problem("error", type(error).__name__)
    return Finding(spec.name, replica.address, ms=(time.monotonic() - began) * 1000)
