"""Identifiers of requests: ordered by time, random, and never the same in two processes."""

from __future__ import annotations

import multiprocessing
import re

from gateway.request.trace import RANDOM_PARTS, new_request_id


def ids(count: int) -> list[str]:
    return [new_request_id(1_700_000_000.5) for _ in range(count)]


def test_request_ids_differ_and_begin_with_their_time() -> None:
    found = ids(3 * RANDOM_PARTS + 1)
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"req_018bcfe569f4[0-9a-f]{20}", one) for one in found)


def test_a_forked_process_makes_ids_of_its_own() -> None:
    ids(1)  # leaves random parts for later ids
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        child = pool.apply(ids, (RANDOM_PARTS - 1,))
    assert not set(child) & set(ids(RANDOM_PARTS - 1))
