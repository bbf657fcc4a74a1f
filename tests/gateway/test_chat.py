"""The serving line, from bytes in to bytes out, over scripted experts."""

import asyncio

import anyio
import orjson
import pytest

from coe.errors import ExpertInvalidResponse, ExpertRejected, ExpertTimeout, ExpertUnavailable
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'


async def test_a_request_goes_to_the_expert_of_its_category_which_the_headers_name() -> None:
    async with gateway_of(coder=[b'{"choices":[1]}']) as gateway:
        response = await gateway.chat("some code")
    assert response.status == 200
    assert response.json == {"choices": [1]}
    assert response.headers["x-coe-expert"] == "coder"
    assert response.headers["x-coe-category"] == "code"
    assert response.headers["x-coe-reason"] == "routed"
    assert response.headers["x-coe-attempts"] == "1"
    assert float(response.headers["x-coe-confidence"]) > 0.9
    assert float(response.headers["x-coe-overhead-ms"]) > 0
    assert response.headers["x-coe-router"] == "words"
    assert response.headers["x-request-id"].startswith("req_")


async def test_the_language_is_in_the_header_and_the_record() -> None:
    async with gateway_of() as gateway:
        german = await gateway.chat("code language:de")
        unknown = await gateway.chat("code")
    assert german.headers["x-coe-language"] == "de"
    assert "x-coe-language" not in unknown.headers  # of a router without languages
    assert [record.language for record in gateway.records] == ["de", ""]


async def test_a_follow_up_stays_with_the_expert_that_answered_before() -> None:
    opening = {"role": "user", "content": "code"}
    later = [
        opening,
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "shorter, as code or as art"},
    ]
    async with gateway_of(registry_of(policy={"sticky_margin": 0.6})) as gateway:
        before = await gateway.post(CHAT, orjson.dumps({"model": "painter", "messages": [opening]}))
        after = await gateway.post(CHAT, orjson.dumps({"model": "auto", "messages": later}))
        other = await gateway.chat("code", messages=[{"role": "user", "content": "code and art"}])
    assert before.headers["x-coe-expert"] == after.headers["x-coe-expert"] == "painter"
    assert after.headers["x-coe-reason"] == "sticky"
    assert other.headers["x-coe-reason"] == "routed"


async def test_thrift_slides_to_the_cheaper_expert_within_the_declared_limits() -> None:
    registry = registry_of(policy={"cost_weight_limits": [0, 0.9]})
    priced = [
        spec.model_copy(update={"active_parameters_b": size})
        for spec, size in zip(registry.experts, (9, 1, 1), strict=True)
    ]
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code and art"}]})
    asked = {}
    async with gateway_of(registry.model_copy(update={"experts": tuple(priced)})) as gateway:
        for cost_weight in ("0", "0.9", "0.95", "much", "nan"):
            headers = {"content-type": "application/json", "x-coe-cost-weight": cost_weight}
            asked[cost_weight] = await gateway.post(CHAT, body, headers=headers)
    assert asked["0"].headers["x-coe-expert"] == "coder"
    assert asked["0.9"].headers["x-coe-expert"] == "painter"
    for wrong in ("0.95", "much", "nan"):
        assert asked[wrong].status == 400
        assert "x-coe-cost-weight must be a number from 0 to 0.9" in asked[wrong].error["message"]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (ExpertUnavailable("down", expert="x"), 503, "expert_unavailable"),
        (ExpertTimeout("slow", expert="x"), 504, "expert_timeout"),
        (ExpertInvalidResponse("noise", expert="x"), 502, "expert_invalid_response"),
    ],
)
async def test_when_every_expert_fails_the_last_failure_is_returned(failure: Exception, status: int, code: str) -> None:
    async with gateway_of(coder=failure, painter=failure, generalist=failure) as gateway:
        response = await gateway.chat("code")
    assert response.status == status
    assert response.error["code"] == code
    assert response.headers["x-coe-attempts"] == "3"
    assert gateway.records[0].outcome == code
    assert gateway.records[0].attempts == 3


async def test_a_request_that_an_expert_rejects_is_a_client_error_and_is_not_retried() -> None:
    rejected = ExpertRejected("bad temperature", expert="coder", status=422)
    async with gateway_of(coder=rejected) as gateway:
        response = await gateway.chat("code")
        assert not gateway.experts["generalist"].calls
    assert response.status == 422
    assert "bad temperature" in response.error["message"]


async def test_a_stream_is_relayed_piece_by_piece() -> None:
    held = asyncio.Event()
    async with gateway_of(coder=[EVENT, held, b"data: [DONE]\n\n"]) as gateway, anyio.create_task_group() as tasks:

        async def let_go_after_the_first_piece() -> None:
            await gateway.first_chunk.wait()
            held.set()

        tasks.start_soon(let_go_after_the_first_piece)
        response = await gateway.chat("code", stream=True)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.chunks == [EVENT, b"data: [DONE]\n\n"]
    assert gateway.records[0].outcome == "ok"
    assert (gateway.records[0].input_tokens, gateway.records[0].output_tokens) == (3, 5)


async def test_a_client_that_leaves_mid_stream_stops_the_expert() -> None:
    async with gateway_of(coder=[EVENT, asyncio.Event()]) as gateway, anyio.create_task_group() as tasks:

        async def leave_after_the_first_piece() -> None:
            await gateway.first_chunk.wait()
            gateway.leave.set()

        tasks.start_soon(leave_after_the_first_piece)
        await gateway.chat("code", stream=True)
    assert gateway.experts["coder"].replies[0].closed
    assert gateway.records[0].outcome == "aborted"


async def test_a_bug_is_reported_without_its_traceback_and_the_process_continues() -> None:
    async with gateway_of(coder=ZeroDivisionError("secret detail")) as gateway:
        response = await gateway.chat("code")
        assert response.status == 500
        assert "secret" not in response.body.decode()
        assert (await gateway.chat("general")).status == 200
    assert gateway.records[0].outcome == "internal_error"


async def test_a_record_has_the_digest_and_not_the_text_unless_declared() -> None:
    async with gateway_of() as gateway:
        await gateway.chat("private general words")
    (record,) = gateway.records
    assert record.prompt is None
    assert len(record.digest) == 64
    assert set(record.probabilities) == {"code", "art", "general"}
    async with gateway_of(registry_of(log={"store_prompts": True})) as gateway:
        await gateway.chat("private general words")
    assert gateway.records[0].prompt == "private general words"
    assert gateway.records[0].digest == record.digest
