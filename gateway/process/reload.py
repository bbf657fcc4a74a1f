"""Takes over what is declared and promoted while the gateway serves: experts.yaml, router, overlays, assignment, gate.

A state is read, checked and built whole before it replaces the former one; on any error the former one stays, the log
says why once, and `coe_reload_failed` and /health/ready show it. Requests under way end with what they began with.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from coe.artifacts.kinds import ASSIGNMENT, GATE, OVERLAYS, ROUTER
from coe.artifacts.store import POINTER
from coe.errors import CoEError, ConfigError
from coe.registry import ExpertSpec, Registry
from coe.runtime.active_state import ActiveState
from coe.runtime.consequences import log_consequences
from coe.settings import Settings
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.access import check_counters, check_exposure
from gateway.process.gc_tuning import give_back
from gateway.serving_state import ServingState
from gateway.wiring import Wiring

POLL = 0.5
"""Seconds between two looks at the files."""
SETTLE = 0.1
"""Seconds that a file must stay as it is before it is read: it may be half written."""

Look = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and time of every watched file; None for one that is not there."""

Reader = Callable[[Settings, ActiveState | None], ActiveState]
"""Reads what is in use now, given what was, None at the start."""

_log = logging.getLogger("gateway")


def look_at(settings: Settings) -> Look:
    """How the watched files look now."""
    return _look(_watched(settings))


class Reload:
    """Watches the files while `watching` is entered."""

    def __init__(
        self,
        current: ServingState,
        *,
        settings: Settings,
        in_use: ActiveState,
        assembly: Wiring,
        read: Reader,
    ) -> None:
        self._current = current
        self._settings = settings
        self._in_use = in_use
        self._assembly = assembly
        self._read = read
        self._at_start = in_use.registry
        self._files = _watched(settings)
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Look now, and take over even what looks the same."""
        self._asked.set()

    @asynccontextmanager
    async def watching(self, *, since: Look, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[None]:
        """Look after the files in a task until the block ends. `since` is how they looked before they were read."""
        task = supervised(partial(self._run, since), "reload", task_failed=task_failed)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self, since: Look) -> None:
        look = _look(self._files)
        contents = await asyncio.to_thread(_contents, self._files)
        if look != since:
            await self._take_over()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            await self._assembly.close_retired()
            if not asked and _look(self._files) == look:
                continue
            look = await self._settled()
            before, contents = contents, await asyncio.to_thread(_contents, self._files)
            if asked or contents != before:
                await self._take_over()

    async def _settled(self) -> Look:
        look = _look(self._files)
        while True:
            await asyncio.sleep(SETTLE)
            before, look = look, _look(self._files)
            if look == before:
                return look

    async def _take_over(self) -> None:
        try:
            in_use = await asyncio.to_thread(self._read, self._settings, self._in_use)
            self._check(in_use.registry)
            serving = self._assembly.serving(in_use)
        except CoEError as error:
            self._failed(str(error))
        except Exception as error:  # a bug in what is new is no reason to stop serving what works
            self._failed(repr(error))
        else:
            if in_use.consequences != self._in_use.consequences:
                log_consequences(in_use.consequences)
            self._in_use = in_use
            self._current.replace(serving)
            self._current.reload_error = None
            router, plan = serving.composition.router.version, serving.plan or "as declared"
            await asyncio.to_thread(give_back)  # what the former router took
            _log.warning("reloaded: config %s, router %s, plan %s", serving.registry.digest, router, plan)

    def _check(self, registry: Registry) -> None:
        check_same_process(self._at_start, registry)
        check_exposure(self._settings, registry.access)
        check_counters(registry.access, workers=self._settings.workers)

    def _failed(self, why: str) -> None:
        self._current.reload_error = why
        _log.error("not reloaded, the last good state serves on: %s", why)


def check_same_process(old: Registry, new: Registry) -> None:
    """Raises ConfigError for what a running process cannot take over."""
    changed = [
        name
        for name, before, after in (
            ("log.url", old.log.url, new.log.url),
            ("log.keep_records", old.log.keep_records, new.log.keep_records),
            ("log.keep_days", old.log.keep_days, new.log.keep_days),
            ("log.store_embeddings", old.log.store_embeddings, new.log.store_embeddings),
            ("artifacts", old.artifacts, new.artifacts),
            ("access.counters", old.access.counters, new.access.counters),
        )
        if before != after
    ]
    started = {spec.name: _server(spec) for spec in old.experts if spec.runtime in ("transformers", "vllm")}
    changed += [
        f"the server of expert {spec.name!r}"
        for spec in new.experts
        if spec.name in started and started[spec.name] != _server(spec)
    ]
    if changed:
        raise ConfigError(f"{', '.join(changed)}: a change of this needs a restart")


def _server(spec: ExpertSpec) -> tuple[object, ...]:
    return spec.runtime, spec.model, tuple(spec.options.items()), spec.gpus, spec.replicas


def _watched(settings: Settings) -> tuple[Path, ...]:
    files = (settings.config, *([settings.endpoints_file] if settings.endpoints_file else []))
    return *files, *(settings.artifacts / kind / POINTER for kind in (ROUTER, OVERLAYS, ASSIGNMENT, GATE))


def _look(files: tuple[Path, ...]) -> Look:
    return tuple(_stat(path) for path in files)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _contents(files: tuple[Path, ...]) -> tuple[bytes | None, ...]:
    return tuple(_digest(path) for path in files)


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None
