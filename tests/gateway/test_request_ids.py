"""Identifiers of requests: ordered by time, random, and never the same in two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway.request.trace import new_request_id

ROOT = Path(__file__).parents[2]
FORK = """
from multiprocessing import get_context
from gateway.request.trace import RANDOM_PARTS
from tests.gateway.test_request_ids import ids

ids(1)  # leaves random parts for later ids
with get_context("fork").Pool(1) as pool:
    child = pool.apply(ids, (RANDOM_PARTS - 1,))
assert not set(child) & set(ids(RANDOM_PARTS - 1))
"""
"""A process without the threads that other tests start: a fork of those waits for their locks for ever."""


def ids(count: int) -> list[str]:
    return [new_request_id(1_700_000_000.5) for _ in range(count)]


def test_a_forked_process_makes_ids_of_its_own() -> None:
    subprocess.run((sys.executable, "-c", FORK), cwd=ROOT, check=True)
