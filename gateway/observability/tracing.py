"""OpenTelemetry traces, if a collector is declared: a server span per request, with a child span for every step.

Attributes follow the semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/ and /http/); others
begin with `coe.`. No attribute holds text of the request.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from coe.core import RequestOptions
from coe.errors import ConfigError, pip_install
from coe.settings import Settings
from coe.urls import redact_url
from gateway.request.trace import Spans, Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext, SpanKind, Status
from typing import Any
from urllib.parse import urlsplit

from coe.core import PASS_THROUGH_APIS, PATHS, Api
from coe.registry import ExpertSpec
from coe.routing.composition import first_expert

Attributes = dict[str, Any]

_OPERATIONS: dict[Api, str] = {
    "completions": "text_completion",
    "embeddings": "embeddings",
    **{api: api for api in PASS_THROUGH_APIS},
}
"""All others are `chat`."""


def request_attributes(trace: Trace) -> Attributes:
    """Attributes of the server span."""
    registry, decision, prediction = trace.snapshot.registry, trace.decision, trace.prediction
    is_known = registry.models.resolve(trace.requested_model) is not None
    return _without_none(
        {
            "http.request.method": "POST",
            "url.path": PATHS[trace.api],
            "http.response.status_code": trace.status,
            "error.type": None if trace.outcome == "ok" else trace.outcome,
            "gen_ai.operation.name": _OPERATIONS.get(trace.api, "chat"),
            "gen_ai.provider.name": "coe",
            "gen_ai.request.model": trace.requested_model if is_known else None,
            "gen_ai.request.stream": trace.chat.stream if trace.chat else None,
            "gen_ai.conversation.id": trace.options.session if trace.options else None,
            **_answer_attributes(trace),
            "gen_ai.response.model": trace.expert if decision and trace.reply else None,
            "coe.request_id": trace.request_id,
            "coe.key": trace.caller.key,
            "coe.tenant": trace.caller.tenant,
            "coe.router": trace.snapshot.composition.router.version,
            "coe.config": registry.digest,
            "coe.stage": prediction.stage if prediction else None,
            "coe.expert": decision.expert if decision else None,
            "coe.category": decision.category if decision else None,
            "coe.confidence": round(decision.confidence, 4) if decision else None,
            "coe.reason": decision.reason if decision else None,
            "coe.cache": trace.cache.result if trace.cache else None,
            "coe.fallback_from": (decision.fallback_from or None) if decision else None,
            "coe.cause": (decision.cause or None) if decision else None,
            "coe.retrieval": trace.retrieval_result.status,
            "coe.passages": len(trace.retrieval_result.passages) or None,
            "coe.attempts": trace.attempts.count or None,
            "coe.cost": trace.cost,
        }
    )


def call_attributes(trace: Trace) -> Attributes:
    """Attributes of the client span of the call to the expert."""
    assert trace.decision is not None
    registry = trace.snapshot.registry
    spec = registry.expert(first_expert(registry.arm(trace.expert)))
    host, port = _server(spec)
    return _without_none(
        {
            "gen_ai.operation.name": _OPERATIONS.get(trace.api, "chat"),
            "gen_ai.provider.name": _provider(spec),
            "gen_ai.request.model": spec.model,
            "gen_ai.request.stream": trace.chat.stream if trace.chat else None,
            **_answer_attributes(trace),
            "server.address": host,
            "server.port": port,
            "error.type": None if trace.reply else trace.outcome,
            "coe.expert": trace.decision.expert,
            "coe.attempts": trace.attempts.count or None,
        }
    )


def _answer_attributes(trace: Trace) -> Attributes:
    usage, first = trace.usage, trace.first_token_ms
    streamed = trace.chat is not None and trace.chat.stream
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens if usage else None,
        "gen_ai.response.time_to_first_chunk": round(first / 1000, 6) if first is not None and streamed else None,
    }


def _provider(spec: ExpertSpec) -> str:
    """The vendor of the API, as the conventions advise: OpenAI for any server with an OpenAI-compatible API."""
    if spec.runtime == "external":
        return "openai"
    return spec.model.partition("/")[0] if spec.runtime == "litellm" else spec.runtime


def _server(spec: ExpertSpec) -> tuple[str | None, int | None]:
    """Host and port of an expert with one address; None otherwise."""
    if len(spec.addresses) != 1:
        return None, None
    address = urlsplit(spec.addresses[0])
    return address.hostname, address.port or (443 if address.scheme == "https" else 80)


def _without_none(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}


FLUSH_TIMEOUT_SECONDS = 3.0
"""Time limit for the last spans to reach the collector when the process ends."""


@asynccontextmanager
async def open_tracing(settings: Settings) -> AsyncIterator[Tracing | None]:
    """None if no collector is declared. Raises ConfigError if the packages are missing."""
    if settings.traces is None:
        yield None
        return
    check_tracing(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=settings.traces)
    processor = BatchSpanProcessor(exporter)  # a bounded queue and its own thread
    try:
        yield Tracing(processor)
    finally:
        await _flush(processor, exporter)


def check_tracing(settings: Settings) -> None:
    """Raises ConfigError if a collector is declared and the packages are missing."""
    if settings.traces is not None:
        try:
            import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"environment: traces are to go to {redact_url(settings.traces)} and OpenTelemetry is not installed; "
                f"run `{pip_install('otel')}`, or unset OTEL_EXPORTER_OTLP_ENDPOINT"
            ) from error


async def _flush(processor: SpanProcessor, exporter: SpanExporter) -> None:
    """Sends the remaining spans in a daemon thread, so that a dead collector cannot block the process."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def shut_down() -> None:
        processor.shutdown()
        with suppress(RuntimeError):  # the loop did not wait
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=shut_down, name="traces-flush", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT_SECONDS):
            await done.wait()
    except TimeoutError:
        exporter.shutdown()


