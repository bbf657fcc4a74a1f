"""Garbage collection and memory of a process after loading."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from gateway.process import gc_tuning


def test_loaded_objects_are_frozen_out_of_garbage_collection() -> None:
    code = "import gc; from gateway.process.gc_tuning import tune_gc; tune_gc(); print(gc.get_freeze_count() > 1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.anyio
async def test_memory_is_given_back_time_and_again_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, again, threads = asyncio.get_running_loop(), asyncio.Event(), list[int]()

    def give_back() -> None:
        threads.append(threading.get_ident())
        if len(threads) == 3:
            loop.call_soon_threadsafe(again.set)

    monkeypatch.setattr(gc_tuning, "trim_memory", give_back)
    async with gc_tuning.trimming_memory(every=0.001):
        await asyncio.wait_for(again.wait(), 60)
    assert threading.get_ident() not in threads
