"""Runs the experts' servers in turns for `coe up`, and leaves word of where gateways and `coe status` may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from coe.cli.common import say
from coe.core import GENERAL
from coe.fleet import ServerSpec
from coe.fleet.residency.devices import floors
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.socket_server import desk
from coe.registry import Registry
from coe.settings import Settings


@asynccontextmanager
async def in_turns(settings: Settings, registry: Registry, servers: Sequence[ServerSpec]) -> AsyncIterator[Path]:
    """The socket at which the running Residency is asked. Raises FleetError where the first experts do not start."""
    assert registry.residency is not None
    assignment = {GENERAL: registry.general_expert} | registry.assignment
    residency = Residency(
        floors(registry, servers), assignment=assignment, max_wait=registry.residency.max_wait, say=say
    )
    with TemporaryDirectory(prefix="coe-") as folder:  # short, as the paths of sockets must be
        address = Path(folder) / "turns.sock"
        async with residency, desk(residency, address):
            _link(settings.turns_link, address)
            yield address


def _link(link: Path, address: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(address)
