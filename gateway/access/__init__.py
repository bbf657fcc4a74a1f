"""Access control: API keys, rate limits and budgets, and protection against foreign web pages.

A process opens one limiter: `async with open_limiter(registry.access.counters, home=settings.home) as limiter`. Every
declaration gets its own `access_of(registry, limiter)`. A reload builds a new Access over the same limiter, so keys
that stay keep their counts.
"""

from coe.artifacts.api_keys import create_admin_key, with_admin_key
from gateway.access.access import Access, Caller, access_of, check_counters, open_affinity, open_limiter
from gateway.access.allowance import UNLIMITED, Allowance
from gateway.access.browsers import check_exposure
from gateway.access.issued import IssuedKeyWatch, watching_issued_keys
from gateway.access.limits import Limiter

__all__ = [
    "UNLIMITED",
    "Access",
    "Allowance",
    "Caller",
    "IssuedKeyWatch",
    "Limiter",
    "access_of",
    "check_counters",
    "check_exposure",
    "create_admin_key",
    "open_affinity",
    "open_limiter",
    "watching_issued_keys",
    "with_admin_key",
]
