"""Runs the experts' servers on a Ray cluster for `coe up --engine ray`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from coe.cli.common import say
from coe.errors import ConfigError
from coe.fleet.planning import Shared, shared_by
from coe.fleet.ray.fleet import ClusterFleet
from coe.fleet.ray.server_request import orders
from coe.fleet.specs import LocalExpert
from coe.fleet.validation import mistakes
from coe.registry import Registry
from coe.settings import Endpoint, Settings

Tell = Callable[[Mapping[str, tuple[Endpoint, ...]]], None]


class Spread:
    """A fleet on a cluster, with the experts that it serves: their addresses are told when either changes."""

    def __init__(self, fleet: ClusterFleet, *, running: Mapping[Shared, str], tell: Tell) -> None:
        self.fleet, self.running = fleet, running
        self._tell = tell
        self.experts: Sequence[LocalExpert] = ()
        fleet.changed = self._again

    def tell(self, experts: Sequence[LocalExpert]) -> None:
        """These are served from now on."""
        self.experts = experts
        self._again()

    def _again(self) -> None:
        keys = [self.running[shared_by(expert)] for expert in self.experts]
        self._tell(self.fleet.endpoints(self.experts, keys))


@asynccontextmanager
async def spread(settings: Settings, registry: Registry, *, ray: Any, tell: Tell) -> AsyncIterator[Spread]:
    """All servers run when the block begins, and where they do has been told. Raises ConfigError or FleetError."""
    beside = settings.config.parent
    if registry.residency is not None:
        raise ConfigError("residency is for the devices of one machine; leave it out, or `--engine ray`")
    for index, key, what in mistakes(registry.experts, beside=beside):
        raise ConfigError(f"{settings.config.name}: expert {registry.experts[index].name!r}: {key}: {what}")
    gpus_there = bool(ray.cluster_resources().get("GPU"))
    wanted = list(
        orders(registry.experts, beside=beside, models=settings.models, logs=settings.logs, gpus_there=gpus_there)
    )
    if wanted:
        say(f"starting {len(wanted)} expert server{'s' if len(wanted) > 1 else ''} on the cluster")
    running = {shared_by(order.sharers[0]): order.key for order in wanted}
    async with ClusterFleet(wanted, ray=ray, say=say) as fleet:
        found = Spread(fleet, running=running, tell=tell)
        found.tell([one for one in registry.experts if shared_by(one) in running])
        yield found
