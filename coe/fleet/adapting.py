"""Keeps the LoRA adapters of running servers as declared: a changed declaration loads and unloads, no restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coe.errors import CoEError, ConfigError, FleetError
from coe.fleet.fleet import Fleet
from coe.fleet.mistakes import mistakes
from coe.fleet.planning import Shared, adapters_of, endpoint_of, shared_by
from coe.fleet.specs import LocalExpert, ServerSpec
from coe.settings import Endpoint

POLL = 0.5
"""Seconds between two looks at the declaration."""
RETRY = 5.0
"""Seconds after which what could not be loaded is tried again: its server may just be starting."""
FAREWELL = 3.0
"""Seconds between telling that an expert is gone and unloading it; gateways look twice a second."""

Look = tuple[int, int, int] | None


class Adapting:
    """`read` gives the declared experts or raises ConfigError, `tell` gets where each one is served whenever that
    changes, `say` a line for each event. Experts whose server does not run are left to the next start."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        config: Path,
        read: Callable[[], Sequence[LocalExpert]],
        tell: Callable[[Mapping[str, Endpoint]], None],
        say: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._read = read
        self._tell = tell
        self._say = say
        self._said = ""

    async def watch(self, running: Mapping[Shared, ServerSpec], endpoints: Mapping[str, Endpoint]) -> None:
        """Until cancelled. `running` are the servers by what the experts on each have in common."""
        followed, now = None, dict(endpoints)
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
        self, experts: Sequence[LocalExpert], running: Mapping[Shared, ServerSpec], now: dict[str, Endpoint]
    ) -> dict[str, Endpoint]:
        """Load, tell, unload, in this order, so that no gateway asks for what is not there."""
        beside = self._config.parent
        wrong = [f"expert {experts[at].name!r}: {what}" for at, _, what in mistakes(experts, beside=beside)]
        if wrong:
            raise FleetError(wrong[0])
        served = [expert for expert in experts if shared_by(expert) in running]
        wanted = {
            spec.key: adapters_of([expert for expert in served if shared_by(expert) == shared], beside=beside)
            for shared, spec in running.items()
        }
        for key, adapters in wanted.items():
            for name in await self._fleet.load(key, adapters):
                self._say(f"server {key!r} has loaded the adapter {name!r}")
        there = {expert.name: endpoint_of(expert, running[shared_by(expert)]) for expert in served}
        if there != now:
            self._tell(there)
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


def running_servers(
    experts: Sequence[LocalExpert], specs: Sequence[ServerSpec], endpoints: Mapping[str, Endpoint]
) -> dict[Shared, ServerSpec]:
    """The servers that were started for these experts, by what the experts on each have in common."""
    by_address = {f"{spec.root}/v1": spec for spec in specs}
    return {
        shared_by(expert): by_address[endpoints[expert.name].base_url] for expert in experts if expert.name in endpoints
    }


def _look(path: Path) -> Look:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
