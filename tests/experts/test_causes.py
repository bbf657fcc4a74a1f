"""Causes of failures: one for each fault of a real server, and log lines without secrets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.core import Call
from coe.errors import CAUSES, REMEDIES, ExpertError, ExpertUnavailable
from coe.experts import build_experts
from coe.experts.error_mapping import MAX_CHARACTERS, redacted
from coe.experts.http.client import Client
from coe.experts.replicas import QUIET_PERIOD, Incidents
from tests.experts.fault_servers import Answer, answering, closed_port, hanging_up, refusing, server, serving, silent
from tests.fakes import registry_of
from tests.waiting import ManualClock

KEY = "sk-very-secret-4711"
FIELDS = {"messages": [{"role": "user", "content": "hi"}]}


async def failure(base_url: str, *, first_chunk: float = 5.0, model: str = "m") -> ExpertError:
    """The error of an expert at this address."""
    declared = {"name": "coder", "model": model, "runtime": "external", "base_url": base_url, "api_key": KEY}
    registry = registry_of(experts=[declared], assignment={"general": "coder"})
    async with Client() as session:
        expert = build_experts(registry, {}, session=session)["coder"]
        with pytest.raises(ExpertError) as raised:
            await expert.stream(Call(FIELDS, False, first_chunk, 5.0))
    return raised.value


QUOTA = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (refusing(401), "unauthorized"),
        (refusing(403), "forbidden"),
        (refusing(429), "rate_limited"),
        (refusing(429, QUOTA), "quota_exceeded"),
        (refusing(402), "quota_exceeded"),
        (refusing(500), "server_error"),
        (refusing(502), "server_error"),
        (refusing(503), "overloaded"),
        (refusing(307, headers={"location": "/login"}), "unexpected_status"),
        (refusing(200, {"hello": "world"}), "invalid_response"),
        (refusing(200, {"error": {"message": "cuda died"}}), "server_error"),
        (refusing(400), "rejected"),
        (hanging_up, "connection_lost"),
    ],
)
async def test_each_server_fault_has_a_cause(answer: Answer, cause: str) -> None:
    async with server(answer) as root:
        assert (await failure(f"{root}/v1")).cause == cause


@pytest.mark.anyio
async def test_wrong_keys_models_and_paths_are_distinguished() -> None:
    async with server(serving("qwen", key=KEY)) as root:
        assert (await failure(f"{root}/v1", model="qwem")).cause == "model_not_found"
        assert (await failure(root, model="qwen")).cause == "not_found"
    async with server(serving("qwen", key="another")) as root:
        wrong = await failure(f"{root}/v1", model="qwen")
    assert wrong.cause == "unauthorized"
    assert KEY not in str(wrong)


@pytest.mark.anyio
async def test_a_failed_connection_has_a_cause() -> None:
    assert (await failure(f"{closed_port()}/v1")).cause == "connection_refused"
    assert (await failure(f"{closed_port().replace('127.0.0.1', 'localhost')}/v1")).cause == "connection_refused"
    assert (await failure("http://host.invalid/v1")).cause == "name_resolution"
    async with server(answering) as root:
        assert (await failure(f"{root.replace('http://', 'https://')}/v1")).cause == "tls_error"
    async with server(silent) as root:
        assert (await failure(f"{root}/v1", first_chunk=0.2)).cause == "timeout"


def test_every_cause_has_a_remedy() -> None:
    assert set(REMEDIES) == set(CAUSES)
    assert all(word.isascii() and word.islower() and " " not in word for word in CAUSES)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("at https://user:pw@host:8/v1/x?key=abc&b=1 it failed", "at https://host:8/v1/x it failed"),
        ("see http://h/a#token=1\nand more", "see http://h/a and more"),
        ("Incorrect API key provided: sk-proj-abc*****xyz.", "Incorrect API key provided: ***"),
        ("Authorization: Bearer 0123456789abcdef refused", "Authorization: Bearer *** refused"),
        ("The model `meta-llama/Llama-3.1-8B-Instruct` does not exist", None),
        ("this model's maximum context length is 4096 tokens", None),
    ],
)
def test_a_servers_text_is_reduced_to_one_line_without_secrets(text: str, line: str | None) -> None:
    assert redacted(text) == (text if line is None else line)


@given(st.text(), st.text())
def test_a_redacted_line_is_bounded_and_never_holds_the_key(before: str, after: str) -> None:
    line = redacted(f"{before}{KEY}{after}", secrets=(KEY,))
    assert KEY not in line
    assert len(line) <= MAX_CHARACTERS
    assert line.isprintable()


def unauthorized(text: str = "") -> ExpertUnavailable:
    error = ExpertUnavailable(f"refused {text}", expert="coder")
    error.cause, error.detail = "unauthorized", "HTTP 401"
    return error


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, logger="coe.experts")
    return lambda: [record.getMessage() for record in caplog.records]


def test_an_incident_has_one_line_when_it_begins_and_one_when_it_ends(lines: Any) -> None:
    clock = ManualClock()
    incidents = Incidents("coder", clock=clock)
    for _ in range(50):
        incidents.failed(unauthorized("canary"), address="host:8")
        incidents.answered()
        incidents.close_resolved()
        clock.now += QUIET_PERIOD / 2  # it fails and answers in turn: one incident
    assert len(lines()) == 1
    assert lines()[0].startswith("expert coder fails: it refuses the api_key (unauthorized at host:8, HTTP 401); set")
    assert "canary" not in lines()[0]
    incidents.close_resolved()
    assert len(lines()) == 1  # nothing was answered since the last failure
    clock.now += QUIET_PERIOD
    incidents.answered()
    incidents.close_resolved()
    assert lines()[1].startswith("expert coder answers again: unauthorized ended after 50 failures in 260 s")
    assert not incidents.active
