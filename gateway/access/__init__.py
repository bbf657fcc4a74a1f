"""Who is asking, and what that API key may still use.

Opened once a process: `async with open_limiter(registry.access.counters, home=settings.home) as limiter`. Built for
every declaration: `access_of(registry, limiter)`. A reload builds a new Access over the same limiter: keys that stay
keep their counts.
"""

from coe.runtime.api_keys import Caller, create_admin_key, with_admin_key
from gateway.access.access import Access, access_of
from gateway.access.allowance import FREE, Allowance
from gateway.access.browsers import check_exposure
from gateway.access.factory import check_counters, open_limiter
from gateway.access.limits import Limiter

__all__ = [
    "FREE",
    "Access",
    "Allowance",
    "Caller",
    "Limiter",
    "access_of",
    "check_counters",
    "check_exposure",
    "create_admin_key",
    "open_limiter",
    "with_admin_key",
]
