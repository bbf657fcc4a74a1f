"""Issued API keys: made and revoked while the gateway runs, in addition to those that experts.yaml declares.

`KeyStore` keeps their list where `access.counters` keeps the usage of keys: in a file of the state folder, or in Redis.
`issue` and `revoke` are pure. An `IssuedKeyWatch` holds the keys of one process. Issued keys are in force only next to
a declared key with the scope `admin`, so that a lost or emptied store never opens a gateway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from coe.errors import ConfigError, KeyNotFound, KeyRefused, KeysUnavailable, StoreError
from coe.outage import Outage
from coe.registry import AccessSpec, ApiKey, KeyLimits, KeySpec, Registry
from coe.registry.loader import key_problems
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.shared_store import SharedStore, open_store

T = TypeVar("T")

MAX_ISSUED = 1000
"""Issued keys in use at a time."""
KEYS_FILE = "api-keys.sqlite"
"""Name in the state folder of the file with issued API keys and with the usage of all."""
MAX_CONFLICTS = 10
"""Other changes of the list at the same time, after which a change fails."""
RETRY_AFTER = 1.0
POLL_SECONDS = 0.5
MAX_STALE_SECONDS = 300.0
_NAME = "issued"
_log = logging.getLogger("gateway")


class IssuedKey(ApiKey):
    """An issued key, with the Unix time at which it was made and the name of the key that made it."""

    created: float
    created_by: str


IssuedKeys = tuple[IssuedKey, ...]
"""Issued keys, oldest first."""
MAX_DOCUMENT_BYTES = 3 * 2**20
"""Bytes of the stored list, which every process reads twice a second."""
_KEYS: TypeAdapter[IssuedKeys] = TypeAdapter(IssuedKeys)


def is_over(key: KeySpec, now: float) -> bool:
    """Return whether a key is expired at the Unix time `now`."""
    return key.expires is not None and key.expires.timestamp() <= now


def check_in_use(by: ApiKey, issued: IssuedKeys, now: float) -> None:
    """Raises KeyRefused if `by` was issued and is over in the stored list, which is newer than the caller's."""
    if isinstance(by, IssuedKey) and not any(key.sha256 == by.sha256 and not is_over(key, now) for key in issued):
        raise KeyRefused(f"the key {by.name!r} is not in use any more, so it changes no keys; use another key")


def issue(
    registry: Registry, issued: IssuedKeys, spec: KeySpec, *, sha256: str, by: ApiKey, now: float
) -> tuple[IssuedKey, IssuedKeys]:
    """Return a new key and the list with it, without expired keys. `by` is the key that issues it. Raises KeyRefused
    with the remedy."""
    check_in_use(by, issued, now)
    key = IssuedKey(**spec.model_dump(), sha256=sha256, created=now, created_by=by.name)
    in_use = tuple(one for one in issued if not is_over(one, now))
    known = (*registry.access.keys, *in_use)
    before = set(key_problems(_with_keys(registry, known)))
    if not _has_admin(registry):
        problem = (
            "no declared key has the scope admin, which issued keys need; make one with `coe key NAME --scope admin` "
            "and add its entry to access.keys in experts.yaml"
        )
    elif by.limits != KeyLimits() or by.experts is not None or by.only_local:
        problem = f"the key {by.name!r} is restricted (limits, experts or only_local), so it cannot issue keys"
    elif beyond := sorted(spec.scopes - by.scopes):
        problem = f"the key {by.name!r} lacks the scope {beyond[0]!r}, so it cannot issue a key with it"
    elif by.expires is not None and (spec.expires is None or spec.expires > by.expires):
        problem = f"the key {by.name!r} expires on {date_of(by.expires)}; set `expires` to that or earlier"
    elif any(one.name == key.name for one in known):
        problem = f"the name {key.name!r} is taken by another key; choose another name"
    elif is_over(key, now):
        problem = "expires: is in the past"
    elif len(in_use) >= MAX_ISSUED:
        problem = f"{MAX_ISSUED} issued keys are in use; revoke one first"
    else:
        found = key_problems(_with_keys(registry, (*known, key)))
        problem = next((text for place, text in found if (place, text) not in before), "")
    if problem:
        raise KeyRefused(problem)
    return key, (*in_use, key)


def revoke(registry: Registry, issued: IssuedKeys, name: str) -> tuple[IssuedKey, IssuedKeys]:
    """Return the key of this name and the list without it. Raises KeyRefused for a declared one, and KeyNotFound."""
    for key in issued:
        if key.name == name:
            return key, tuple(one for one in issued if one is not key)
    if any(key.name == name for key in registry.access.keys):
        raise KeyRefused(f"the key {name!r} is declared in experts.yaml or COE_ADMIN_KEY_FILE; remove it there")
    raise KeyNotFound(f"no key {name[:64]!r} was issued", param="name")


def in_force(registry: Registry, issued: IssuedKeys) -> tuple[ApiKey, ...]:
    """Return the issued keys that are accepted besides the declared ones: without a declared name or secret, and
    without the tenant that a declared key has by its name alone, or the other way around.

    An expired key stays among them, so that its error can say so.
    """
    if not _has_admin(registry):
        return ()
    declared = registry.access.keys
    taken = {key.name for key in declared} | {key.sha256 for key in declared}
    tenants, default_tenants = {key.tenant for key in declared}, {key.name for key in declared if key.tenant is None}
    return tuple(
        key
        for key in issued
        if taken.isdisjoint((key.name, key.sha256))
        and (key.name not in tenants if key.tenant is None else key.tenant not in default_tenants)
    )


