"""Fakes of our own Protocols, and a way to drive an ASGI app as a server would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette

from coe.artifacts.active_state import DocumentIndex
from coe.core import Call, Expert, Health, Neighbour, Prediction
from coe.planning.assignment import Assignment
from coe.planning.plan import Plan, declared_digests
from coe.planning.problem import Problem, declared_assignment
from coe.planning.score_table import ScoreTable
from coe.planning.uses import Uses, declared_uses
from coe.recipes.expert import build_recipes
from coe.records import LogWriter
from coe.registry import Registry
from coe.retrieval.retrieval import Retrieval
from coe.routing.composition import Composition
from coe.routing.conversation import Affinity
from coe.settings import Settings
from coe.usage import SentCall, Usage
from gateway.access.access import Access
from gateway.access.issued_keys import KEYS_FILE, IssuedKeyWatch, KeyStore
from gateway.access.limits import Limiter
from gateway.app import create_app
from gateway.cache import open_cache
from gateway.observability.metrics import Metrics
from gateway.observability.observers import ImplicitSignals
from gateway.observability.tracing import Tracing
from gateway.process.jobs import Jobs
from gateway.request.stored_step import open_stored_step
from gateway.services import Observer, Services
from gateway.shared_store import SqliteStore
from gateway.snapshot import Snapshot
from routers import prompt_digest
from routers.cascade import FORMAT
from tests.list_log import ListLog
from tests.waiting import ManualClock

NOWHERE = Settings.read({}, config=Path(__file__).parent / "nowhere" / "experts.yaml")
"""Of a gateway that needs no files: no artifacts, no declaration."""


def registry_of(**changes: Any) -> Registry:
    """Three experts: `coder` (tools), `painter` (images) and `generalist`; three categories."""
    local = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    declared: dict[str, Any] = {
        "version": 1,
        "categories": [{"name": name, "description": name} for name in ("code", "art", "general")],
        "experts": [
            {"name": "coder", "capabilities": ["tools"], **local},
            {"name": "painter", "capabilities": ["images"], **local},
            {"name": "generalist", **local},
        ],
        "assignment": {"code": "coder", "art": "painter", "general": "generalist"},
    }
    return Registry.model_validate(declared | changes)


def plan_of(assignment: Assignment, registry: Registry | None = None) -> Plan:
    """A plan with this assignment, whose scores are its qualities, made for the registry."""
    names, quality = (assignment.categories, assignment.experts), assignment.quality
    known = np.isfinite(quality)
    table = ScoreTable(*names, np.where(known, quality, 0.0), np.zeros(quality.shape), np.where(known, 1e9, 0.0))
    problem = Problem(*names, quality, np.full(len(quality), 1 / len(quality)))
    if registry is None:
        return Plan(assignment, problem, table, "a test", table.mean, table.mean)
    arms = len(assignment.experts) - len(registry.experts)
    uses = declared_uses(registry, assignment.categories).joined(Uses(), arms)
    made_for = {"pins": registry.assignment, "declared": declared_digests(registry)}
    return Plan(assignment, replace(problem, uses=uses), table, "a test", table.mean, table.mean, **made_for)


def router_json(categories: Sequence[str] = ("code", "general"), **changes: Any) -> bytes:
    """A valid router.json, of a folder without the router's tables."""
    model = {"weights": [1.0], "bias": 0.0}
    config = {
        "format": FORMAT,
        "categories": categories,
        "tokens": 256,
        "multilingual": False,
        "ensemble": {"fast": [0.5, 0.5], "encoder": [0.25] * 4, "threshold": 0.5},
        "in_distribution": {"fast": model, "encoder": model},
    }
    return orjson.dumps(config | changes)


