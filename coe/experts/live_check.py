"""Checks experts live: requests a short answer from each server, and reports cause and remedy of each failure.

`coe check --live` and `coe up` use it. The request bypasses breakers and incidents, so a check
does not affect traffic.

Reads the queue lengths of inference servers in the background, for load-aware selection, and checks the health of
servers whose breaker is open.

The queue length is on a server's page of metrics, under the name that vLLM, SGLang or llama.cpp gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coe.core import Api, Call
from coe.errors import REMEDIES, Cause, ExpertError, InvalidRequest
from coe.experts.api_formats import Fields
from coe.experts.error_mapping import redacted
from coe.experts.http.client import Client
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.supervision import TaskFailed, ignore_failure, supervised
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


INTERVAL = 1.0
"""Seconds between two rounds."""
PAGE_TIMEOUT = 2.0
"""Seconds for one page."""
MAX_PAGE_BYTES = 4 * 2**20
_WAITING = re.compile(
    rb"\n(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:\{[^\n]*\})? ([0-9]+)"
)


@asynccontextmanager
async def reading_queues(
    experts: Callable[[], Iterable[ReplicatedExpert]], *, session: Client, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[None]:
    """Reads the queues of the replicas of `experts()`, and ends its resolved incidents, until the block ends.
    `experts` is called each round, because a reload replaces them."""

    async def run() -> None:
        without_queue = set[Replica]()
        while True:
            await read_queues(experts(), without_queue, session=session)
            for expert in experts():
                expert.incidents.close_resolved()
            await asyncio.sleep(INTERVAL)

    task = supervised(run, "expert-queues", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def read_queues(experts: Iterable[ReplicatedExpert], without_queue: set[Replica], *, session: Client) -> None:
    """Reads the queue of each replica whose breaker is closed, except those `without_queue`. Adds a replica to these if
    its server shows no queue. Checks that the others answer at all. Takes a few seconds at most."""

    async def get(replica: Replica, page: str) -> tuple[int, bytes]:
        with contextlib.suppress(OSError, ValueError):  # TimeoutError is an OSError; ValueError: no URL
            async with asyncio.timeout(PAGE_TIMEOUT):
                return await session.get(join_path(replica.root, page), max_bytes=MAX_PAGE_BYTES)
        return 0, b""

    async def read(replica: Replica) -> None:
        status, page = await get(replica, "metrics")
        shows_queue = status == 200 and _WAITING.search(b"\n" + page) is not None
        replica.queue_length = queue_length(page) if shows_queue else None
        if not shows_queue and 0 < status < 500:
            without_queue.add(replica)

    async def check(replica: Replica) -> None:
        status, _ = await get(replica, "health")
        replica.checked(0 < status < 500)  # a server without this page answers 404

    replicas = {replica for expert in experts for replica in expert.replicas if replica.root}
    without_queue &= replicas
    resting = {replica for replica in replicas if replica.breaker.is_open}
    for replica in resting:
        replica.queue_length = None
    failing = [one for one in replicas if one in resting or any(own.is_open for own in one.by_caller.values())]
    await asyncio.gather(*map(read, replicas - resting - without_queue), *map(check, failing))


def queue_length(page: bytes) -> int:
    """The sum of the queue lengths on a page of metrics."""
    return sum(map(int, _WAITING.findall(b"\n" + page)))
