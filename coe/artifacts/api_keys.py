"""API keys: generated here, and stored as SHA-256 digests. `gateway.access` finds the key of each request.

An administrator's key may be generated in a file on the first start, so that a container is never without keys.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import get_args

from coe.artifacts.manifest import sync
from coe.core import ExpertRule, Scope
from coe.errors import ConfigError
from coe.registry import ApiKey, Registry
from coe.settings import Settings

MAX_KEY_BYTES = 256
"""Longer keys are not hashed."""


def new_key() -> str:
    """A key of 256 random bits."""
    return f"coe-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """The SHA-256 of a key's UTF-8 bytes, in hexadecimal, as experts.yaml stores it."""
    return hashlib.sha256(key.encode()).hexdigest()


def rule_of(key: ApiKey) -> ExpertRule | None:
    """The rule that a key declares for its experts, None without one."""
    limited = key.experts is not None or key.only_local
    return ExpertRule(key.name, key.experts, key.only_local) if limited else None


ADMIN_KEY_NAME = "admin"
"""The key's name in logs and records."""
MIN_KEY_CHARACTERS = 20
"""Fewest characters of a key that was written by hand."""


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
    """Adds the key of COE_ADMIN_KEY_FILE to the declared ones. Raises ConfigError for a file without a key, and
    if its name is taken."""
    if settings.admin_key_file is None:
        return registry
    digest, access = digest_of(_read_key(settings.admin_key_file)), registry.access
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
