"""API keys: made here, kept as SHA-256 digests, looked up for every request."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coe.core import Scope
from coe.errors import Forbidden, Unauthorized
from coe.registry import ApiKey

MAX_KEY = 256
"""Bytes of a key; longer ones are not hashed."""
_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is: the name of the API key and its tenant, both None where no keys are declared."""

    key: str | None = None
    tenant: str | None = None


def new_key() -> str:
    """A key of 256 random bits."""
    return f"coe-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """What experts.yaml keeps of a key: the SHA-256 of its UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The declared keys, found by digest. Without any, everybody may do everything."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._known = {
            bytes.fromhex(key.sha256): (bytes.fromhex(key.sha256), key.scopes, Caller(key.name, key.tenant or key.name))
            for key in keys
        }
        self._anybody = None if keys else Caller()

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller whose key may do `scope` (None: any key may). Raises Unauthorized or Forbidden."""
        if self._anybody is not None:
            return self._anybody
        sent = hashlib.sha256(_sent(headers)).digest()
        found = self._known.get(sent)
        if found is None or not hmac.compare_digest(found[0], sent):
            raise Unauthorized("this API key is not known; ask whoever runs this service for one")
        _, scopes, caller = found
        if scope is not None and scope not in scopes:
            raise Forbidden(f"the API key {caller.key!r} lacks the scope {scope!r}; it has {', '.join(sorted(scopes))}")
        return caller


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key a request came with. Names of headers are in lower case, as ASGI has them."""
    key = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            key = value[7:].strip()
            break
        if name == b"x-api-key":  # as Anthropic's clients send it
            key = value
    if not key:
        raise Unauthorized("an API key is needed: send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'")
    if len(key) > MAX_KEY:
        raise Unauthorized(f"this API key is not known; none is longer than {MAX_KEY} bytes")
    return key
