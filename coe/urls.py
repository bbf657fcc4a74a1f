"""URLs of servers: redaction and path operations. Userinfo, query and fragment of a URL may hold secrets."""

from __future__ import annotations

from urllib.parse import unquote, unquote_plus

MIN_SECRET_CHARACTERS = 4
"""Shortest value that counts as a secret; redacting shorter ones would damage ordinary words."""


def redact_url(url: str) -> str:
    """Return the URL without userinfo, query and fragment, for pages, logs and errors."""
    scheme, separator, rest = _parts(url)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def join_path(url: str, path: str) -> str:
    """Append a path to the URL; userinfo and query stay."""
    address, query = _parts(url)
    return _joined(f"{address.rstrip('/')}/{path}", query)


def remove_suffix(url: str, ending: str) -> str:
    """Remove a suffix of the URL's path; userinfo and query stay."""
    address, query = _parts(url)
    return _joined(address.rstrip("/").removesuffix(ending), query)


def secrets_in(url: str) -> tuple[str, ...]:
    """Return the secrets of a URL: password and values of the query, as written and decoded, longest first."""
    address, query = _parts(url)
    userinfo = address.partition("://")[2].partition("/")[0].rpartition("@")[0]
    values = [query, userinfo, userinfo.partition(":")[2], *(part.partition("=")[2] for part in query.split("&"))]
    values += [decode(value) for value in values for decode in (unquote, unquote_plus)]
    return tuple(sorted({value for value in values if len(value) >= MIN_SECRET_CHARACTERS}, key=len, reverse=True))


def _joined(address: str, query: str) -> str:
    return f"{address}?{query}" if query else address


def _parts(url: str) -> tuple[str, str]:
    """Return the part before the query, and the query."""
    address, _, query = url.partition("#")[0].partition("?")
    return address, query
