"""Small parts of the fleet: backoff, logs, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.fleet import server
from coe.fleet.server import describe_exit
from coe.fleet.specs import Timeouts


def test_delays_double_up_to_the_maximum_and_reset_after_a_healthy_period() -> None:
    clock, delay, delays = 0.0, 0.0, []
    for up in (5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 59.9, 60.0, 1.0):
        clock += up
        delay = Timeouts().restart_delay(delay, up=up)
        delays.append(delay)
        clock += delay
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0, 2.0]


def test_the_tail_of_a_log_is_its_last_lines_that_are_not_blank(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert server.log_tail(log) == ""
    log.write_bytes(b"lost\n" * 10_000 + b"loading 1%\rloading 100%\n\n \ncaf\xff\n")
    assert server.log_tail(log, lines=2) == "loading 100%\ncaf\ufffd"
    assert len(server.log_tail(log).splitlines()) == 20


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exited with code 3"),
        (137, "was killed by SIGKILL, perhaps because memory ran out"),
        (139, "was killed by SIGSEGV"),
        (255, "exited with code 255"),
    ],
)
def test_an_exit_code_is_described_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_a_log_is_truncated_under_its_writer_only_if_too_long(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    server.truncate_log(log)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"0123456789")
        server.truncate_log(log, limit=10, keep=4)
        assert log.read_bytes() == b"0123456789"
        writer.write(b"a")
        server.truncate_log(log, limit=10, keep=4)
        writer.write(b"b")
    assert log.read_bytes() == b"789ab"
