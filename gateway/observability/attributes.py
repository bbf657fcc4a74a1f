"""Span attributes of a request, by OpenTelemetry's semantic conventions; never any text of the request.

See https://opentelemetry.io/docs/specs/semconv/gen-ai/ and /http/. Names without a convention begin with `coe.`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from coe.core import Api
from coe.registry import AUTO, ExpertSpec
from gateway.request.trace import Trace

Attributes = dict[str, Any]

PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
_OPERATIONS: dict[Api, str] = {"completions": "text_completion", "embeddings": "embeddings"}
"""All others are `chat`."""


def request_attributes(trace: Trace) -> Attributes:
    """Attributes of the server span."""
    registry, decision, prediction = trace.serving.registry, trace.decision, trace.prediction
    model = trace.chat.model if trace.chat else None
    return _without_none(
        {
            "http.request.method": "POST",
            "url.path": PATHS[trace.api],
            "http.response.status_code": trace.status,
            "error.type": None if trace.outcome == "ok" else trace.outcome,
            "gen_ai.operation.name": _OPERATIONS.get(trace.api, "chat"),
            "gen_ai.provider.name": "coe",
            "gen_ai.request.model": model if model == AUTO or model in registry.expert_names else None,
            "gen_ai.request.stream": trace.chat.stream if trace.chat else None,
            "gen_ai.conversation.id": trace.options.session if trace.options else None,
            **_answer_attributes(trace),
            "gen_ai.response.model": decision.expert if decision and trace.reply else None,
            "coe.request_id": trace.request_id,
            "coe.key": trace.caller.key,
            "coe.tenant": trace.caller.tenant,
            "coe.router": trace.serving.composition.router.version,
            "coe.config": registry.digest,
            "coe.stage": prediction.stage if prediction else None,
            "coe.expert": decision.expert if decision else None,
            "coe.category": decision.category if decision else None,
            "coe.confidence": round(decision.confidence, 4) if decision else None,
            "coe.reason": decision.reason if decision else None,
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
    spec = trace.serving.registry.expert(trace.decision.expert)
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
            "coe.expert": spec.name,
            "coe.attempts": trace.attempts.count or None,
        }
    )


def _answer_attributes(trace: Trace) -> Attributes:
    usage, first = trace.usage, trace.first_token_ms
    streamed = trace.chat is not None and trace.chat.stream
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
        "gen_ai.response.time_to_first_chunk": round(first / 1000, 6) if first is not None and streamed else None,
    }


def _provider(spec: ExpertSpec) -> str:
    """The API's owner, as the conventions advise, whatever server is behind an OpenAI-compatible API."""
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
