"""Issued API keys: made and revoked while the gateway runs, in addition to those that experts.yaml declares.

All functions are pure: they return the new list of issued keys, or raise KeyRefused or KeyNotFound with the remedy.
`key_store` stores the list. Issued keys are in force only next to a declared key with the scope `admin`, so that a lost
or emptied store never opens a gateway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from coe.core import Scope
from coe.errors import ConfigError, KeyNotFound, KeyRefused
from coe.registry import AccessSpec, ApiKey, KeyLimits, KeySpec, Registry
from coe.registry.access import key_problems

MAX_ISSUED = 1000
"""Issued keys that are stored, with the revoked and expired ones, which make room for new ones."""
ADMIN: Scope = "admin"


class IssuedKey(ApiKey):
    """An issued key with its history. Times are Unix seconds; `revoked` is None for a key in use."""

    created: float
    created_by: str
    revoked: float | None = None
    revoked_by: str | None = None


IssuedKeys = tuple[IssuedKey, ...]
"""Issued keys, oldest first."""


def is_over(key: KeySpec, now: float) -> bool:
    """Return whether a key is revoked or expired at the Unix time `now`."""
    revoked = isinstance(key, IssuedKey) and key.revoked is not None
    return revoked or (key.expires is not None and key.expires.timestamp() <= now)


def issue(
    registry: Registry, issued: IssuedKeys, spec: KeySpec, *, sha256: str, by: ApiKey, now: float
) -> tuple[IssuedKey, IssuedKeys]:
    """Return a new key and the list with it. `by` is the key that issues it."""
    check_in_use(by, issued, now=now)
    if not _has_admin(registry):
        raise KeyRefused(
            "no declared key has the scope admin, which issued keys need; make one with `coe key NAME --scope admin` "
            "and add its entry to access.keys in experts.yaml"
        )
    key = IssuedKey(**spec.model_dump(), sha256=sha256, created=now, created_by=by.name)
    problem = rights_problem(by, spec) or _new_problem(registry, issued, key, now)
    if problem:
        raise KeyRefused(problem)
    return key, (*_with_room(issued, now), key)


def check_in_use(by: ApiKey, issued: IssuedKeys, *, now: float) -> None:
    """Raise KeyRefused if `by` was issued and is over in the stored list, which is newer than the caller's."""
    if isinstance(by, IssuedKey) and not any(key.sha256 == by.sha256 and not is_over(key, now) for key in issued):
        raise KeyRefused(f"the key {by.name!r} is not in use any more, so it changes no keys; use another key")


def revoke(
    registry: Registry, issued: IssuedKeys, name: str, *, by_name: str, now: float
) -> tuple[IssuedKey, IssuedKeys]:
    """Return the revoked key and the list with it. A key that is revoked already stays as it is."""
    found = next((key for key in issued if key.name == name), None)
    if found is None:
        if any(key.name == name for key in registry.access.keys):
            raise KeyRefused(f"the key {name!r} is declared in experts.yaml or COE_ADMIN_KEY_FILE; remove it there")
        raise KeyNotFound(f"no key {name[:64]!r} was issued", param="name")
    if found.revoked is not None:
        return found, issued
    revoked = found.model_copy(update={"revoked": now, "revoked_by": by_name})
    return revoked, tuple(revoked if key is found else key for key in issued)


def rights_problem(creator: ApiKey, new: KeySpec) -> str:
    """Return why `creator` may not issue a key, empty if it may. No key issues one with more rights than its own."""
    if creator.limits != KeyLimits() or creator.experts is not None or creator.only_local:
        return f"the key {creator.name!r} is restricted (limits, experts or only_local), so it cannot issue keys"
    if beyond := sorted(new.scopes - creator.scopes):
        return f"the key {creator.name!r} lacks the scope {beyond[0]!r}, so it cannot issue a key with it"
    if creator.expires is not None and (new.expires is None or new.expires > creator.expires):
        return f"the key {creator.name!r} expires on {date_of(creator.expires)}; set `expires` to that or earlier"
    return ""


