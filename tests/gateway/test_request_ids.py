"""Ids of requests, whose random bits are read for many at a time."""

from __future__ import annotations

import os

from gateway.request.trace import IDS_A_READ, new_request_id


def test_ids_are_unique_and_grow_with_time() -> None:
    ids = [new_request_id(1000.0 + number / 1000) for number in range(3 * IDS_A_READ)]
    assert ids == sorted(ids)
    assert len({one[-20:] for one in ids}) == len(ids)
    assert {len(one) for one in ids} == {len("req_") + 32}


def test_a_forked_process_repeats_no_id_of_its_parent() -> None:
    new_request_id(0.0)  # there are bits left
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, new_request_id(0.0).encode())
        os._exit(0)
    os.waitpid(child, 0)
    own = {new_request_id(0.0) for _ in range(IDS_A_READ)}
    assert os.read(reader, 100).decode() not in own
