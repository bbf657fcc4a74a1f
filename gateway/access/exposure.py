"""Checks that a gateway without API keys listens on loopback only."""

from __future__ import annotations

import ipaddress
import socket

from coe.errors import ConfigError
from coe.registry import Access
from coe.settings import Settings


def check_exposure(settings: Settings, access: Access) -> None:
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
