"""x-coe-explain: the steps' times beside an answer, and what `/v1/route` adds for administrators."""

from __future__ import annotations

import orjson
import pytest

from coe.core import Health
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
WHY = JSON | {"x-coe-explain": "1"}
STEPS = ["admit", "parse", "classify", "assign", "retrieve", "call"]


async def send_chat(gateway: Gateway, path: str, headers: dict[str, str], **fields: object) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "code"}], **fields}
    return await gateway.post(path, orjson.dumps(body), headers=headers)


def steps(response: Response) -> list[str]:
    reported = response.headers["server-timing"].split(", ")
    assert all(float(step.split(";dur=")[1]) >= 0 for step in reported)
    return [step.split(";")[0] for step in reported]


async def test_only_requests_with_the_explain_header_get_the_times_of_the_steps() -> None:
    async with gateway_of() as gateway:
        reported = await send_chat(gateway, "/v1/chat/completions", WHY)
        silent = [
            await send_chat(gateway, "/v1/chat/completions", headers)
            for headers in (JSON, WHY | {"x-coe-explain": "0"})
        ]
        wrong = await send_chat(gateway, "/v1/chat/completions", WHY | {"x-coe-explain": "please"})
    assert steps(reported) == STEPS
    assert all("server-timing" not in response.headers for response in silent)
    assert (wrong.status, wrong.error["param"]) == (400, "x-coe-explain")


async def test_a_decision_is_explained_by_worth_standing_and_neighbours() -> None:
    registry = registry_of(
        categories=[
            {"name": "code", "description": "code", "examples": ["code", "write code"]},
            {"name": "art", "description": "of another text"},
            {"name": "general", "description": "general"},
        ]
    )
    async with gateway_of(registry) as gateway:
        gateway.experts["painter"].health = Health(up=False, load=0.5)
        reported = (await send_chat(gateway, "/v1/route", WHY)).json
        plain = (await send_chat(gateway, "/v1/route", JSON)).json
    assert reported["candidates"][0] == "coder"
    assert reported["utility"][0] > reported["utility"][1]
    assert len(reported["utility"]) == 3
    assert reported["health"]["painter"] == {"up": False, "load": 0.5}
    assert [(near["category"], near["text"]) for near in reported["neighbours"]] == [
        ("code", "code"),
        ("art", None),  # a text that neither the package nor experts.yaml has is not reported
        ("general", "general"),
    ]
    assert not {"neighbours", "health", "utility", "text", "left_out"} & plain.keys()


async def test_the_routed_text_and_what_it_leaves_out_are_explained_and_recorded() -> None:
    boilerplate = "<system-reminder>\npaint something\n</system-reminder>\n"
    messages = [{"role": "user", "content": boilerplate + "code"}]
    part = "message 0: block system-reminder left out, 17 characters"
    for stored in (True, False):
        async with gateway_of(registry_of(log={"store_prompts": stored})) as gateway:
            reported = (await send_chat(gateway, "/v1/route", WHY, messages=messages)).json
            await send_chat(gateway, "/v1/chat/completions", JSON, messages=messages)
            (record,) = gateway.records
        assert (reported["category"], reported["text"]) == ("code", "code")
        assert [(one["kind"], one["name"], one["characters"]) for one in reported["left_out"]] == [
            ("block", "system-reminder", 17)
        ]
        assert (record.prompt, record.left_out) == (("code", (part,)) if stored else (None, ()))
