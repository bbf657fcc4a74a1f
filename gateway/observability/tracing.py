"""OpenTelemetry traces, if a collector is declared: a server span per request, with a child span for every step.

Attributes follow the semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/ and /http/); others
begin with `coe.`. No attribute holds text of the request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coe.core import PASS_THROUGH_APIS, PATHS, Api, RequestOptions
from coe.errors import ConfigError, pip_install
from coe.registry import ExpertSpec
from coe.routing.composition import first_expert
from coe.settings import Settings
from coe.urls import redact_url
from gateway.request.trace import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

Attributes = dict[str, Any]

_OPERATIONS: dict[Api, str] = {
    "completions": "text_completion",
    "embeddings": "embeddings",
    **{api: api for api in PASS_THROUGH_APIS},
}
"""All others are `chat`."""
_DECIDED = ("category", "reason", "fallback_from", "cause")
"""Fields of the decision that the server span shows."""


def request_attributes(trace: Trace) -> Attributes:
    """Attributes of the server span."""
    registry, decision, prediction = trace.snapshot.registry, trace.decision, trace.prediction
    is_known = registry.models.resolve(trace.requested_model) is not None
    return _attributes(
        trace,
        {
            "http.request.method": "POST",
            "url.path": PATHS[trace.api],
            "http.response.status_code": trace.status,
            "error.type": None if trace.outcome == "ok" else trace.outcome,
            "gen_ai.provider.name": "coe",
            "gen_ai.request.model": trace.requested_model if is_known else None,
            "gen_ai.conversation.id": trace.options.session if trace.options else None,
            "gen_ai.response.model": trace.expert if decision and trace.reply else None,
            "coe.request_id": trace.request_id,
            "coe.key": trace.caller.key,
            "coe.tenant": trace.caller.tenant,
            "coe.router": trace.snapshot.composition.router.version,
            "coe.config": registry.digest,
            "coe.stage": prediction.stage if prediction else None,
            "coe.confidence": round(decision.confidence, 4) if decision else None,
            "coe.cache": trace.cache.result if trace.cache else None,
            "coe.retrieval": trace.retrieval_result.status,
            "coe.passages": len(trace.retrieval_result.passages) or None,
            "coe.cost": trace.cost,
            **{f"coe.{name}": getattr(decision, name, None) or None for name in _DECIDED},
        },
    )


def call_attributes(trace: Trace) -> Attributes:
    """Attributes of the client span of the call to the expert."""
    registry = trace.snapshot.registry
    spec = registry.expert(first_expert(registry.arm(trace.expert)))
    return _attributes(
        trace,
        {
            "gen_ai.provider.name": _provider(spec),
            "gen_ai.request.model": spec.model,
            "error.type": None if trace.reply else trace.outcome,
        },
    )


def _attributes(trace: Trace, attributes: Attributes) -> Attributes:
    """The attributes that are known, with those that both spans have."""
    usage, first = trace.usage, trace.first_token_ms
    streamed = trace.chat.stream if trace.chat else None
    attributes |= {
        "gen_ai.operation.name": _OPERATIONS.get(trace.api, "chat"),
        "gen_ai.request.stream": streamed,
        "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens if usage else None,
        "gen_ai.response.time_to_first_chunk": round(first / 1000, 6) if first is not None and streamed else None,
        "coe.expert": trace.decision.expert if trace.decision else None,
        "coe.attempts": trace.attempts.count or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _provider(spec: ExpertSpec) -> str:
    """The vendor of the API, as the conventions advise: OpenAI for any server with an OpenAI-compatible API."""
    if spec.runtime == "external":
        return "openai"
    return spec.model.partition("/")[0] if spec.runtime == "litellm" else spec.runtime


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

    exporter: SpanExporter = OTLPSpanExporter(endpoint=settings.traces)
    processor = BatchSpanProcessor(exporter)  # a bounded queue and its own thread
    try:
        yield Tracing(processor)
    finally:  # in a daemon thread, so that a dead collector cannot block the process
        flushing = threading.Thread(target=processor.shutdown, name="traces-flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_TIMEOUT_SECONDS)
        if flushing.is_alive():
            exporter.shutdown()


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


class Tracing:
    """Starts the span of a request on arrival, and makes those of its steps when the request has ended, from the times
    that its trace kept.

    The SDK reads its own settings: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import trace as api
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        class CallIds(RandomIdGenerator):
            """Random ids, but for the span of a call: its expert was sent the id before the span is made."""

            call = 0

            def generate_span_id(self) -> int:
                found, self.call = self.call or super().generate_span_id(), 0
                return found

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "coe"}))
        self._ids = CallIds()
        provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("coe")
        self._api = api
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, trace: Trace, options: RequestOptions) -> RequestOptions:
        """The options with a trace context for the expert: the client's trace or a new one, with our call as the parent
        span."""
        api, client = self._api, self._propagator.extract(options.trace_headers)
        name, start = f"POST {PATHS[trace.api]}", int(trace.time * 1e9)
        server = self._tracer.start_span(name, client, api.SpanKind.SERVER, start_time=start)
        request = server.get_span_context()
        call = api.SpanContext(
            request.trace_id, self._ids.generate_span_id(), False, request.trace_flags, request.trace_state
        )
        trace.spans = server, call.span_id
        carried: dict[str, str] = {}
        self._propagator.inject(carried, api.set_span_in_context(api.NonRecordingSpan(call)))
        return replace(options, trace_headers=carried)

    def observe(self, trace: Trace) -> None:
        """Ends the spans of a finished request, which queues them for the exporter."""
        if trace.spans is None or not trace.spans[0].is_recording():
            return
        (server, call), kinds = trace.spans, self._api.SpanKind
        within, end = self._api.set_span_in_context(server), trace.elapsed_ms()
        is_error = trace.outcome not in ("ok", "aborted")

        def nanoseconds(ms: float) -> int:
            return int((trace.time + ms / 1000) * 1e9)

        for name, began, ended, complete in trace.step_times_ms(end):
            kind, attributes = kinds.INTERNAL, None
            if name == "call":
                self._ids.call, kind, attributes = call, kinds.CLIENT, call_attributes(trace)
            span = self._tracer.start_span(name, within, kind, attributes, start_time=nanoseconds(began))
            if is_error and not complete:
                span.set_status(self._api.StatusCode.ERROR)
            span.end(nanoseconds(ended))
        server.set_attributes(request_attributes(trace))
        if is_error and (trace.status is None or not 400 <= trace.status < 500):
            server.set_status(self._api.StatusCode.ERROR)
        server.end(nanoseconds(end))
