"""Runs the gateway over a scripted expert on a real port, for callers with an API key: arguments PORT KEY."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from coe.artifacts.active_state import DocumentIndex
from coe.core import PASS_THROUGH_APIS
from coe.registry import Registry
from coe.reports.spend import Spend
from coe.reports.value import value_of
from coe.retrieval.indexing import encoder_id
from coe.retrieval.store import DocumentStore
from gateway.process.processes import serve_application
from gateway.server import open_listener
from tests.admin.samples import ScriptedJobs
from tests.fakes import Gateway, gateway_of, registry_of
from tests.records.samples import record
from tests.retrieval.samples import WordEncoder

APIS = ["chat", "completions", "responses", "messages", "embeddings", *sorted(PASS_THROUGH_APIS)]
SCOPES = ["chat", "route", "feedback", "admin"]


def declared(key: str) -> Registry:
    """One expert that takes everything."""
    expert = {"name": "all", "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "apis": APIS}
    expert["capabilities"] = ["tools", "json_schema", "images", "audio"]
    keys = [{"name": "admin", "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": SCOPES}]
    return registry_of(experts=[expert], assignment={"general": "all"}, access={"keys": keys})


class Served(Starlette):
    """The started gateway as an application of its own."""

    def __init__(self, key: str) -> None:
        super().__init__(lifespan=self._lifespan)
        self._registry = declared(key)
        self._gateway: Gateway

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        with TemporaryDirectory() as folder:
            store = DocumentStore(Path(folder), encoder_id(encoder := WordEncoder()))
            spend = Spend(self._registry)
            spend.add(record(expert="all", cost=0.5))
            spent = spend.report()
            value = value_of(spent, None, self._registry, against=None)
            others = {"traffic": {}, "value": value, "drift": {}, "alarms": [], "learning": {}}
            jobs = ScriptedJobs({"days": 7, "spend": spent} | others)
            async with gateway_of(self._registry, index=DocumentIndex(store, encoder), jobs=jobs) as self._gateway:
                self.state.services = self._gateway.services
                yield
            await store.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gateway.app(scope, receive, send)


if __name__ == "__main__":
    port, key = int(sys.argv[1]), sys.argv[2]
    listener = open_listener("127.0.0.1", port, stalled_after=60)
    uvloop.run(serve_application(Served(key), listener))
