"""Who may call: the `access` section of experts.yaml in use, and protection against web pages.

An `Access` identifies the callers of one declaration and opens the allowances of their requests. A web page may use a
visitor's browser to send cross-origin requests (CSRF), or reach the gateway under the page's host name (DNS rebinding);
`BrowserPolicy` checks Host, Origin and Sec-Fetch-Site. `check_exposure` makes sure that a gateway without API keys
listens on loopback only. `open_affinity` opens the experts of conversations beside the counters that the section names.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from starlette.types import Scope as HttpScope

from coe.artifacts.api_keys import MAX_KEY_BYTES, rule_of
from coe.core import ExpertRule, Scope
from coe.errors import (
    ConfigError,
    CrossOriginRequest,
    Forbidden,
    InvalidHost,
    RequestError,
    Unauthorized,
    UntrustedHost,
)
from coe.outage import Outage
from coe.registry import AccessSpec, ApiKey, Registry
from coe.registry.permission import exclusion
from coe.registry.sections import FILE
from coe.routing.conversation import Affinity
from coe.settings import Settings
from coe.usage import SentCall
from gateway.access.allowance import UNLIMITED, Allowance, LimitedAllowance, Pricing
from gateway.access.issued_keys import IssuedKeys, access_with, date_of
from gateway.access.limits import Amounts, Limiter
from gateway.shared_store import RedisStore, SharedCache

AFFINITY_LOOKUP_SECONDS = 0.005
"""Time limit of a request that waits for its conversation's expert."""
_BEARER = b"bearer "
_KEY_HEADER = b"x-api-key"
"""Header of Anthropic's clients."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of the request's API key and its tenant, both None if no keys are declared. `cache` is False for a key
    that does not use the answer cache. `rule` limits the experts of the key's requests, None for all experts. `expires`
    is in Unix seconds, None for a key that does not expire."""

    key: str | None = None
    tenant: str | None = None
    cache: bool = True
    rule: ExpertRule | None = None
    expires: float | None = None


def _caller_of(key: ApiKey) -> Caller:
    expires = None if key.expires is None else key.expires.timestamp()
    return Caller(key.name, key.tenant or key.name, key.cache, rule_of(key), expires)


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key of a request. Header names are in lower case, as ASGI passes them."""
    key = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            key = value[7:].strip()
            break
        if name == _KEY_HEADER:
            key = value
    if not key:
        raise Unauthorized("an API key is needed: send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'")
    if len(key) > MAX_KEY_BYTES:
        raise Unauthorized(f"this API key is not known; none is longer than {MAX_KEY_BYTES} bytes")
    return key


class Access:
    """The keys of a declaration, with the issued ones in force. Immutable: a reload makes a new one over the same
    limiter, which keeps the counts.

    Money is reserved by the price of the expert that a request pins, or by the highest prices for a routed request; for
    a recipe, by those of all its members. `routed` are the arms of recipes that routing may select. `host` is the
    address that the gateway listens on. `clock` returns Unix seconds.
    """

    def __init__(
        self,
        registry: Registry,
        limiter: Limiter,
        *,
        issued: IssuedKeys = (),
        routed: Collection[str] = (),
        host: str = "127.0.0.1",
        clock: Callable[[], float] = time.time,
    ) -> None:
        spec = access_with(registry, issued)
        prices = {expert.name: expert.prices for expert in registry.experts}
        recipes = {recipe.name: recipe for recipe in registry.declared_recipes}
        self.browsers = BrowserPolicy(spec.allowed_origins, spec.allowed_hosts, host=host)
        self.keys = spec.keys
        self._clock = clock
        self._known = {bytes.fromhex(key.sha256): (key.scopes, _caller_of(key)) for key in spec.keys}
        self._default_caller = None if spec.keys else Caller()
        self._accounts = limiter.accounts(spec.keys)
        self._arms = registry.arms
        self._pricing_of = partial(Pricing.of, prices, recipes, routed)
        self._pricing = dict[str, Pricing]()
        """The pricing of each key with limits that has sent a request."""
        self._minimum = Amounts(1, 1, min(one.input for one in prices.values()) / 1e6)

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller, whose key must have `scope` (None: any known key); without any keys, every caller may do
        everything. A key is found by its digest. Raises Unauthorized or Forbidden."""
        if self._default_caller is not None:
            return self._default_caller
        found = self._known.get(hashlib.sha256(_sent_key(headers)).digest())
        if found is None:
            raise Unauthorized("this API key is not known; request one from the operator of this service")
        scopes, caller = found
        if caller.expires is not None and caller.expires <= self._clock():
            expired = date_of(datetime.fromtimestamp(caller.expires, UTC))
            raise Unauthorized(f"the API key {caller.key!r} expired on {expired}; request a new one")
        if scope is not None and scope not in scopes:
            raise Forbidden(f"the API key {caller.key!r} lacks the scope {scope!r}; it has {', '.join(sorted(scopes))}")
        return caller

    def is_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Returns whether the caller's key has the admin scope, for all tenants."""
        try:
            self.identify(headers, "admin")
        except RequestError:
            return False
        return True

    def allowance(self, caller: Caller, sent: Sequence[SentCall]) -> Allowance:
        """The allowance of one request, which charges the calls `sent`; one that does nothing for a key without limits.
        Enter it before the body is read: it raises LimitReached where nothing remains."""
        if caller.key is None or (account := self._accounts.get(caller.key)) is None:
            return UNLIMITED
        if (pricing := self._pricing.get(caller.key)) is None:
            rule = caller.rule
            permitted = None if rule is None else [arm.name for arm in self._arms if not exclusion(rule, arm)]
            pricing = self._pricing[caller.key] = self._pricing_of(permitted)
        return LimitedAllowance(account, pricing, sent=sent, minimum=self._minimum)

    def request_allowance(self, caller: Caller) -> Allowance:
        """The allowance of a request that calls no expert: it counts as one request without tokens and money."""
        account = self._accounts.get(caller.key) if caller.key is not None else None
        return UNLIMITED if account is None else LimitedAllowance(account, Pricing())


@asynccontextmanager
async def open_affinity(counters: str) -> AsyncIterator[Affinity]:
    """The experts of conversations, shared with other gateways where `access.counters` names a Redis. Raises
    ConfigError for an invalid address."""
    if counters == FILE:
        yield Affinity()
        return
    store = RedisStore(counters, "with", setting="access.counters")
    outage = Outage("conversations", "; until Redis is back each gateway uses its own memory")
    async with SharedCache(store, outage, wait=AFFINITY_LOOKUP_SECONDS) as shared:
        yield Affinity(shared=shared)


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

    def check(self, scope: HttpScope) -> BrowserCheck:
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


def _is_ui_navigation(scope: HttpScope) -> bool:
    """Returns whether the user followed a link to the dashboard, whose files hold no data, or to `/`, which leads to
    it."""
    path: str = scope["path"]
    if scope["method"] != "GET" or not (path in ("/", "/ui") or path.startswith("/ui/")):
        return False
    headers = dict(scope["headers"])
    return headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") == b"document"


def _quoted(value: bytes) -> str:
    return repr(value.decode("latin-1")[:MAX_QUOTED_CHARACTERS])
