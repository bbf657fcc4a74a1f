"""URLs of servers: what may be shown of them, and paths below them. Userinfo, query and fragment may hold secrets."""

from __future__ import annotations

from urllib.parse import unquote, unquote_plus

MIN_SECRET = 4
"""Characters of a value that counts as a secret; shorter ones would be struck from ordinary words."""


def shown(url: str) -> str:
    """The URL for pages, logs and errors: without userinfo, query and fragment."""
    scheme, separator, rest = _parts(url)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def below(url: str, path: str) -> str:
    """The URL of a path below this one, with its userinfo and query."""
    address, query = _parts(url)
    return _joined(f"{address.rstrip('/')}/{path}", query)


def without(url: str, ending: str) -> str:
    """The URL less the end of its path, with its userinfo and query."""
    address, query = _parts(url)
    return _joined(address.rstrip("/").removesuffix(ending), query)


def secrets_in(url: str) -> tuple[str, ...]:
    """The secrets of a URL: the password and the values of the query, as written and decoded, the
    longest first."""
    address, query = _parts(url)
    userinfo = address.partition("://")[2].partition("/")[0].rpartition("@")[0]
    values = [query, userinfo, userinfo.partition(":")[2], *(part.partition("=")[2] for part in query.split("&"))]
    values += [decode(value) for value in values for decode in (unquote, unquote_plus)]
    return tuple(sorted({value for value in values if len(value) >= MIN_SECRET}, key=len, reverse=True))


def _joined(address: str, query: str) -> str:
    return f"{address}?{query}" if query else address


def _parts(url: str) -> tuple[str, str]:
    """Everything before the query, and the query."""
    address, _, query = url.partition("#")[0].partition("?")
    return address, query
