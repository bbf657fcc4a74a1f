"""Two keys of one gateway: alice, and mallory, which sends more than its share."""

from __future__ import annotations

import orjson

from coe.registry import Registry
from tests.access.samples import key_of
from tests.fakes import registry_of

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
BODY = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
KEYS = [key_of(name).model_dump(mode="json") for name in ("alice", "mallory")]


def keyed(**limits: int) -> Registry:
    return registry_of(access={"keys": KEYS}, limits=limits)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}
