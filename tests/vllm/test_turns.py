"""Two real servers take turns where one fits: vLLM, which sleeps, and `transformers serve`, which is stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.fleet.residency.client import fetch_tiers
from coe.settings import Settings
from tests.vllm.conftest import OPTIONS
from tests.vllm.service import SPARE, Service, lines_of, text_of

AWAKE, ASLEEP, STOPPED = "awake", "asleep", "stopped"


@pytest.fixture(scope="module")
def house(model: Path, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A device for one of them; `sleeper` is told to answer when in doubt."""
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
                "hold": 200,
            },
        )
        service.start()
        yield service


def tiers(house: Service) -> dict[str, str]:
    """As `coe status` asks for them."""
    settings = Settings.read({}, config=house.folder / "experts.yaml")
    told = asyncio.run(fetch_tiers(settings.turns_link.readlink()))
    return {name: one["tier"] for name, one in told.items()}


def metric(house: Service, name: str, expert: str) -> float:
    """Of the gateway."""
    wanted = f'{name}{{expert="{expert}"}} '
    lines = house.client.get("/metrics").text.splitlines()
    return next((float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), 0.0)


def test_who_is_asked_for_is_woken_and_the_other_one_rests(house: Service) -> None:
    assert tiers(house) == {"sleeper": AWAKE, "stopper": STOPPED}
    assert text_of(house.ask("sleeper"))
    with ThreadPoolExecutor(3) as threads:  # held together, one switch
        answers = list(threads.map(lambda number: house.ask("stopper", f"Hello {number}"), range(3)))
    assert [answer.headers["x-coe-expert"] for answer in answers] == ["stopper"] * 3
    assert all(text_of(answer) for answer in answers)
    assert tiers(house) == {"sleeper": ASLEEP, "stopper": AWAKE}
    assert metric(house, "coe_expert_switches", "stopper") == 1
    assert metric(house, "coe_hold_seconds_count", "stopper") == 3
    assert text_of(house.ask("sleeper"))
    assert tiers(house) == {"sleeper": AWAKE, "stopper": STOPPED}
    assert metric(house, "coe_expert_switches", "sleeper") == 1
    assert house.said.count("server 'sleeper' is ready") == 1, "it slept and was not started again"


def test_a_stream_is_not_cut_by_one_that_wants_its_place(house: Service) -> None:
    house.until_answered("sleeper")
    body: dict[str, Any] = {"model": "sleeper", "messages": [{"role": "user", "content": "Tell a long story"}]}
    with ThreadPoolExecutor(1) as threads, lines_of(house, {**body, "max_tokens": 300, "ignore_eos": True}) as events:
        next(events)
        waiting = threads.submit(house.ask, "stopper")
        found = list(events)
        assert not any("error" in event for event in found)
        assert len(found) > 200
        assert waiting.result(120).headers["x-coe-expert"] == "stopper"


def test_one_that_is_killed_is_started_again_when_it_is_asked_for(house: Service) -> None:
    house.until_answered("stopper")
    ready = house.said.count("server 'stopper' is ready")
    house.process("transformers").send_signal(signal.SIGKILL)
    house.wait_for_line("server 'stopper' was killed by SIGKILL")
    house.until_answered("stopper")
    assert house.said.count("server 'stopper' is ready") == ready + 1


def test_nothing_is_left_when_it_ends(house: Service) -> None:
    assert text_of(house.ask("stand_in")) == SPARE
    family = house.family()
    assert len(family) > 3
    house.host.send_signal(signal.SIGTERM)
    assert house.host.wait(60) == 0
    assert psutil.wait_procs(family, 10)[1] == []