class WordRouter:
    """A router that predicts the category named in the text; it is uncertain where the text has the word `ponder`. The
    language is the word after `language:`. The encoder's features are the probabilities."""

    categories = ("code", "art", "general")
    version = "words"

    def predict_fast(self, text: str) -> Prediction:
        if "ponder" in text:
            return self._prediction(text, "fast_uncertain", confidence_threshold=1.0)
        return self._prediction(text, "predict_fast")

    def predict(
        self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None, encode: bool = False
    ) -> list[Prediction]:
        found = [self._prediction(text, "predict" if encode or "ponder" in text else "predict_fast") for text in texts]
        return [replace(one, features=one.probabilities) for one in found] if encode else found

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        """The similarity of a category's description equals its probability."""
        shares = zip(self.categories, self._prediction(text, "predict_fast").probabilities.tolist(), strict=True)
        nearest = sorted(shares, key=lambda share: -share[1])[:limit]
        return [Neighbour(name, share, prompt_digest(name)) for name, share in nearest]

    def _prediction(self, text: str, stage: str, *, confidence_threshold: float = 0.01) -> Prediction:
        named = [float(name in text) for name in self.categories]
        scores = np.array(named if any(named) else [1, 1, 1], dtype=np.float32) + confidence_threshold
        language = text.partition("language:")[2].partition(" ")[0]
        return Prediction(scores / scores.sum(), stage, language=language)


class ScriptedReply:
    """A reply from a script: yields chunks, waits for events, and raises errors."""

    def __init__(self, chunks: Sequence[Any], *, stream: bool) -> None:
        self.media_type = "text/event-stream" if stream else "application/json"
        self.usage = Usage()
        self.usage.input_tokens, self.usage.output_tokens = 3, 5
        self.closed = False
        self._chunks = chunks

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for chunk in self._chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            if isinstance(chunk, asyncio.Event):
                await chunk.wait()
            else:
                yield chunk

    async def aclose(self) -> None:
        self.closed = True


class ScriptedExpert:
    """An expert that answers with its script: an error to raise, an event to wait for, or the pieces of an answer."""

    def __init__(self, name: str, script: Any = (b'{"choices":[]}',)) -> None:
        self.name = name
        self.script = script
        self.calls: list[Call] = []
        self.replies: list[ScriptedReply] = []
        self.cancelled = False
        self.health = Health()

    async def stream(self, call: Call) -> ScriptedReply:
        self.calls.append(call)
        if isinstance(self.script, BaseException):
            raise self.script
        sent = SentCall(self.name)
        call.sent.append(sent)
        if isinstance(self.script, asyncio.Event):
            try:
                await self.script.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        reply = ScriptedReply(() if isinstance(self.script, asyncio.Event) else self.script, stream=call.stream)
        self.replies.append(reply)
        sent.usage = reply.usage
        return reply


@dataclass
class Response:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> Any:
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]


QUICKLY: dict[str, Any] = {"interval": 0.001, "first_retry": 0.01, "max_retry": 0.02}
"""For the writer of feedback: seconds between batches and between tries."""


class Gateway:
    """The real app over fakes: `post` sends a request and returns the response; `leave` makes the client go. Where a
    chunk of a body is an event, the rest comes when it is set."""

    def __init__(self, app: Starlette, experts: dict[str, ScriptedExpert], log: ListLog, services: Services) -> None:
        self.app, self.experts, self.log, self.services = app, experts, log, services
        self.records = log.records
        self.leave = asyncio.Event()
        self.first_chunk = asyncio.Event()

    async def chat(self, text: str = "hello general", **fields: Any) -> Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        return await self.post("/v1/chat/completions", orjson.dumps(body))

    async def post(
        self,
        path: str,
        *chunks: bytes | asyncio.Event,
        headers: dict[str, str] | None = None,
        method: str = "POST",
        query: str = "",
        unfinished: bool = False,
        into: Response | None = None,
    ) -> Response:
        sent = {"host": "localhost", **(headers if headers is not None else {"content-type": "application/json"})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
            "headers": [(key.encode(), value.encode()) for key, value in sent.items()],
        }
        response = into or Response()
        messages = [
            {"type": "http.request", "body": chunk, "more_body": unfinished or index < len(chunks) - 1}
            for index, chunk in enumerate(chunks or (b"",))
        ]

        async def receive() -> dict[str, Any]:
            while messages:
                message = messages.pop(0)
                if not isinstance(message["body"], asyncio.Event):
                    return message
                await message["body"].wait()
            await self.leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                response.status = message["status"]
                response.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            elif message["body"]:
                response.chunks.append(message["body"])
                self.first_chunk.set()

        await self.app(scope, receive, send)
        return response


