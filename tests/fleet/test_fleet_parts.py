"""Small parts of the fleet: backoff, ports, logs, exit codes, imports."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from coe.errors import FleetError
from coe.fleet import server, specs
from coe.fleet.process import describe_exit
from coe.fleet.specs import Timeouts, free_port


def test_delays_double_up_to_the_maximum_and_reset_after_a_healthy_period() -> None:
    clock, delay, delays = 0.0, 0.0, []
    for up in (5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 59.9, 60.0, 1.0):
        clock += up
        delay = Timeouts().restart_delay(delay, up=up)
        delays.append(delay)
        clock += delay
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0, 2.0]


def test_a_free_port_can_be_bound_and_is_not_one_to_avoid() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert not specs.is_free(port)
    assert specs.is_free(port)


@pytest.fixture
def two_ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """The only numbers that `free_port` may choose, which no other process of the machine chooses."""
    first, reserved = 100_000 + 2 * os.getpid(), deque[int]()
    monkeypatch.setattr(specs, "_FIRST", first)
    monkeypatch.setattr(specs, "_LAST", first + 2)
    monkeypatch.setattr(specs, "_reserved", reserved)
    monkeypatch.setattr(specs, "is_free", lambda port, host: True)
    yield first, first + 1
    for descriptor in reserved:
        os.close(descriptor)


def test_ports_to_avoid_are_avoided_and_running_out_is_an_error(two_ports: tuple[int, int]) -> None:
    assert free_port(avoid=two_ports[:1]) == two_ports[1]
    with pytest.raises(FleetError, match="no free port between"):
        free_port(avoid=two_ports)


RESERVE = "import sys; from coe.fleet.specs import _reserve; print(_reserve(int(sys.argv[1])), flush=True); input()"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ports are not reserved")
def test_a_port_that_another_process_has_chosen_is_chosen_only_after_its_end(two_ports: tuple[int, int]) -> None:
    command = [sys.executable, "-c", RESERVE, str(two_ports[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert free_port() == two_ports[1]
        with pytest.raises(FleetError, match="no free port between"):
            free_port()
        other.kill()
    assert free_port() == two_ports[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ports are not reserved")
def test_the_oldest_reservation_ends_with_one_too_many(
    two_ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "_MAX_RESERVED", 1)
    first = free_port()
    assert {first, second := free_port()} == set(two_ports)
    assert (free_port(), len(specs._reserved)) == (first, 1)
    assert free_port() == second


@pytest.mark.parametrize("step", ["socket", "bind"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ports are not reserved")
def test_ports_are_chosen_where_a_sandbox_forbids_reservations(
    two_ports: tuple[int, int], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Mock(side_effect=PermissionError(errno.EPERM, "Operation not permitted"))
    if step == "socket":
        monkeypatch.setattr(socket, "socket", refused)
    else:
        monkeypatch.setattr(socket.socket, "bind", refused)
    assert free_port() in two_ports
    assert not specs._reserved


def test_the_tail_of_a_log_is_its_last_lines_that_are_not_blank(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert server.log_tail(log) == ""
    log.write_bytes(b"lost\n" * 10_000 + b"loading 1%\rloading 100%\n\n \ncaf\xff\n")
    assert server.log_tail(log, lines=2) == "loading 100%\ncaf\ufffd"
    assert len(server.log_tail(log).splitlines()) == 20


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


def test_importing_the_fleet_imports_neither_torch_nor_transformers() -> None:
    script = "import sys, coe.fleet, coe.fleet.weights; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"
