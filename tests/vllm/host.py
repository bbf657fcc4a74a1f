"""`coe up` with a router that needs no training: `host.py CONFIG PORT [EXECUTOR]`. All else is the real thing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from coe.cli import up
from coe.fleet.specs import ServerSpec
from coe.settings import Settings

real = up._gateway


def gateway(settings: Settings, turns: Path | None) -> ServerSpec:
    spec = real(settings, turns)
    environ = {"COE_CONFIG": str(settings.config), "COE_PORT": str(settings.port)}
    return replace(spec, argv=(sys.executable, "-m", "tests.gateway.words_server"), env={**spec.env, **environ})


async def no_training(*_: object) -> None:
    """The router of words has nothing to learn."""


if __name__ == "__main__":
    up._gateway, up._ensure_router = gateway, no_training
    up.up(port=int(sys.argv[2]), config=Path(sys.argv[1]), executor="ray" if sys.argv[3:] == ["ray"] else "local")
