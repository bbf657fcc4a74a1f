"""Runs the real gateway on a real port for real clients: arguments PORT UPSTREAM FOLDER.

`native` speaks every API, `chatty` chat alone, `claude` is Anthropic's API through litellm; all at the same upstream.
Each has twins for requests that shall fail, such as `native-429`: an expert that failed is left alone for a while.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from starlette.applications import Starlette

from coe.artifacts.active_state import ActiveState
from coe.planning.problem import declared_assignment
from coe.registry import Registry
from coe.settings import Settings
from gateway.app import create_app
from gateway.main import open_services
from gateway.process.processes import serve_application
from gateway.server import open_listener
from gateway.services import Services
from tests.fakes import WordRouter, registry_of

KEY = "sk-test-of-the-clients"
KINDS = ("native", "chatty", "claude")
FAULTS = (400, 401, 429, 500)


def registry(upstream: str) -> Registry:
    apis = ["chat", "completions", "responses", "messages", "embeddings"]
    external = {"runtime": "external", "base_url": upstream}
    kinds = {
        "native": {**external, "model": "/models/n", "apis": apis},
        "chatty": {**external, "model": "/models/c"},
        "claude": {
            "runtime": "litellm",
            "model": "anthropic/claude-x",
            "base_url": upstream.removesuffix("/v1"),
            "api_key": "sk-of-the-provider",
        },
    }
    twins = {
        f"{kind}-{fault}": declared | {"apis": ["chat", *(["messages"] if kind == "native" else [])]}
        for kind, declared in kinds.items()
        for fault in FAULTS
    }
    able = {"capabilities": ["tools", "json_schema", "images", "audio"]}
    return registry_of(
        experts=[{"name": name, **declared, **able} for name, declared in (kinds | twins).items()],
        assignment={"general": "native"},
        policy={"max_attempts": 1},
        aliases={"gpt-5*": "auto", "claude-opus-*": "coe/best", "my-claude": "claude"},
        operating_points={"best": {"cost_weight": 0}},
        access={"keys": [{"name": "tests", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]},
    )


def build(upstream: str, folder: Path) -> Starlette:
    declared, router = registry(upstream), WordRouter()
    settings = Settings.read({"COE_HOME": str(folder)}, config=folder / "experts.yaml")
    in_use = ActiveState(declared, router, declared_assignment(declared, router.categories), 0.0, folder)

    @asynccontextmanager
    async def parts() -> AsyncIterator[Services]:
        async with open_services(settings, read=lambda *_: in_use) as opened:
            yield opened

    return create_app(parts)


if __name__ == "__main__":
    port, upstream, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    listener = open_listener("127.0.0.1", port, stalled_after=60)
    uvloop.run(serve_application(build(upstream, folder), listener))
