"""Real llama.cpp servers behind `coe up` and the real gateway: answers, restarts, and expert switches on one device."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.fleet.residency.client import fetch_report
from coe.settings import Settings
from tests.vllm.service import Service, lines_of, text_of

SMALL: dict[str, Any] = {
    "name": "small",
    "model": "SmolLM2-135M-Instruct",
    "runtime": "llama.cpp",
    "options": {"ctx-size": 1024, "parallel": 2},
    "memory_gb": 1,
}
OTHER = {**SMALL, "name": "other", "options": {"ctx-size": 2048, "parallel": 2}}
AWAKE, STOPPED = "awake", "stopped"
STORY: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell a long story"}], "ignore_eos": True}


@pytest.fixture(scope="module")
def plain(bin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("plain"), bin_folder=bin_folder) as service:
        service.declare(SMALL)
        service.start()
        yield service


@pytest.fixture(scope="module")
def shared(bin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A device for one of two experts."""
    with Service(tmp_path_factory.mktemp("shared"), bin_folder=bin_folder) as service:
        devices = [{"name": "ram", "memory_gb": 1.5}]
        service.declare(SMALL, OTHER, residency={"devices": devices, "max_wait": 3, "wait_timeout": 100})
        service.start()
        yield service


def tiers(service: Service) -> dict[str, str]:
    settings = Settings.read({}, config=service.folder / "experts.yaml")
    (device,) = asyncio.run(fetch_report(settings.residency_link.readlink()))
    return {name: one["tier"] for one in device["servers"] for name in one["experts"]}


def test_it_answers_chats_and_streams(plain: Service) -> None:
    assert text_of(plain.send_chat("small"))
    with lines_of(plain, {"model": "small", **STORY, "max_tokens": 20}) as events:
        found = list(events)
    assert len(found) >= 20
    assert not any("error" in event for event in found)


def test_a_killed_server_is_restarted_and_another_expert_answers_meanwhile(plain: Service) -> None:
    ready = plain.output.count("server 'small' is ready")
    with lines_of(plain, {"model": "small", **STORY, "max_tokens": 900}) as events:
        next(events)
        plain.process("llama-server").send_signal(signal.SIGKILL)
        assert any("error" in event for event in events), "who is in the middle of an answer is reported"
    assert plain.send_chat("auto", "Anything in general?").status_code == 200
    plain.wait_for_line("server 'small' was killed by SIGKILL")
    plain.wait_for_line("server 'small' is ready", times=ready + 1)
    plain.until_answered("small")


def test_experts_take_turns_on_a_device(shared: Service) -> None:
    assert tiers(shared) == {"small": AWAKE, "other": STOPPED}
    with ThreadPoolExecutor(3) as threads:  # they wait together: one switch
        answers = list(threads.map(lambda number: shared.send_chat("other", f"Hello {number}"), range(3)))
    assert [answer.headers["x-coe-expert"] for answer in answers] == ["other"] * 3
    assert all(text_of(answer) for answer in answers)
    assert tiers(shared) == {"small": STOPPED, "other": AWAKE}
    assert text_of(shared.send_chat("small"))
    assert tiers(shared) == {"small": AWAKE, "other": STOPPED}


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_no_process_is_left_at_the_end(kind: str, request: pytest.FixtureRequest) -> None:
    service: Service = request.getfixturevalue(kind)
    family = service.family()
    assert len(family) > 2
    service.host.send_signal(signal.SIGTERM)
    assert service.host.wait(60) == 0
    assert psutil.wait_procs(family, 10)[1] == []
