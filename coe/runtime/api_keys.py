"""API keys: generated here, stored as SHA-256 digests, and looked up for every request.

An administrator's key may be generated in a file on the first start, so that a container is never without keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from coe.artifacts.atomic_files import sync
from coe.core import ExpertRule, Scope
from coe.errors import ConfigError, Forbidden, Unauthorized
from coe.registry import ApiKey, Registry
from coe.runtime.issued_keys import date_of
from coe.settings import Settings

MAX_KEY_BYTES = 256
"""Longer keys are not hashed."""
_BEARER = b"bearer "
_KEY_HEADERS = (b"x-api-key", b"api-key")
"""Headers of Anthropic's and Azure's clients."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of the request's API key and its tenant, both None if no keys are declared. `cache` is False for a key
    that does not use the answer cache. `rule` limits the experts of the key's requests, None for all experts."""

    key: str | None = None
    tenant: str | None = None
    cache: bool = True
    rule: ExpertRule | None = None


def new_key() -> str:
    """A key of 256 random bits."""
    return f"coe-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """The SHA-256 of a key's UTF-8 bytes, in hexadecimal, as experts.yaml stores it."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys, found by digest. Without any, every caller may do everything. `clock` returns Unix seconds."""

    def __init__(self, keys: Sequence[ApiKey], *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known = {
            bytes.fromhex(key.sha256): (
                bytes.fromhex(key.sha256),
                key.scopes,
                Caller(key.name, key.tenant or key.name, key.cache, rule_of(key)),
                key.expires,
            )
            for key in keys
        }
        self._default_caller = None if keys else Caller()

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller, whose key must have `scope` (None: any key). Raises Unauthorized or Forbidden."""
        if self._default_caller is not None:
            return self._default_caller
        sent = hashlib.sha256(_sent_key(headers)).digest()
        found = self._known.get(sent)
        if found is None or not hmac.compare_digest(found[0], sent):
            raise Unauthorized("this API key is not known; request one from the operator of this service")
        _, scopes, caller, expires = found
        if expires is not None and expires.timestamp() <= self._clock():
            raise Unauthorized(f"the API key {caller.key!r} expired on {date_of(expires)}; request a new one")
        if scope is not None and scope not in scopes:
            raise Forbidden(f"the API key {caller.key!r} lacks the scope {scope!r}; it has {', '.join(sorted(scopes))}")
        return caller


def rule_of(key: ApiKey) -> ExpertRule | None:
    """The rule that a key declares for its experts, None without one."""
    limited = key.experts is not None or key.only_local
    return ExpertRule(key.name, key.experts, key.only_local) if limited else None


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key of a request. Header names are in lower case, as ASGI passes them."""
    key = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            key = value[7:].strip()
            break
        if name in _KEY_HEADERS:
            key = value
    if not key:
        raise Unauthorized(
            "an API key is needed: send it as 'authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'"
        )
    if len(key) > MAX_KEY_BYTES:
        raise Unauthorized(f"this API key is not known; none is longer than {MAX_KEY_BYTES} bytes")
    return key


ADMIN_KEY_NAME = "admin"
"""The key's name in logs and records."""
MIN_KEY_CHARACTERS = 20
"""Characters of a key that was written by hand."""


def create_admin_key(settings: Settings) -> str | None:
    """Generates the key if COE_ADMIN_KEY_FILE names a missing file, and returns the text to print once; None otherwise.
    Raises ConfigError if it cannot be written."""
    path = settings.admin_key_file
    if path is None or path.exists():
        return None
    key = new_key()
    try:
        created = _write_key(path, key)
    except OSError as error:
        raise ConfigError(f"COE_ADMIN_KEY_FILE={str(path)!r} cannot be written: {error.strerror or error}") from error
    if not created:  # another gateway over the same folder was faster
        return None
    return f"generated an API key with all scopes; it is printed only now, and stored in {path}: {key}"


def with_admin_key(registry: Registry, settings: Settings) -> Registry:
    """Adds the key of COE_ADMIN_KEY_FILE to the declared ones. Raises ConfigError for a file without a key."""
    if settings.admin_key_file is None:
        return registry
    access = registry.access
    digest = digest_of(_read_key(settings.admin_key_file))
    if any(ADMIN_KEY_NAME in (key.name, key.tenant) for key in access.keys):
        raise ConfigError(
            f"access.keys: COE_ADMIN_KEY_FILE adds a key and tenant named {ADMIN_KEY_NAME!r}; rename the declared one"
        )
    added = ApiKey(name=ADMIN_KEY_NAME, sha256=digest, scopes=frozenset(get_args(Scope)))
    return registry.model_copy(update={"access": access.model_copy(update={"keys": (*access.keys, added)})})


def _write_key(path: Path, key: str) -> bool:
    """Writes the file in one step, readable by its owner only. Returns whether it did not exist before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails where the file exists, unlike a move
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigError(f"COE_ADMIN_KEY_FILE={str(path)!r} cannot be read: {reason}") from None
    if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_BYTES or not key.isprintable() or " " in key:
        raise ConfigError(
            f"COE_ADMIN_KEY_FILE={str(path)!r} holds no key of {MIN_KEY_CHARACTERS} to {MAX_KEY_BYTES} characters; "
            "delete the file, and the next start generates one"
        )
    return key