def access_with(registry: Registry, issued: IssuedKeys) -> AccessSpec:
    """Return the section `access` with the issued keys that are in force."""
    return _with_keys(registry, (*registry.access.keys, *in_force(registry, issued))).access


def check_issued(registry: Registry, issued: Sequence[IssuedKey], *, now: float) -> None:
    """Raise ConfigError for issued keys in use without a declared key that has the scope admin."""
    declared = {key.name for key in registry.access.keys}
    if not _has_admin(registry) and any(not is_over(key, now) and key.name not in declared for key in issued):
        raise ConfigError(
            "access.keys: issued API keys are in use, and no declared key has the scope admin; declare one (`coe key "
            "NAME --scope admin` makes it), which may then revoke the issued ones"
        )


def date_of(moment: datetime) -> str:
    """Return a moment in UTC as text, such as 2027-01-31 12:00 UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _with_keys(registry: Registry, keys: Sequence[ApiKey]) -> Registry:
    return registry.model_copy(update={"access": registry.access.model_copy(update={"keys": tuple(keys)})})


def _has_admin(registry: Registry) -> bool:
    return any("admin" in key.scopes for key in registry.access.keys)


class KeyStore:
    """The stored list of issued keys, as one document. Only digests of keys are stored."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._document = b""
        self._keys: IssuedKeys = ()

    async def read(self) -> IssuedKeys:
        """Return the list; the same one while it does not change. Raises StoreError."""
        document = (await self._store.get([_NAME]))[0] or b""
        if document != self._document:
            try:
                self._keys = _KEYS.validate_json(document or b"[]")
            except ValidationError:
                problem = "the issued API keys are damaged; restore them, or delete them and issue new ones"
                raise StoreError(f"{self._store.place}: {problem}") from None
            self._document = document
        return self._keys

    async def change(self, decide: Callable[[IssuedKeys], tuple[T, IssuedKeys]]) -> tuple[T, IssuedKeys]:
        """Replace the list with the one that `decide` returns, and return its result and the new list. `decide` runs
        again if another process changed the list in the meantime, so two administrators lose nothing. Raises
        KeysUnavailable, and whatever `decide` raises."""
        try:
            for _ in range(MAX_CONFLICTS):
                result, keys = decide(await self.read())
                known, document = self._document, orjson.dumps([key.model_dump(mode="json") for key in keys])
                if len(document) > max(MAX_DOCUMENT_BYTES, len(known)):
                    raise KeyRefused("the issued keys take too much space; shorten their lists of experts")
                try:
                    is_stored = await self._store.replace(_NAME, known, document)
                except StoreError:  # it may be stored, and then the caller must learn so: a new key is shown only once
                    is_stored = await self._store.replace(_NAME, known, document)
                if is_stored:
                    return result, keys
        except StoreError as error:
            raise KeysUnavailable(f"issued API keys cannot be changed now: {error}", retry_after=RETRY_AFTER) from error
        raise KeysUnavailable("other changes of API keys are in progress; try again", retry_after=RETRY_AFTER)

    async def aclose(self) -> None:
        await self._store.aclose()


def open_key_store(counters: str, *, home: Path) -> KeyStore:
    """The store that belongs to `access.counters`. Raises ConfigError for an invalid address."""
    return KeyStore(open_store(counters, "keys", file=home / KEYS_FILE, setting="access.counters"))


class IssuedKeyWatch:
    """The issued keys as one process knows them: read again every POLL_SECONDS, changed through the store.

    A revoked key is refused after at most POLL_SECONDS and one read. A process that cannot read the store keeps the
    keys for MAX_STALE_SECONDS, then refuses all issued keys: one of them may have been revoked in the meantime.
    `on_change` is called after a change. As an async context it reads in the background, and closes the store.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self._store = store
        self._clock = clock
        self._task_failed = task_failed
        self._last_read = clock()
        self._lock = asyncio.Lock()
        self.keys: IssuedKeys = ()
        self.outage = Outage("issued API keys", f"; the known ones are accepted for {MAX_STALE_SECONDS:g} s")
        self.on_change: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._task = supervised(self._run, "issued-keys", task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._store.aclose()

    async def refresh(self) -> None:
        """Read the keys again if they changed. Does not fail."""
        async with self._lock:  # a read that began before a change must not undo it here
            try:
                keys = await self._store.read()
            except StoreError as error:
                self.outage.began(str(error))
                if self.keys and self._clock() - self._last_read > MAX_STALE_SECONDS:
                    _log.error("issued API keys could not be read for %g s, and are refused now", MAX_STALE_SECONDS)
                    self._apply(())
                return
            self.outage.ended()
            self._last_read = self._clock()
            self._apply(keys)

    async def change(self, decide: Callable[[IssuedKeys], tuple[T, IssuedKeys]]) -> T:
        """Change the stored keys. The change applies in this process at once."""
        async with self._lock:
            result, keys = await self._store.change(decide)
            self._apply(keys)
            return result

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.refresh()

    def _apply(self, keys: IssuedKeys) -> None:
        if keys != self.keys:
            self.keys = keys
            self.on_change()
