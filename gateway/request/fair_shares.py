"""Shares a fixed capacity among callers, so that no caller can use up what another needs.

The capacity is counted in any unit: requests whose bodies arrive, bytes of body memory, feedback in progress. No
part of it is reserved for a caller.
"""

from __future__ import annotations


class FairShares:
    """Counts what each caller holds. A caller may hold at most as much as is still free.

    One caller alone gets half of the capacity, each of two callers a third. A caller at its limit leaves half of what
    it found free, so 128 units are exhausted only when about eight callers are at their limit.
    """

    def __init__(self) -> None:
        self.held = 0
        self._held_by: dict[str | None, int] = {}

    def of(self, caller: str | None) -> int:
        """Return the units that this caller holds."""
        return self._held_by.get(caller, 0)

    def acquire(self, caller: str | None, *, capacity: int, count: int = 1) -> bool:
        """Give the caller `count` more units of `capacity`, or return False if that exceeds its share."""
        own = self._held_by.get(caller, 0)
        if own + count > capacity - self.held:
            return False
        self._held_by[caller] = own + count
        self.held += count
        return True

    def release(self, caller: str | None, *, count: int = 1) -> None:
        """Return units that the caller holds."""
        self.held -= count
        if own := self._held_by[caller] - count:
            self._held_by[caller] = own
        else:
            del self._held_by[caller]
