"""Runs the real gateway on a real port with a router that needs no training: arguments PORT UPSTREAM FOLDER LOG."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from granian.constants import Interfaces, Loops
from granian.server import Server
from starlette.applications import Starlette

from coe.composition import declared_assignment
from coe.settings import Settings
from gateway.app import Parts, create_app
from gateway.in_use import InUse
from gateway.main import open_parts
from tests.fakes import WordRouter, registry_of

MODELS = ("good", "silent", "stalls", "torn", "status:500", "text:noise", "truncated")


def build(upstream: str, folder: Path, log: str) -> Starlette:
    """One expert per fault, each named by it; the clients pin them."""
    names = [model.replace(":", "-") for model in MODELS]
    experts = [
        {"name": name, "model": model, "runtime": "external", "base_url": upstream}
        for name, model in zip(names, MODELS, strict=True)
    ]
    registry = registry_of(experts=experts, assignment={"general": "good"}, policy={"attempts": 1}, log={"url": log})
    settings = Settings.read({"COE_HOME": str(folder)}, config=folder / "experts.yaml")

    @asynccontextmanager
    async def parts() -> AsyncIterator[Parts]:
        router = WordRouter()
        in_use = InUse(registry, router, declared_assignment(registry, router.categories), 0.0, folder)
        async with open_parts(settings, in_use) as opened:
            yield opened

    return create_app(parts)


if __name__ == "__main__":
    port, upstream, folder, log = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    server = Server(
        "words", port=port, interface=Interfaces.ASGI, loop=Loops.uvloop, websockets=False, log_enabled=False
    )
    server.serve(target_loader=partial(build, upstream, folder, log), wrap_loader=False)
