"""Keeps the LoRA adapters of running servers as declared: a changed declaration loads and unloads, no restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from coe.errors import CoEError, ConfigError, FleetError
from coe.fleet.planning import Shared, adapters_of, shared_by
from coe.fleet.specs import LocalExpert
from coe.fleet.validation import mistakes

POLL = 0.5
"""Seconds between two looks at the declaration."""
RETRY = 5.0
"""Seconds after which what could not be loaded is tried again: its server may just be starting."""
FAREWELL = 3.0
"""Seconds between telling that an expert is gone and unloading it; gateways look twice a second."""

Look = tuple[int, int, int] | None


class Servers(Protocol):
    """A fleet whose servers, by key, take LoRA adapters while they run; all raise FleetError."""

    async def load(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """Serve these folders too, by name; the names that were new."""
        ...

    def superfluous(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """The adapters that are served beyond these."""
        ...

    async def unload(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """Serve no others than these any longer; the names that went."""
        ...


class AdapterSync:
    """`read` gives the declared experts or raises ConfigError, `tell` gets those that are served whenever that
    changes, `say` a line for each event. Experts whose server does not run are left to the next start."""

    def __init__(
        self,
        fleet: Servers,
        *,
        config: Path,
        read: Callable[[], Sequence[LocalExpert]],
        tell: Callable[[Sequence[LocalExpert]], None],
        say: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._read = read
        self._tell = tell
        self._say = say
        self._said = ""

    async def watch(self, running: Mapping[Shared, str], serving: Sequence[LocalExpert]) -> None:
        """Until cancelled. `running` are the keys of the servers by what the experts on each have in common, `serving`
        those that have been told."""
        followed, now = None, _served(serving, running)
        while True:
            await asyncio.sleep(POLL)
            look = _look(self._config)
            if look == followed:
                continue
            try:
                now = await self._follow(self._read(), running, now)
            except ConfigError:
                pass  # the gateway, which reads it too, says what is wrong
            except CoEError as error:
                self._say_once(f"{error}\nthe rest goes on as it was; this is tried again every {RETRY:g} s")
                await asyncio.sleep(RETRY)
                continue
            followed = look

    async def _follow(
        self, experts: Sequence[LocalExpert], running: Mapping[Shared, str], now: Mapping[str, str]
    ) -> dict[str, str]:
        """Load, tell, unload, in this order, so that no gateway asks for what is not there."""
        beside = self._config.parent
        wrong = [f"expert {experts[at].name!r}: {what}" for at, _, what in mistakes(experts, beside=beside)]
        if wrong:
            raise FleetError(wrong[0])
        served = [expert for expert in experts if shared_by(expert) in running]
        wanted = {
            key: adapters_of([expert for expert in served if shared_by(expert) == shared], beside=beside)
            for shared, key in running.items()
        }
        for key, adapters in wanted.items():
            for name in await self._fleet.load(key, adapters):
                self._say(f"server {key!r} has loaded the adapter {name!r}")
        there = _served(served, running)
        if there != now:
            self._tell(served)
        if any(self._fleet.superfluous(key, adapters) for key, adapters in wanted.items()):
            await asyncio.sleep(FAREWELL)
            for key, adapters in wanted.items():
                for name in await self._fleet.unload(key, adapters):
                    self._say(f"server {key!r} has unloaded the adapter {name!r}")
        self._said = ""
        return there

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self._say(line)
        self._said = line


def _served(experts: Sequence[LocalExpert], running: Mapping[Shared, str]) -> dict[str, str]:
    """By expert, all that its address depends on: its server, and whether it is a model of its own there."""
    return {one.name: f"{running[shared_by(one)]} {bool(one.adapter)}" for one in experts if shared_by(one) in running}


def _look(path: Path) -> Look:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
