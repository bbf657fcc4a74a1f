"""Two real servers share a device that fits one: vLLM, which sleeps, and `transformers serve`, which is stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.fleet.residency.client import shared_devices
from coe.settings import Settings
from tests.vllm.conftest import OPTIONS
from tests.vllm.service import SPARE, Service, lines_of, text_of

AWAKE, ASLEEP, STOPPED = "awake", "asleep", "stopped"


@pytest.fixture(scope="module")
def service(model: Path, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A device for one of them; `sleeper` is tiers_by_expert to answer when in doubt."""
    with Service(tmp_path_factory.mktemp("turns"), bin_folder=python.parent) as service:
        options = {**OPTIONS, "max-num-seqs": 2, "max-num-queued-reqs": 8}
        service.declare(
            {
                "name": "sleeper",
                "model": str(model),
                "runtime": "vllm",
                "options": options,
                "memory_gb": 3,
                "sleep_level": 1,
            },
            {"name": "stopper", "model": str(model), "runtime": "transformers", "memory_gb": 2},
            residency={
                "devices": [{"name": "room", "memory_gb": 4}],
                "sleep_memory_gb": 3,
                "max_wait": 3,
                "wait_timeout": 200,
            },
        )
        service.start()
        yield service


def tiers(service: Service) -> dict[str, str]:
    """As `coe status` asks for them."""
    settings = Settings.read({}, config=service.folder / "experts.yaml")
    (device,) = asyncio.run(shared_devices(settings.home))
    return {name: one["tier"] for one in device["servers"] for name in one["experts"]}


def metric(service: Service, name: str, expert: str, more: str = "") -> float:
    """Of the gateway; `more` are further labels."""
    wanted = f'{name}{{expert="{expert}"{more}}} '
    lines = service.client.get("/metrics").text.splitlines()
    return next((float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), 0.0)


def granted_waits(service: Service, expert: str) -> float:
    """How many requests waited and were answered, whatever the server was doing when each of them arrived."""
    labels = [f',outcome="granted",tier="{tier}"' for tier in (STOPPED, "unloading", "loading")]
    return sum(metric(service, "coe_residency_wait_seconds_count", expert, one) for one in labels)


def test_a_requested_server_is_loaded_and_the_other_unloaded(service: Service) -> None:
    assert tiers(service) == {"sleeper": AWAKE, "stopper": STOPPED}
    assert text_of(service.send_chat("sleeper"))
    with ThreadPoolExecutor(3) as threads:  # they wait together: one switch
        answers = list(threads.map(lambda number: service.send_chat("stopper", f"Hello {number}"), range(3)))
    assert [answer.headers["x-coe-expert"] for answer in answers] == ["stopper"] * 3
    assert all(text_of(answer) for answer in answers)
    assert tiers(service) == {"sleeper": ASLEEP, "stopper": AWAKE}
    assert metric(service, "coe_expert_switches", "stopper") == 1
    assert granted_waits(service, "stopper") == 3
    assert text_of(service.send_chat("sleeper"))
    assert tiers(service) == {"sleeper": AWAKE, "stopper": STOPPED}
    assert metric(service, "coe_expert_switches", "sleeper") == 1
    assert service.output.count("server 'sleeper' is ready") == 1, "it slept and was not started again"


def test_a_stream_is_not_interrupted_by_an_eviction(service: Service) -> None:
    service.until_answered("sleeper")
    body: dict[str, Any] = {"model": "sleeper", "messages": [{"role": "user", "content": "Tell a long story"}]}
    body |= {"max_tokens": 300, "ignore_eos": True, "stream_options": {"include_usage": True}}
    with ThreadPoolExecutor(1) as threads, lines_of(service, body) as events:
        next(events)
        waiting = threads.submit(service.send_chat, "stopper")
        found = list(events)
        assert not any("error" in event for event in found)
        assert found[-1]["usage"]["completion_tokens"] == 300
        assert waiting.result(120).headers["x-coe-expert"] == "stopper"


def test_no_process_is_left_at_the_end(service: Service) -> None:
    assert text_of(service.send_chat("stand_in")) == SPARE
    family = service.family()
    assert len(family) > 3
    service.host.send_signal(signal.SIGTERM)
    assert service.host.wait(60) == 0
    assert psutil.wait_procs(family, 10)[1] == []
