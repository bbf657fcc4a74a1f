"""What the spans of a request say about it, by OpenTelemetry's semantic conventions; never any text of it.

See https://opentelemetry.io/docs/specs/semconv/gen-ai/ and /http/; what they have no name for begins with `coe.`.
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


def of_request(trace: Trace) -> Attributes:
    """Of the server span."""
    registry, decision, prediction = trace.serving.registry, trace.decision, trace.prediction
    asked = trace.chat.model if trace.chat else None
    return _known(
        {
            "http.request.method": "POST",
            "url.path": PATHS[trace.api],
            "http.response.status_code": trace.status,
            "error.type": None if trace.outcome == "ok" else trace.outcome,
            "gen_ai.operation.name": _OPERATIONS.get(trace.api, "chat"),
            "gen_ai.provider.name": "coe",
            "gen_ai.request.model": asked if asked == AUTO or asked in registry.expert_names else None,
            "gen_ai.request.stream": trace.chat.stream if trace.chat else None,
            "gen_ai.conversation.id": trace.options.session if trace.options else None,
            **_of_answer(trace),
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


def of_call(trace: Trace) -> Attributes:
    """Of the call's client span."""
    assert trace.decision is not None
    spec = trace.serving.registry.expert(trace.decision.expert)
    host, port = _server(spec)
    return _known(
        {
            "gen_ai.operation.name": _OPERATIONS.get(trace.api, "chat"),
            "gen_ai.provider.name": _provider(spec),
            "gen_ai.request.model": spec.model,
            "gen_ai.request.stream": trace.chat.stream if trace.chat else None,
            **_of_answer(trace),
            "server.address": host,
            "server.port": port,
            "error.type": None if trace.reply else trace.outcome,
            "coe.expert": spec.name,
            "coe.attempts": trace.attempts.count or None,
        }
    )


def _of_answer(trace: Trace) -> Attributes:
    usage, first = trace.usage, trace.first_token_ms
    streamed = trace.chat is not None and trace.chat.stream
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
        "gen_ai.response.time_to_first_chunk": round(first / 1000, 6) if first is not None and streamed else None,
    }


def _provider(spec: ExpertSpec) -> str:
    """The conventions' own advice: who the API is of, whatever may stand behind an OpenAI-compatible one."""
    if spec.runtime == "external":
        return "openai"
    return spec.model.partition("/")[0] if spec.runtime == "litellm" else spec.runtime


def _server(spec: ExpertSpec) -> tuple[str | None, int | None]:
    """Where the expert is, if it is in one place."""
    if len(spec.addresses) != 1:
        return None, None
    address = urlsplit(spec.addresses[0])
    return address.hostname, address.port or (443 if address.scheme == "https" else 80)


def _known(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}
