"""Checks of Host, Origin and Sec-Fetch-Site: protection against web pages that use a visitor's browser to reach the
gateway, by cross-origin requests (CSRF) or under a host name of their own (DNS rebinding).

Checks that a gateway without API keys listens on loopback only.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache

from starlette.types import Scope

from coe.errors import ConfigError, CrossOriginRequest, InvalidHost, RequestError, UntrustedHost
from coe.registry import AccessSpec
from coe.settings import Settings


def check_exposure(settings: Settings, access: AccessSpec) -> None:
    """Raises ConfigError for a host beyond loopback without keys; one that cannot be found is not judged here."""
    if access.keys or on_loopback(settings.host):
        return
    raise ConfigError(
        f"{settings.host} can be reached from other machines and no API keys are declared: set COE_HOST=127.0.0.1, or "
        "declare access.keys in experts.yaml (`coe key NAME` makes one)"
    )


def on_loopback(host: str) -> bool:
    """Whether a gateway that listens on `host` can be reached from this machine only."""
    return all(_is_loopback(address) for address in _addresses(host))


def _addresses(host: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


HOSTS_CACHED = 256
"""Host header values whose verdict is kept."""
MAX_HOST = 260
"""Bytes of a Host header value: a DNS name has 253 at most, and a port follows."""
MAX_SHOWN = 100
"""Characters of a header value that an error message repeats."""
_WITHOUT_HOST = ("1.0", "1")
"""Versions of HTTP, as servers write them, in which a request need not have a Host header. No browser speaks them."""
_FOREIGN = (b"cross-site", b"same-site")

Verdict = tuple[RequestError | None, bool]
"""Why the request is refused, if it is, and whether it comes from an allowed other origin."""
_ACCEPTED: Verdict = (None, False)


class BrowserPolicy:
    """The declared origins and host names. Immutable, and without cost for programs that are no browsers.

    A gateway whose `host` is on loopback accepts requests that address it as localhost, by an IP address, by that
    `host`, or by one of `hosts`. Elsewhere it accepts every name unless `hosts` are declared. IP addresses need no
    declaration: a page can be loaded under another site's name that resolves to one, not under the address itself.
    """

    def __init__(self, origins: Sequence[str] = (), hosts: Sequence[str] = (), *, host: str = "127.0.0.1") -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._names = frozenset(("localhost", host.lower(), *hosts))
        self._below = (".localhost", *(host[1:] for host in hosts if host.startswith("*.")))
        self._checks_hosts = bool(hosts) or on_loopback(host)
        self._trusts = lru_cache(HOSTS_CACHED)(self._trusted)

    def check(self, scope: Scope) -> Verdict:
        """The verdict on one request."""
        host = origin = site = b""
        hosts = 0
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        allowed = origin in self._origins
        if (wrong := self._wrong_host(scope, host, hosts)) is not None:
            return wrong, allowed
        if not origin and not site:
            return _ACCEPTED
        if allowed:
            return None, True
        if _is_foreign(host, origin, site) and not _opens_page(scope):
            return _foreign(origin, site), False
        return _ACCEPTED

    def _wrong_host(self, scope: Scope, host: bytes, count: int) -> RequestError | None:
        """What is wrong with the last of `count` Host headers. The server adds an empty one where none was sent."""
        if count == 1 and host:
            trusted = not self._checks_hosts or (len(host) <= MAX_HOST and self._trusts(host))
            return None if trusted else _untrusted(host)
        return _bad_host(count) if count > 1 or scope["http_version"] not in _WITHOUT_HOST else None

    def _trusted(self, host: bytes) -> bool:
        """Whether a Host header value names an address, or a name that is accepted."""
        text = host.decode("latin-1").lower()
        name, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            name = text
        elif not port.isdecimal():
            return False
        name = name.removesuffix(".")
        return name in self._names or name.endswith(self._below) or _is_address(name)


def _is_foreign(host: bytes, origin: bytes, site: bytes) -> bool:
    """Whether a page of another origin sent the request. Browsers set Sec-Fetch-Site themselves, so same-origin is
    believed even where a proxy has changed the Host header; without it, as over plain HTTP, Origin is compared."""
    if site == b"same-origin":
        return False
    if site in _FOREIGN:
        return True
    return bool(origin) and origin.partition(b"://")[2] != host


def _opens_page(scope: Scope) -> bool:
    """Whether the request is a link to the dashboard that somebody follows: its files hold no data."""
    path: str = scope["path"]
    if scope["method"] != "GET" or not (path == "/ui" or path.startswith("/ui/")):
        return False
    sent = dict(scope["headers"])
    return sent.get(b"sec-fetch-mode") == b"navigate" and sent.get(b"sec-fetch-dest") == b"document"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True


def _foreign(origin: bytes, site: bytes) -> CrossOriginRequest:
    sender = f"the origin {_shown(origin)}" if origin else f"another site (sec-fetch-site: {_shown(site)})"
    return CrossOriginRequest(
        f"a web page of {sender} sent this request, and it is not allowed: add the page's origin to "
        "access.allowed_origins in experts.yaml if its scripts may use this gateway"
    )


def _untrusted(host: bytes) -> UntrustedHost:
    return UntrustedHost(
        f"this gateway does not answer under the host name {_shown(host)}: add the name, without its port, to "
        "access.allowed_hosts in experts.yaml"
    )


def _bad_host(count: int) -> InvalidHost:
    sent = "several" if count > 1 else "none"
    return InvalidHost(f"the request must have one Host header (RFC 9112, section 3.2), not {sent}")


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:MAX_SHOWN])
