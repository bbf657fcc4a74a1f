"""Requests that end before they are routed: counted by outcome and status, in the access log, without a record."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from gateway.observability.logs import log_request
from gateway.observability.observers import Recorder
from tests.access.samples import key_of
from tests.fakes import gateway_of, registry_of
from tests.gateway.two_keys import CHAT, bearer
from tests.observability.pages import value
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

HI = b'{"model": "coder", "messages": [{"role": "user", "content": "x"}]}'
SENT = {
    b"not json": 400,
    b'{"model": "auto", "messages": 7}': 400,
    b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}': 404,
    b" " * 20_000: 413,
}
EXPECTED = {
    ("invalid_api_key", "401"): 20,
    ("invalid_json", "400"): 1,
    ("invalid_request", "400"): 1,
    ("model_not_found", "404"): 1,
    ("body_too_large", "413"): 1,
    ("rate_limit_exceeded", "429"): 1,
    ("aborted", ""): 1,
}


async def test_what_was_never_routed_is_counted_and_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gateway.access")
    key = key_of("known", scopes=("chat", "admin"), limits={"requests_per_minute": 10}).model_dump(mode="json")
    registry = registry_of(access={"keys": [key]}, limits={"max_body_mb": 0.01})
    recorded: Any = SimpleNamespace(put=Mock())
    recorder = Recorder(recorded)
    async with gateway_of(registry, observers=(log_request, recorder.observe)) as gateway:
        assert (await gateway.post(CHAT, HI, headers=bearer("known"))).status == 200
        for _ in range(20):
            assert (await gateway.post(CHAT, b"{}", headers=bearer("wrong"))).status == 401
        for body, status in SENT.items():
            assert (await gateway.post(CHAT, body, headers=bearer("known"))).status == status
        leaving = asyncio.ensure_future(gateway.post(CHAT, b"{", unfinished=True, headers=bearer("known")))
        await wait_until(lambda: gateway.services.admission.arriving)
        gateway.leave.set()
        await leaving
        gateway.leave.clear()
        while (status := (await gateway.post(CHAT, HI, headers=bearer("known"))).status) == 200:
            pass
        assert status == 429
        page = (await gateway.post("/metrics", method="GET", headers=bearer("known"))).body
    await wait_until(lambda: recorded.put.called)
    assert {call.args[0].outcome for call in recorded.put.call_args_list} == {"ok"}
    for (outcome, status), count in EXPECTED.items():
        labels = {"api": "chat", "category": "", "expert": "", "reason": "", "outcome": outcome, "status": status}
        assert value(page, "coe_requests_total", **labels) == count, outcome
        assert any(getattr(line, "fields", {}).get("outcome") == outcome for line in caplog.records), outcome
