"""Lines that wait in a file for a log that is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.errors import StoreError
from coe.records import writer as spool_module
from coe.records.writer import Spool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool.jsonl"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    spool = Spool(path)
    yield spool
    spool.close()


def lines(*numbers: int) -> list[bytes]:
    return [b'{"number":%d}' % number for number in numbers]


def delivered(spool: Spool, count: int = 10) -> list[bytes]:
    found = list[bytes]()
    while some := spool.oldest(count):
        found += some
        spool.delivered()
    return found


def test_lines_come_out_as_they_went_in_oldest_first(spool: Spool) -> None:
    spool.append(lines(0, 1, 2))
    spool.append(["né 🦜".encode()])
    assert spool.oldest(2) == lines(0, 1)
    assert delivered(spool, 3) == [*lines(0, 1, 2), "né 🦜".encode()]
    assert delivered(spool) == []


def test_lines_that_arrive_during_the_delivery_follow(spool: Spool, path: Path) -> None:
    spool.append(lines(0, 1))
    assert spool.oldest(1) == lines(0)
    spool.append(lines(2))
    Spool(path).append(lines(3))
    assert delivered(spool) == lines(0, 1, 2, 3)
    assert [file.name for file in path.parent.iterdir()] == ["spool.jsonl.lock"]


def test_one_process_at_a_time_delivers_and_another_takes_over(spool: Spool, path: Path) -> None:
    other = Spool(path)
    spool.append(lines(0, 1))
    assert spool.oldest(1) == lines(0)
    spool.delivered()
    assert other.oldest(10) == []
    spool.close()  # as a crash does, which forgets how much was delivered
    assert delivered(other) == lines(0, 1)
    assert spool.oldest(10) == []


def test_a_line_that_a_crash_cut_off_spoils_no_other(spool: Spool, path: Path) -> None:
    spool.append(lines(0))
    with path.open("ab") as file:
        file.write(b'\n{"numb')
    spool.append(lines(1))
    assert delivered(spool) == [*lines(0), b'{"numb', *lines(1)]


def test_a_full_spool_takes_none_of_the_lines(spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MAX_BYTES", 30)
    spool.append(lines(0, 1))
    with pytest.raises(StoreError, match=r"spool\.jsonl: full with 26 bytes"):
        spool.append(lines(2))
    assert delivered(spool) == lines(0, 1)
    spool.append(lines(3))
    assert delivered(spool) == lines(3)


def test_a_disk_without_room_leaves_no_part_behind(spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append(lines(0))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.os, "fsync", full)
        with pytest.raises(StoreError, match=r"spool\.jsonl: No space left.*check that the disk has room"):
            spool.append(lines(1))
    spool.append(lines(2))
    assert delivered(spool) == lines(0, 2)
