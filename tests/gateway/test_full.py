"""One key uses all permits that it may have, the queue and the feedback slots; another key is still served."""

import asyncio

import orjson
import pytest

from gateway.endpoints import feedback
from tests.fakes import Gateway, Response, gateway_of
from tests.gateway.two_keys import BODY, CHAT, ROUTE, bearer, keyed
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

FEEDBACK = "/v1/feedback"


def send_chat(gateway: Gateway, key: str, path: str = CHAT) -> asyncio.Task[Response]:
    return asyncio.ensure_future(gateway.post(path, BODY, headers=bearer(key)))


@pytest.mark.parametrize("path", [CHAT, ROUTE])
async def test_another_key_finds_a_place_in_the_queue_and_is_served_next(path: str) -> None:
    slow = asyncio.Event()
    async with gateway_of(keyed(concurrent_requests=1, queued_requests=4), coder=slow) as gateway:
        flood = [send_chat(gateway, "mallory") for _ in range(20)]
        await wait_until(lambda: sum(task.done() for task in flood) == 16)
        modest = send_chat(gateway, "alice", path)
        refused = await send_chat(gateway, "alice", path)
        slow.set()
        statuses = [(await task).status for task in flood]
        assert (await modest).status == 200
        assert (gateway.services.admission.in_use, gateway.services.admission.queued) == (0, 0)
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (429, "overloaded", "10")
    assert "the queue has no place for it" in refused.error["message"]
    assert sorted(statuses) == [200] * 4 + [429] * 16
    served = [record.key for record in gateway.records if record.outcome == "ok"]
    assert served == (["mallory", "mallory", "alice", "mallory", "mallory"] if path == CHAT else ["mallory"] * 4)


@pytest.mark.parametrize("path", [CHAT, ROUTE])
async def test_another_key_is_served_while_one_with_endless_answers_may_have_no_more_permits(path: str) -> None:
    body = orjson.dumps({"model": "generalist", "messages": [{"role": "user", "content": "hi"}]})
    endless = asyncio.Event()
    async with gateway_of(keyed(concurrent_requests=20), coder=endless) as gateway:
        flood = [send_chat(gateway, "mallory") for _ in range(30)]
        await wait_until(lambda: len(gateway.experts["coder"].calls) == 19)
        for _ in range(5):
            assert (await gateway.post(path, body, headers=bearer("alice"))).status == 200
        endless.set()
        assert {(await task).status for task in flood} == {200}


@pytest.mark.parametrize("slow", [True, False])
async def test_feedback_that_does_not_come_or_is_of_unknown_requests_keeps_no_other_out(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "LOG_SECONDS", 60.0)  # however busy the machine is
    monkeypatch.setattr("gateway.request.body.BODY_TIMEOUT", 60.0)
    async with gateway_of(keyed()) as gateway:
        request_id = (await send_chat(gateway, "alice")).headers["x-request-id"]
        known, unknown = (orjson.dumps({"request_id": one, "score": 1}) for one in (request_id, "req_" + "0" * 32))
        rest = asyncio.Event()
        sent = (unknown[:9], rest, unknown[9:]) if slow else (unknown,)  # it is looked for, for a second
        flood = [asyncio.ensure_future(gateway.post(FEEDBACK, *sent, headers=bearer("mallory"))) for _ in range(100)]
        await wait_until(lambda: sum(task.done() for task in flood) == 36)
        for _ in range(5):
            assert (await gateway.post(FEEDBACK, known, headers=bearer("alice"))).status == 200
        rest.set()
        answers = await asyncio.gather(*flood)
        assert (await gateway.post(FEEDBACK, unknown, headers=bearer("mallory"))).status == 404
    assert sorted(answer.status for answer in answers) == [404] * 64 + [429] * 36
    refused = next(answer for answer in answers if answer.status == 429)
    assert "64 feedback requests are in progress, 64 of them of this caller" in refused.error["message"]
