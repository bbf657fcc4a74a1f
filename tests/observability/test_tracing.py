"""Traces as a real collector sees them."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes

from coe.errors import ExpertUnavailable
from coe.settings import Settings
from gateway.observability import tracing
from gateway.observability.tracing import open_tracing
from tests.fakes import Gateway, Response, gateway_of
from tests.observability.collector import Collector, Span, collecting

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, CLIENT, INTERNAL = 2, 3, 1
ERROR = 2
JSON = {"content-type": "application/json"}


@asynccontextmanager
async def traced(collector: Collector, **scripts: Any) -> AsyncIterator[Gateway]:
    """A gateway that sends its traces; on leaving they have arrived."""
    async with open_tracing(Settings.read({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})) as tracing:
        assert tracing is not None
        async with gateway_of(observers=(tracing.observe,), tracing=tracing, **scripts) as gateway:
            yield gateway


async def send_chat(
    gateway: Gateway, text: str = "code", *, headers: dict[str, str] | None = None, **fields: Any
) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=JSON | (headers or {}))


def reported(gateway: Gateway) -> dict[str, str]:
    """The trace context that the coder was sent."""
    return dict(gateway.experts["coder"].calls[0].headers)


async def test_a_request_is_a_server_span_with_a_child_for_every_step() -> None:
    before = time.time_ns()
    async with collecting() as collector:
        async with traced(collector) as gateway:
            answer = await send_chat(gateway, headers={"x-session-id": "s1"})
            sent = reported(gateway)
        spans = collector.tree()
    root = spans.pop("POST /v1/chat/completions")
    assert list(spans) == ["admit", "parse", "classify", "assign", "retrieve", "call", "relay"]
    assert (root.kind, root.parent_id, root.status) == (SERVER, "", 0)
    assert {span.parent_id for span in spans.values()} == {root.span_id}
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    assert {span.kind for name, span in spans.items() if name != "call"} == {INTERNAL}
    _in_order(before, root, list(spans.values()))
    assert list(sent) == ["traceparent"]
    assert sent["traceparent"].startswith(f"00-{root.trace_id}-{spans['call'].span_id}-")
    assert int(sent["traceparent"][-2:], 16) & 1  # sampled
    assert root.resource["service.name"] == "coe"
    assert root.attributes["coe.request_id"] == answer.headers["x-request-id"]


def _in_order(before: int, root: Span, steps: list[Span]) -> None:
    ends = [root.start, *(time for step in steps for time in (step.start, step.end)), root.end]
    assert ends == sorted(ends)
    assert before - 1_000_000 <= root.start <= root.end <= time.time_ns() + 1_000_000


async def test_attributes_are_those_of_the_conventions_and_ours() -> None:
    async with collecting() as collector:
        async with traced(collector) as gateway:
            await send_chat(gateway, "code canary", headers={"x-session-id": "s1"})
        spans = collector.tree()
    root, call = spans["POST /v1/chat/completions"].attributes, spans["call"]
    assert root["http.response.status_code"] == 200
    assert root["gen_ai.request.model"] == "auto"
    assert root["gen_ai.response.model"] == root["coe.expert"] == "coder"
    assert root["gen_ai.conversation.id"] == "s1"
    assert (root["coe.category"], root["coe.reason"], root["coe.attempts"]) == ("code", "routed", 1)
    assert call.kind == CLIENT
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "coe.expert": "coder",
    }
    assert expected.items() <= call.attributes.items()
    assert "canary" not in str(spans)


def test_names_are_known_to_the_conventions() -> None:
    modules = (gen_ai_attributes, error_attributes, http_attributes, url_attributes)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    used = re.findall(r'"((?:gen_ai|http|url|error)\.[a-z_.]+)"', Path(tracing.__file__).read_text())
    assert len(used) > 10
    assert set(used) <= known


async def test_the_clients_trace_goes_on_through_us_to_the_expert() -> None:
    state = {"tracestate": "vendor=1"}
    async with collecting() as collector:
        async with traced(collector) as gateway:
            await send_chat(gateway, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", **state})
            sent = reported(gateway)
        spans = collector.tree()
    root = spans["POST /v1/chat/completions"]
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT)
    assert sent == {"traceparent": f"00-{TRACE}-{spans['call'].span_id}-01", **state}


async def test_a_trace_that_its_client_does_not_sample_is_not_sent_and_goes_on_as_such() -> None:
    async with collecting() as collector:
        async with traced(collector) as gateway:
            await send_chat(gateway, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
            sent = reported(gateway)
        assert collector.spans == []
    assert sent["traceparent"].startswith(f"00-{TRACE}-")
    assert sent["traceparent"].endswith("-00")
    assert PARENT not in sent["traceparent"]


@pytest.mark.parametrize("nonsense", ["00-xyz", f"00-{'0' * 32}-{PARENT}-01"])
async def test_a_trace_context_that_is_none_begins_a_new_trace(nonsense: str) -> None:
    async with collecting() as collector:
        async with traced(collector) as gateway:
            answer = await send_chat(gateway, headers={"traceparent": nonsense, "tracestate": "vendor=1"})
            sent = reported(gateway)
        root = collector.tree()["POST /v1/chat/completions"]
    assert answer.status == 200
    assert root.parent_id == ""
    assert set(sent) == {"traceparent"}
    assert sent["traceparent"].split("-")[1] == root.trace_id


async def test_a_failure_ends_with_the_step_it_happened_in() -> None:
    async with collecting() as collector:
        async with traced(collector, coder=ExpertUnavailable("gone", expert="coder")) as gateway:
            await send_chat(gateway, model="coder")
        spans = collector.tree()
    root = spans["POST /v1/chat/completions"]
    assert list(spans)[-2:] == ["call", "POST /v1/chat/completions"]
    assert (spans["call"].status, root.status) == (ERROR, ERROR)
    assert (root.attributes["error.type"], root.attributes["http.response.status_code"]) == ("expert_unavailable", 503)
    assert spans["call"].attributes["error.type"] == "expert_unavailable"


async def test_without_a_collector_the_trace_context_passes_through() -> None:
    async with open_tracing(Settings.read({})) as tracing:
        assert tracing is None
    async with gateway_of() as gateway:
        await send_chat(gateway, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert reported(gateway) == {"traceparent": f"00-{TRACE}-{PARENT}-01"}


async def test_a_collector_that_is_gone_costs_requests_nothing_and_the_end_only_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.observability.tracing.FLUSH_TIMEOUT_SECONDS", 0.05)
    async with traced(Collector("http://127.0.0.1:9")) as gateway:
        assert (await send_chat(gateway)).status == 200


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/x"}, "http://c/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({}, None),
    ],
)
def test_the_collector_is_found_by_opentelemetrys_own_variables(environ: dict[str, str], endpoint: str | None) -> None:
    assert Settings.read(environ).traces == endpoint
