"""Who is asking, and what that API key may still use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coe.core import Chat, Scope, Usage
from coe.registry import Access as AccessSpec


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is: the name of the API key and its tenant, both None where no keys are declared."""

    key: str | None = None
    tenant: str | None = None


class Access:
    """The declared keys at work."""

    def __init__(self, spec: AccessSpec) -> None:
        self._spec = spec

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> Caller:
        """Raises Unauthorized or Forbidden."""
        return Caller()

    @asynccontextmanager
    async def allowance(self, caller: Caller, chat: Chat) -> AsyncIterator[Allowance]:
        """Hold what one request may use. Raises LimitReached."""
        yield Allowance()


class Allowance:
    """What one request was allowed; told what it used in the end."""

    def settle(self, usage: Usage, cost: float | None) -> None:
        """Correct the estimate by what was used, `cost` in US dollars."""