def _new_problem(registry: Registry, issued: IssuedKeys, key: IssuedKey, now: float) -> str:
    """Return why a new key conflicts with the known ones or with the experts; empty if it does not."""
    known = (*registry.access.keys, *issued)
    if any(one.name == key.name for one in known):
        return f"the name {key.name!r} is taken by another key, perhaps a revoked one; choose another name"
    tenants = known if key.tenant is None else [one for one in known if not is_over(one, now)]
    if _sharing(tenants, (key,)):
        shared = _SHARED.format(key.tenant or key.name)
        return f"the key {key.name!r} cannot be issued: {shared}; choose another tenant, or declare the tenant of both"
    if is_over(key, now):
        return "expires: is in the past"
    if sum(not is_over(one, now) for one in issued) >= MAX_ISSUED:
        return f"{MAX_ISSUED} issued keys are in use; revoke one first"
    access = registry.access.model_copy(update={"keys": (key,)})
    found = key_problems(registry.model_copy(update={"access": access}))
    return next((problem for _, problem in found), "")


_SHARED = (
    "it would share the tenant {!r} with another key, and one of the two has it only because a key's name is its "
    "default tenant"
)


def _sharing(known: Iterable[KeySpec], issued: Iterable[IssuedKey]) -> list[IssuedKey]:
    """Return the issued keys that would have the tenant of a known key of another name, by default on either side."""
    known = tuple(known)
    defaults = {key.name for key in known if key.tenant is None}
    declared = {key.tenant for key in known if key.tenant is not None}
    return [key for key in issued if (key.name in declared if key.tenant is None else key.tenant in defaults)]


def _with_room(issued: IssuedKeys, now: float) -> IssuedKeys:
    """Return the list with room for one more: the oldest revoked or expired keys are forgotten."""
    over = [key.name for key in issued if is_over(key, now)]
    forgotten = set(over[: max(0, len(issued) + 1 - MAX_ISSUED)])
    return tuple(key for key in issued if key.name not in forgotten)


def in_force(registry: Registry, issued: IssuedKeys) -> tuple[ApiKey, ...]:
    """Return the issued keys that are accepted besides the declared ones: not revoked, without a declared name, and
    without the tenant that a declared key has by default or the other way around.

    An expired key stays among them, so that its error can say so.
    """
    if not _has_admin(registry):
        return ()
    names = {key.name for key in registry.access.keys} | {key.sha256 for key in registry.access.keys}
    names |= {key.name for key in _sharing(registry.access.keys, issued)}
    return tuple(key for key in issued if key.revoked is None and key.name not in names and key.sha256 not in names)


def access_with(registry: Registry, issued: IssuedKeys) -> AccessSpec:
    """Return the section `access` with the issued keys that are in force."""
    return registry.access.model_copy(update={"keys": (*registry.access.keys, *in_force(registry, issued))})


def conflicts(registry: Registry, issued: Sequence[IssuedKey], *, now: float) -> list[str]:
    """Return why issued keys in use are not accepted next to the declared ones, with the remedy."""
    declared = {key.name: key.sha256 for key in registry.access.keys}
    used = [key for key in issued if not is_over(key, now) and key.sha256 not in declared.values()]
    reasons = {key.name: "a declared key has its name" for key in used if key.name in declared}
    for key in _sharing(registry.access.keys, used):
        reasons.setdefault(key.name, _SHARED.format(key.tenant or key.name))
    return [
        f"the issued key {name!r} is not accepted: {reason}; revoke it, or change the declared key"
        for name, reason in reasons.items()
    ]


def check_issued(registry: Registry, issued: Sequence[IssuedKey], *, now: float) -> None:
    """Raise ConfigError for issued keys in use without a declared key that has the scope admin."""
    declared = {key.name for key in registry.access.keys}
    used = [key for key in issued if not is_over(key, now) and key.name not in declared]
    if used and not _has_admin(registry):
        raise ConfigError(
            "access.keys: issued API keys are in use, and no declared key has the scope admin; declare one (`coe key "
            "NAME --scope admin` makes it), which may then revoke the issued ones"
        )


def date_of(moment: datetime) -> str:
    """Return a moment in UTC as text, such as 2027-01-31 12:00 UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _has_admin(registry: Registry) -> bool:
    return any(ADMIN in key.scopes for key in registry.access.keys)
