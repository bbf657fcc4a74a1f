"""A finished request leaves no garbage cycles, because large bodies would accumulate until the collector runs."""

import asyncio
import gc
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from coe.core import Chat
from coe.registry import Registry
from gateway.request.admission import ActiveRequest
from gateway.request.trace import Trace
from tests.fakes import Gateway, gateway_of, registry_of

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
KEY = {"content-type": "application/json", "x-api-key": "sesame"}
SOON = KEY | {"x-coe-timeout": "0.3"}


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def limited() -> Registry:
    """With a key that has limits."""
    key = {"name": "alice", "sha256": hashlib.sha256(b"sesame").hexdigest(), "limits": {"requests_per_minute": 100}}
    return registry_of(access={"keys": [key]})


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}], **fields})


def alive() -> Counter[str]:
    return Counter(kind.__name__ for kind in map(type, gc.get_objects()) if kind in (Trace, Chat, ActiveRequest))


@asynccontextmanager
async def gone(registry: Registry | None = None, **scripts: Any) -> AsyncIterator[Gateway]:
    """A gateway; asserts that no object of the block's requests is left."""
    before = alive()
    async with gateway_of(registry or limited(), **scripts) as gateway:
        yield gateway
        for _ in range(3):  # in which tasks that were cancelled end
            await asyncio.sleep(0)
        assert alive() == before


@pytest.mark.usefixtures("uncollected")
async def test_after_an_answer_an_encoder_pass_a_stream_and_refusals() -> None:
    async with gone(coder=[EVENT, EVENT]) as gateway:
        assert (await gateway.post(CHAT, body(model="painter"), headers=KEY)).status == 200
        ponder = [{"role": "user", "content": "ponder art"}]
        assert (await gateway.post(CHAT, body(messages=ponder), headers=KEY)).status == 200
        assert (await gateway.post(CHAT, body(stream=True), headers=KEY)).chunks == [EVENT, EVENT]
        assert (await gateway.post(CHAT, body(model="nobody"), headers=KEY)).status == 404
        assert (await gateway.post(CHAT, b"{", headers=KEY)).status == 400


@pytest.mark.usefixtures("uncollected")
async def test_after_its_time_was_over() -> None:
    async with gone(coder=asyncio.Event()) as gateway:
        assert (await gateway.post(CHAT, body(), headers=SOON)).status == 504


@pytest.mark.usefixtures("uncollected")
async def test_after_its_client_left() -> None:
    async with gone(coder=[EVENT, asyncio.Event()]) as gateway:
        requesting = asyncio.ensure_future(gateway.post(CHAT, body(stream=True), headers=KEY))
        await gateway.first_chunk.wait()
        gateway.leave.set()
        await requesting
        del requesting
        assert gateway.records[0].outcome == "aborted"
