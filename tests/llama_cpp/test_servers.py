"""Real llama.cpp servers behind `coe up` and the real gateway: answers and restarts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.vllm.service import Service, lines_of, text_of

SMALL: dict[str, Any] = {
    "name": "small",
    "model": "SmolLM2-135M-Instruct",
    "runtime": "llama.cpp",
    "options": {"ctx-size": 1024, "parallel": 2},
    "memory_gb": 1,
}
STORY: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell a long story"}], "ignore_eos": True}


@pytest.fixture(scope="module")
def plain(bin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("plain"), bin_folder=bin_folder) as service:
        service.declare(SMALL)
        service.start()
        yield service


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


def test_no_process_is_left_at_the_end(plain: Service) -> None:
    family = plain.family()
    assert len(family) > 2
    plain.host.send_signal(signal.SIGTERM)
    assert plain.host.wait(60) == 0
    assert psutil.wait_procs(family, 10)[1] == []