def scripted_experts(registry: Registry, scripts: Mapping[str, Any]) -> dict[str, Expert]:
    """Build every declared expert by name; one without a script gives a default answer."""
    return {name: ScriptedExpert(name, *([scripts[name]] if name in scripts else [])) for name in registry.expert_names}


def _composition_of(
    registry: Registry,
    experts: Mapping[str, Expert],
    threads: ThreadPoolExecutor,
    assignment: Assignment | None,
    **parts: Any,
) -> Composition:
    router = WordRouter()
    return Composition(
        registry,
        router=router,
        assignment=assignment or declared_assignment(registry, router.categories),
        experts=experts,
        threads=threads,
        recipes=build_recipes(registry, experts, categories=len(router.categories)),
        **parts,
    )


@asynccontextmanager
async def gateway_of(
    registry: Registry | None = None,
    *,
    observers: Sequence[Observer] = (),
    tracing: Tracing | None = None,
    retrieval: Retrieval | None = None,
    index: DocumentIndex | None = None,
    settings: Settings | None = None,
    versions: Mapping[str, str | None] = MappingProxyType({}),
    assignment: Assignment | None = None,
    jobs: Any = None,
    spool: Path | None = None,
    stored: Path | None = None,
    real_experts: Mapping[str, Expert] = MappingProxyType({}),
    affinity: Affinity | None = None,
    **scripts: Any,
) -> AsyncIterator[Gateway]:
    """The real app, started, with scripted experts: `gateway_of(coder=ExpertUnavailable(...))`. `versions` is what it
    says it was made of, by kind of artifact; `jobs` stands in for the processes beside it. `spool` is the
    file where feedback waits while the log fails, `stored` the folder of stored responses; `real_experts` replace
    scripted ones."""
    registry = registry or registry_of()
    experts: dict[str, Expert] = {**scripted_experts(registry, scripts), **real_experts}
    log = ListLog([])
    opened: list[Services] = []

    @asynccontextmanager
    async def open_services() -> AsyncIterator[Services]:
        where = settings or NOWHERE
        with ThreadPoolExecutor(1) as threads:
            composition = _composition_of(
                registry, experts, threads, assignment, affinity=affinity, retrieval=retrieval
            )
            limiter = Limiter(clock=ManualClock())  # no minute ends while a busy machine pauses
            access = Access(registry, limiter, routed=composition.routed_arms)
            metrics = Metrics()
            stored_feedback = partial(metrics.count, "coe_feedback_total")
            not_stored = partial(metrics.count, "coe_responses_not_stored_total")
            async with (
                LogWriter(log, log, spool=spool, count=stored_feedback, **QUICKLY) as writer,
                open_cache(registry.cache) as cache,
                nullcontext()
                if stored is None
                else open_stored_step(registry.stored_responses, stored, count=not_stored) as step,
                Jobs(where) as own_jobs,
            ):
                signals = ImplicitSignals(writer.put)
                services = Services(
                    Snapshot(composition, access, index, versions),
                    observers=(metrics.observe, log.observe, signals.observe, *observers),
                    metrics=metrics,
                    log=log,
                    feedback=log,
                    writer=writer,
                    settings=where,
                    jobs=jobs or own_jobs,
                    tracing=tracing,
                    cache=cache,
                    stored=step,
                    issued=IssuedKeyWatch(KeyStore(SqliteStore(where.home / KEYS_FILE))),
                )
                opened.append(services)
                yield services

    app = create_app(open_services)
    async with app.router.lifespan_context(app):
        yield Gateway(app, experts, log, opened[0])
