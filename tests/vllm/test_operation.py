"""A real vLLM server behind the real gateway sleeps, is full, and is killed."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
import pytest

from coe.fleet.engines import VllmClient
from coe.fleet.probe import open_probe_session
from tests.vllm.adapter_answers import ADAPTER_ANSWERS
from tests.vllm.service import SPARE, Service, lines_of, text_of


async def is_sleeping(url: str, session: aiohttp.ClientSession) -> bool:
    async with session.get(f"{url}/is_sleeping") as response:
        return bool((await response.json())["is_sleeping"])


@pytest.mark.anyio
async def test_a_sleeping_server_holds_requests_and_continues_when_woken(awake: Service) -> None:
    async with open_probe_session() as session:
        vllm = VllmClient(awake.server, session)
        for level in (1, 2):
            await vllm.sleep(level=level)
            assert await is_sleeping(awake.server, session)
            async with session.get(f"{awake.server}/health") as health:
                assert health.status == 200, "so the fleet leaves it alone"
            with ThreadPoolExecutor(1) as threads:
                held = threads.submit(awake.send_chat, "pirate", "Are you asleep?")
                with pytest.raises(TimeoutError):
                    held.result(1.0)
                await vllm.wake(level=level)
                assert ADAPTER_ANSWERS["pirate"].startswith(text_of(held.result(60)))
            assert not await is_sleeping(awake.server, session)


def test_a_full_queue_is_answered_by_another_expert(awake: Service) -> None:
    """Four run, four wait; vLLM answers 503 to the others."""

    def send_chat(number: int) -> httpx.Response:
        return awake.send_chat(
            "auto", f"Count to a hundred, please, in general ({number})", max_tokens=100, ignore_eos=True
        )

    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(send_chat, range(24)))
    experts = [answer.headers["x-coe-expert"] for answer in answers]
    assert {answer.status_code for answer in answers} == {200}
    assert "base" in experts
    assert "stand_in" in experts
    assert awake.send_chat("base").headers["x-coe-expert"] == "base"


@pytest.mark.parametrize("victim", ["VLLM::Worker", "api_server"])
def test_a_killed_server_restarts_with_its_adapters_and_others_answer_meanwhile(awake: Service, victim: str) -> None:
    restarts = awake.output.count("restarting in")
    ready = awake.output.count("is ready")
    body = {"model": "base", "messages": [{"role": "user", "content": "Tell a long story"}], "max_tokens": 900}
    with lines_of(awake, {**body, "ignore_eos": True}) as events:
        for _ in range(3):
            next(events)
        awake.process(victim).send_signal(signal.SIGKILL)
        assert any("error" in event for event in events), "who is in the middle of an answer is reported"
    meanwhile = awake.send_chat("auto", "Anything in general?")
    assert (text_of(meanwhile), meanwhile.headers["x-coe-expert"]) == (SPARE, "stand_in")
    awake.wait_for_line("restarting in", times=restarts + 1)
    awake.wait_for_line("is ready", times=ready + 1)
    for name in ADAPTER_ANSWERS:
        awake.until_answered(name)
        assert ADAPTER_ANSWERS[name].startswith(text_of(awake.send_chat(name)))
