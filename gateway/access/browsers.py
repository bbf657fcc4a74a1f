"""Checks of Host, Origin and Sec-Fetch-Site: protection against web pages that use a visitor's browser to reach the
gateway.

A page may send cross-origin requests (CSRF), or reach the gateway under the page's host name (DNS rebinding).
`check_exposure` also makes sure that a gateway without API keys listens on loopback only.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from starlette.types import Scope

from coe.errors import ConfigError, CrossOriginRequest, InvalidHost, RequestError, UntrustedHost
from coe.registry import AccessSpec
from coe.settings import Settings


def check_exposure(settings: Settings, access: AccessSpec) -> None:
    """Raises ConfigError for a host beyond loopback without API keys. A host that cannot be resolved passes."""
    if access.keys or on_loopback(settings.host):
        return
    raise ConfigError(
        f"{settings.host} can be reached from other machines and no API keys are declared: set COE_HOST=127.0.0.1, or "
        "declare access.keys in experts.yaml (`coe key NAME` makes one)"
    )


def on_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a gateway that listens on `host`; True for an unknown name."""
    try:
        resolved = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in resolved]
    return all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses)


MAX_HOST_BYTES = 260
"""Bytes of a Host header value: a DNS name has at most 253, and a port follows."""
MAX_QUOTED_CHARACTERS = 100
"""Characters of a header value that an error message quotes."""
_HTTP_VERSIONS_WITHOUT_HOST = ("1.0", "1")
"""HTTP versions, as servers write them, in which the Host header is optional. No browser uses them."""

BrowserCheck = tuple[RequestError | None, bool]
"""The error if the request is refused, and whether it comes from an allowed other origin."""


class BrowserPolicy:
    """The allowed origins and host names. Immutable.

    A gateway whose `host` is on loopback accepts requests that address it as localhost, by an IP address, by that
    `host`, or by one of `hosts`. Elsewhere it accepts every name unless `hosts` are declared. IP addresses need no
    declaration: a page can be loaded under a name of another site that resolves to one, not under the address itself.
    """

    def __init__(self, origins: Sequence[str] = (), hosts: Sequence[str] = (), *, host: str = "127.0.0.1") -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._names = frozenset(("localhost", host.lower(), *hosts))
        self._suffixes = (".localhost", *(host[1:] for host in hosts if host.startswith("*.")))
        self._checks_hosts = bool(hosts) or on_loopback(host)

    def check(self, scope: Scope) -> BrowserCheck:
        """Checks one request. The server adds an empty Host header where none was sent."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        origin = fetch_site = b""
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                fetch_site = value
        allowed, host = origin in self._origins, b"".join(hosts)
        if len(hosts) > 1 or (not host and scope["http_version"] not in _HTTP_VERSIONS_WITHOUT_HOST):
            sent = "several" if host else "none"
            problem = f"the request must have one Host header (RFC 9112, section 3.2), not {sent}"
            return InvalidHost(problem), allowed
        if host and self._checks_hosts and not self._is_trusted(host):
            problem = (
                f"this gateway does not answer under the host name {_quoted(host)}: add the name, without its port"
            )
            return UntrustedHost(f"{problem}, to access.allowed_hosts in experts.yaml"), allowed
        if allowed or not _is_cross_origin(host, origin, fetch_site) or _is_ui_navigation(scope):
            return None, allowed
        sender = f"the origin {_quoted(origin)}" if origin else f"another site (sec-fetch-site: {_quoted(fetch_site)})"
        problem = f"a web page of {sender} sent this request, and it is not allowed: add the page's origin to"
        return CrossOriginRequest(f"{problem} access.allowed_origins in experts.yaml if its scripts may use it"), False

    def _is_trusted(self, host: bytes) -> bool:
        """Returns whether a Host header value is an address or an accepted name."""
        if len(host) > MAX_HOST_BYTES:
            return False
        text = host.decode("latin-1").lower()
        name, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            name = text
        elif not port.isdecimal():
            return False
        name = name.removesuffix(".")
        if name in self._names or name.endswith(self._suffixes):
            return True
        try:
            ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        except ValueError:
            return False
        return True


def _is_cross_origin(host: bytes, origin: bytes, fetch_site: bytes) -> bool:
    """Returns whether a page of another origin sent the request.

    Browsers set Sec-Fetch-Site themselves, so same-origin is trusted even where a proxy changed the Host header.
    Without it, as over plain HTTP, Origin is compared.
    """
    if fetch_site in (b"same-origin", b"cross-site", b"same-site"):
        return fetch_site != b"same-origin"
    return bool(origin) and origin.partition(b"://")[2] != host


def _is_ui_navigation(scope: Scope) -> bool:
    """Returns whether the user followed a link to the dashboard, whose files hold no data, or to `/`, which leads to
    it."""
    path: str = scope["path"]
    if scope["method"] != "GET" or not (path in ("/", "/ui") or path.startswith("/ui/")):
        return False
    headers = dict(scope["headers"])
    return headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") == b"document"


def _quoted(value: bytes) -> str:
    return repr(value.decode("latin-1")[:MAX_QUOTED_CHARACTERS])
