"""Fake servers, and a check after each test that no process is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import forked
from tests.fleet.fake_fleet import Fakes


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    fakes = Fakes(tmp_path)
    yield fakes
    left = [psutil.Process(pid) for pid in fakes.alive()] + forked.children()
    for process in left:
        process.kill()
    assert not left
