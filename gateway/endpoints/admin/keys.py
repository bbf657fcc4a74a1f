"""`/v1/keys`: API keys listed, issued and revoked.

Keys of experts.yaml are listed and cannot be changed here. An issued key is shown once; only its digest is stored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.errors import ConfigError, KeyRefused, NotInstalled
from coe.registry import ApiKey, KeySpec, yaml_source
from coe.runtime.api_keys import ADMIN_KEY_NAME, digest_of, new_key
from coe.runtime.issued_keys import IssuedKey, IssuedKeys, check_in_use, is_over, issue, revoke
from coe.settings import Settings
from gateway.access import IssuedKeyWatch
from gateway.endpoints.operation import (
    BOOLEAN,
    OBJECT,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    json_response,
    list_schema,
    object_schema,
    operation,
)
from gateway.parts import Parts
from gateway.request.body import read_body, validated
from gateway.serving_state import Serving

MAX_BODY_BYTES = 16 * 1024
_log = logging.getLogger("gateway")

_NUMBER_OR_NULL = {"type": ["number", "null"]}
_KEY = object_schema(
    {
        "object": {"const": "key"},
        "name": TEXT,
        "tenant": TEXT,
        "scopes": TEXTS,
        "experts": {"type": ["array", "null"], "items": TEXT},
        "only_local": BOOLEAN,
        "cache": BOOLEAN,
        "limits": OBJECT,
        "expires": TEXT_OR_NULL,
        "declared": BOOLEAN | {"description": "Declared in experts.yaml, so that it cannot be changed here."},
        "in_use": BOOLEAN
        | {"description": "False for a revoked or expired key, and for an issued one that a declared key excludes."},
        "created": _NUMBER_OR_NULL,
        "created_by": TEXT_OR_NULL,
        "revoked": _NUMBER_OR_NULL,
        "revoked_by": TEXT_OR_NULL,
    }
)
_NEW = object_schema({"object": {"const": "key.new"}, "secret": TEXT, "key": _KEY})
_PROBLEMS = {
    409: "The key would have more rights than the one that issues it, its name is taken, or it is declared in "
    "experts.yaml.",
    503: "The store of issued keys cannot be read or written.",
}
_HISTORY = ("created", "created_by", "revoked", "revoked_by")


class Keys:
    """The endpoints of API keys. They log every change with the key that made it."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._settings, self._issued = parts.current, parts.settings, parts.issued

    @operation("GET /v1/keys", "listKeys", "The keys, declared ones first.", list_schema(_KEY))
    async def list(self, _: Request) -> Response:
        """List API keys, without the keys themselves."""
        if self._issued is not None:
            await self._issued.refresh()  # includes what another worker has just changed
        serving, issued = self._current.serving, () if self._issued is None else self._issued.keys
        accepted = {key.sha256 for key in serving.access.keys}
        data = [
            _shown(key, accepted=key.sha256 in accepted) for key in (*serving.registry.access.keys, *reversed(issued))
        ]
        return json_response({"object": "list", "data": data})

    @operation("POST /v1/keys", "issueKey", "The key, shown only now.", _NEW, body=KeySpec, problems=_PROBLEMS)
    async def issue(self, request: Request) -> Response:
        """Issue an API key, whose rights are at most those of the key that issues it."""
        watch = self._watch()
        spec = validated(KeySpec, await read_body(request, limit=MAX_BODY_BYTES))
        serving = self._current.serving
        creator = _caller(serving, request)
        secret = new_key()

        def decide(issued: IssuedKeys) -> tuple[IssuedKey, IssuedKeys]:
            return issue(
                serving.registry,
                issued,
                spec,
                sha256=digest_of(secret),
                by=creator,
                by_name=creator.name,
                now=time.time(),
            )

        async def change() -> IssuedKey:
            key = await watch.change(decide)
            _log.warning("API key %s issued by %s: %s", key.name, key.created_by, _rights(key))
            return key

        key = await asyncio.shield(change())  # finishes also if the client has left, so that every issued key is logged
        response = json_response({"object": "key.new", "secret": secret, "key": _shown(key)})
        response.headers["cache-control"] = "no-store"
        return response

    @operation(
        "DELETE /v1/keys/{name}",
        "revokeKey",
        "The revoked key.",
        _KEY,
        problems=_PROBLEMS | {404: "No such key was issued."},
    )
    async def revoke(self, request: Request) -> Response:
        """Revoke an issued API key."""
        watch = self._watch()
        name = request.path_params["name"]
        serving = self._current.serving
        is_issued = any(key.name == name for key in watch.keys)
        if not is_issued and any(key.name == name for key in serving.registry.access.keys):
            raise KeyRefused(await asyncio.to_thread(_declared_problem, self._settings, name))
        creator = _caller(serving, request)

        def decide(issued: IssuedKeys) -> tuple[IssuedKey, IssuedKeys]:
            check_in_use(creator, issued, now=time.time())
            return revoke(serving.registry, issued, name, by_name=creator.name, now=time.time())

        key = await asyncio.shield(watch.change(decide))
        _log.warning("API key %s revoked by %s", key.name, creator.name)
        return json_response(_shown(key))

    def _watch(self) -> IssuedKeyWatch:
        if self._issued is None:
            raise NotInstalled("this gateway has no store of issued keys")
        return self._issued


def _caller(serving: Serving, request: Request) -> ApiKey:
    """The key that sent the request. Raises KeyRefused where no keys are declared."""
    name = serving.access.identify(request.scope["headers"], "admin").key
    for key in serving.access.keys:
        if key.name == name:
            return key
    raise KeyRefused(
        "no key is declared, and issued keys need one with the scope admin; make it with `coe key NAME --scope admin` "
        "and add its entry to access.keys in experts.yaml"
    )


def _declared_problem(settings: Settings, name: str) -> str:
    """Return the message that names the place of a declared key; reads experts.yaml."""
    if name == ADMIN_KEY_NAME and settings.admin_key_file is not None:
        return f"the key {name!r} is the one in {settings.admin_key_file} (COE_ADMIN_KEY_FILE); change that file"
    where = settings.config.name
    try:
        source = yaml_source.read(settings.config)
        names = [key.get("name") for key in source.value["access"]["keys"]]
        where = source.at(("access", "keys", names.index(name)))
    except (ConfigError, LookupError, TypeError, AttributeError, ValueError):
        pass  # the file has changed since; it is named all the same
    return f"the key {name!r} is declared at {where}; remove it there"


def _shown(key: ApiKey, *, accepted: bool = True) -> dict[str, Any]:
    """A key without its digest. An issued key is not `accepted` while a declared one excludes it."""
    plain = key.model_dump(mode="json", exclude={"sha256"})
    history = {name: plain.get(name) for name in _HISTORY}
    declared = not isinstance(key, IssuedKey)
    more = {"tenant": key.tenant or key.name, "scopes": sorted(key.scopes), "declared": declared}
    return {"object": "key", **plain, **more, "in_use": accepted and not is_over(key, time.time()), **history}


def _rights(key: ApiKey) -> str:
    """The rights of a key, for the log."""
    plain = key.model_dump(mode="json", exclude_defaults=True, exclude={"sha256", "name", *_HISTORY})
    return ", ".join(f"{name}={value}" for name, value in sorted(plain.items()))
