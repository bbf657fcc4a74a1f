"""Errors for wrong requests: never a stack trace, always the field and the remedy."""

import pytest

from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b"{", 400, None, "not JSON"),
        (b"", 400, None, "not JSON"),
        (b"[]", 400, None, "must be a JSON object"),
        (b"\xff\xfe{}", 400, None, "not JSON"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, 400, None, "not JSON"),
        (b'{"messages":[{"role":"user","content":"x"}]}', 400, "model", "model is missing"),
        (b'{"model":"auto"}', 400, "messages", "at least one message"),
        (b'{"model":"auto","messages":[]}', 400, "messages", "at least one message"),
        (b'{"model":"auto","messages":"hi"}', 400, "messages", "must be a list"),
        (b'{"model":"auto","messages":["hi"]}', 400, "messages[0]", "must be an object"),
        (b'{"model":"auto","messages":[{"role":"boss","content":"x"}]}', 400, "messages[0].role", "must be one of"),
        (b'{"model":"auto","messages":[{"role":["user"],"content":"x"}]}', 400, "messages[0].role", "must be one of"),
        (b'{"model":"auto","messages":[{"role":"user","content":5}]}', 400, "messages[0].content", "must be text"),
        (b'{"model":"auto","messages":[{"role":"user","content":[5]}]}', 400, "messages[0].content[0]", "a type"),
        (
            b'{"model":"auto","messages":[{"role":"user","content":[{"type":"text","text":1}]}]}',
            400,
            "messages[0].content[0].text",
            "must be text",
        ),
        (b'{"model":"auto","stream":"yes","messages":[{"role":"user","content":"x"}]}', 400, "stream", "true or false"),
        (b'{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}', 404, "model", "known: auto, coder"),
    ],
)
async def test_a_wrong_body_is_refused_with_the_field_and_the_reason(
    body: bytes, status: int, param: str | None, says: str
) -> None:
    async with gateway_of() as gateway:
        response = await gateway.post(CHAT, body)
    assert response.status == status
    assert response.error["param"] == param
    assert says in response.error["message"]
    assert response.error["type"] == "invalid_request_error"
    assert gateway.records[0].outcome == response.error["code"]


async def test_a_body_over_the_limit_is_refused_by_its_declared_length_and_by_its_real_one() -> None:
    async with gateway_of(registry_of(limits={"max_body_mb": 0.001})) as gateway:
        headers = {"content-type": "application/json", "content-length": str(50 * 2**20)}
        declared = await gateway.post(CHAT, b"{}", headers=headers)
        real = await gateway.post(CHAT, b" " * 800, b" " * 800)
    assert declared.status == real.status == 413
    assert declared.error["code"] == "body_too_large"


async def test_another_content_type_is_refused_with_the_right_one() -> None:
    async with gateway_of() as gateway:
        response = await gateway.post(CHAT, b"{}", headers={"content-type": "text/plain"})
    assert response.status == 415
    assert "content-type: application/json" in response.error["message"]


async def test_a_body_that_does_not_arrive_is_408_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.request.admission.BODY_TIMEOUT", 0.05)
    async with gateway_of(registry_of(limits={"concurrent_requests": 1})) as gateway:
        slow = await gateway.post(CHAT, b'{"model"', unfinished=True)
        assert slow.status == 408
        assert slow.error["code"] == "request_timeout"
        assert gateway.services.admission.arriving == 0
        assert (await gateway.chat("code")).status == 200
