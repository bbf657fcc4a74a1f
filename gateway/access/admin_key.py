"""An administrator's key in a file, generated on the first start, so that a container is never without keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from coe.artifacts.atomic_files import sync
from coe.core import Scope
from coe.errors import ConfigError
from coe.registry import ApiKey, Registry
from coe.settings import Settings
from gateway.access.keys import MAX_KEY, digest_of, new_key

NAME = "admin"
"""The key's name, in logs and records."""
MIN_KEY = 20
"""Characters of a key that was written by hand."""


def create_admin_key(settings: Settings) -> str | None:
    """Generates the key where COE_ADMIN_KEY_FILE names a file that does not exist, and returns what to print once; None
    where there is nothing to do. Raises ConfigError where it cannot be written."""
    path = settings.admin_key_file
    if path is None or path.exists():
        return None
    key = new_key()
    try:
        created = _write(path, key)
    except OSError as error:
        raise ConfigError(f"COE_ADMIN_KEY_FILE={str(path)!r} cannot be written: {error.strerror or error}") from error
    if not created:  # another gateway over the same folder was faster
        return None
    return f"generated an API key with all scopes; it is printed only now, and kept in {path}: {key}"


def with_admin_key(registry: Registry, settings: Settings) -> Registry:
    """Adds the key of COE_ADMIN_KEY_FILE to the declared ones. Raises ConfigError for a file without a key."""
    if settings.admin_key_file is None:
        return registry
    access = registry.access
    digest = digest_of(_read(settings.admin_key_file))
    if any(key.name == NAME for key in access.keys):
        raise ConfigError(f"access.keys: COE_ADMIN_KEY_FILE adds a key named {NAME!r}; rename the declared one")
    added = ApiKey(name=NAME, sha256=digest, scopes=frozenset(get_args(Scope)))
    return registry.model_copy(update={"access": access.model_copy(update={"keys": (*access.keys, added)})})


def _write(path: Path, key: str) -> bool:
    """Writes the file whole, readable by its owner alone. Whether it was not there yet."""
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


def _read(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigError(f"COE_ADMIN_KEY_FILE={str(path)!r} cannot be read: {reason}") from None
    if not MIN_KEY <= len(key) <= MAX_KEY or not key.isprintable() or " " in key:
        raise ConfigError(
            f"COE_ADMIN_KEY_FILE={str(path)!r} holds no key of {MIN_KEY} to {MAX_KEY} characters; delete the file, and "
            "the next start generates one"
        )
    return key
