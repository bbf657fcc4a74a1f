"""`/v1/keys`: API keys listed, issued and revoked.

Keys of experts.yaml are listed and cannot be changed here. An issued key is shown once; only its digest is stored.
Every change is logged with the key that made it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.api_keys import digest_of, new_key
from coe.errors import KeyRefused
from coe.registry import ApiKey, KeySpec
from gateway.access.issued_keys import IssuedKey, IssuedKeys, check_in_use, is_over, issue, revoke
from gateway.endpoints.handler import NO_STORE, caller_of, json_of, json_response, list_response
from gateway.services import Services

MAX_BODY_BYTES = 16 * 1024
_log = logging.getLogger("gateway")

_HISTORY = ("created", "created_by")


async def list_keys(services: Services, _: Request) -> Response:
    """API keys without the keys themselves, declared ones first."""
    await services.issued.refresh()  # includes what another worker has just changed
    snapshot, issued = services.snapshot, services.issued.keys
    accepted, now = {key.sha256 for key in snapshot.access.keys}, time.time()
    keys = (*snapshot.registry.access.keys, *reversed(issued))
    return list_response([_shown(key) | {"in_use": key.sha256 in accepted and not is_over(key, now)} for key in keys])


async def issue_key(services: Services, request: Request) -> Response:
    """Issue an API key, whose rights are at most those of the key that issues it."""
    watch = services.issued
    spec = await json_of(request, KeySpec, limit=MAX_BODY_BYTES)
    registry, creator, secret = services.snapshot.registry, _caller(services, request), new_key()

    def decide(issued: IssuedKeys) -> tuple[IssuedKey, IssuedKeys]:
        sha256, now = digest_of(secret), time.time()
        return issue(registry, issued, spec, sha256=sha256, by=creator, now=now)

    async def change() -> IssuedKey:
        key = await watch.change(decide)
        rights = key.model_dump(mode="json", exclude_defaults=True, exclude={"sha256", "name", *_HISTORY})
        written = ", ".join(f"{name}={value}" for name, value in sorted(rights.items()))
        _log.warning("API key %s issued by %s: %s", key.name, key.created_by, written)
        return key

    key = await asyncio.shield(change())  # finishes also if the client has left, so that every issued key is logged
    return json_response({"object": "key.new", "secret": secret, "key": _shown(key)}, headers=NO_STORE)


async def revoke_key(services: Services, request: Request) -> Response:
    """Revoke an issued API key."""
    watch, registry, name = services.issued, services.snapshot.registry, request.path_params["name"]
    creator = _caller(services, request)

    def decide(issued: IssuedKeys) -> tuple[IssuedKey, IssuedKeys]:
        check_in_use(creator, issued, time.time())
        return revoke(registry, issued, name)

    key = await asyncio.shield(watch.change(decide))
    _log.warning("API key %s revoked by %s", key.name, creator.name)
    return json_response(_shown(key))


def _caller(services: Services, request: Request) -> ApiKey:
    """The key that sent the request. Raises KeyRefused where no keys are declared."""
    name = caller_of(request).key
    for key in services.snapshot.access.keys:
        if key.name == name:
            return key
    raise KeyRefused(
        "no key is declared, and issued keys need one with the scope admin; make it with `coe key NAME --scope admin` "
        "and add its entry to access.keys in experts.yaml"
    )


def _shown(key: ApiKey) -> dict[str, Any]:
    """A key without its digest."""
    plain = key.model_dump(mode="json", exclude={"sha256"})
    history = {name: plain.get(name) for name in _HISTORY}
    declared = not isinstance(key, IssuedKey)
    more = {"tenant": key.tenant or key.name, "scopes": sorted(key.scopes), "declared": declared}
    return {"object": "key", **plain, **more, "in_use": not is_over(key, time.time()), **history}