class Tracing:
    """Creates the ids of a request's spans on arrival, and the spans when it has ended, from the times that its trace
    kept.

    Spans are built directly (3 µs each) rather than through the SDK's tracer (25 µs), because the event loop pays for
    them. The SDK reads its own settings: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import trace as api
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "coe"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._resource = provider.resource
        self._sampler, self._sampled = provider.sampler, Decision.RECORD_AND_SAMPLE
        self._scope = InstrumentationScope("coe")
        self._processor = processor
        self._api = api
        self._readable: type[ReadableSpan] = ReadableSpan
        self._propagator = TraceContextTextMapPropagator()
        self._ok_status, self._error_status = api.Status(), api.Status(api.StatusCode.ERROR)

    def begin(self, trace: Trace, options: RequestOptions) -> RequestOptions:
        """The options with a trace context for the expert: the client's trace or a new one, with our call as the parent
        span."""
        api = self._api
        context = self._propagator.extract(options.trace_headers)
        parent = api.get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else random.getrandbits(128) or 1
        decision = self._sampler.should_sample(context, trace_id, _span_name(trace)).decision
        flags = api.TraceFlags(int(decision is self._sampled))
        server, call = (api.SpanContext(trace_id, _span_id(), False, flags, parent.trace_state) for _ in range(2))
        trace.spans = Spans(parent, server, call)
        carried = {"traceparent": f"00-{trace_id:032x}-{call.span_id:016x}-{flags:02x}"}
        if parent.is_valid and "tracestate" in options.trace_headers:
            carried["tracestate"] = options.trace_headers["tracestate"]
        return replace(options, trace_headers=carried)

    def observe(self, trace: Trace) -> None:
        """Queues the spans of a finished request for the exporter."""
        spans = trace.spans
        if spans is None or not spans.server.trace_flags.sampled:
            return
        kinds, end = self._api.SpanKind, trace.elapsed_ms()
        is_error = trace.outcome not in ("ok", "aborted")
        for name, began, ended, complete in trace.step_times_ms(end):
            if name == "call":
                span, kind, attributes = spans.call, kinds.CLIENT, call_attributes(trace)
            else:
                span, kind, attributes = self._child(spans.server), kinds.INTERNAL, None
            status = self._error_status if is_error and not complete else self._ok_status
            self._end(trace, name, (began, ended), span, spans.server, kind, attributes, status)
        parent = spans.parent if spans.parent.is_valid else None
        status = (
            self._error_status
            if is_error and (trace.status is None or not 400 <= trace.status < 500)
            else self._ok_status
        )
        self._end(
            trace, _span_name(trace), (0.0, end), spans.server, parent, kinds.SERVER, request_attributes(trace), status
        )

    def _child(self, server: SpanContext) -> SpanContext:
        return self._api.SpanContext(server.trace_id, _span_id(), False, server.trace_flags, server.trace_state)

    def _end(
        self,
        trace: Trace,
        name: str,
        times_ms: tuple[float, float],
        span: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes | None,
        status: Status,
    ) -> None:
        start, end = (int((trace.time + ms / 1000) * 1e9) for ms in times_ms)
        built = self._readable(
            name,
            span,
            parent,
            self._resource,
            attributes,
            kind=kind,
            status=status,
            start_time=start,
            end_time=end,
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(built)


def _span_name(trace: Trace) -> str:
    return f"POST {PATHS[trace.api]}"


def _span_id() -> int:
    return random.getrandbits(64) or 1
