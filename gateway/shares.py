"""Places that callers share, none of which is kept for anybody."""

from __future__ import annotations


class Shares:
    """How many places each caller has taken. It may have as many as are still free: alone half of them, two a third
    each. One that takes all it may leaves another half of what it found; none are left once as many do so as the places
    can be halved, eight for 128."""

    def __init__(self) -> None:
        self.taken = 0
        self._own: dict[str | None, int] = {}

    def of(self, caller: str | None) -> int:
        """How many of them are this caller's."""
        return self._own.get(caller, 0)

    def take(self, caller: str | None, *, among: int, count: int = 1) -> bool:
        """Take `count` of `among` places for this caller, if it may have as many more."""
        own = self._own.get(caller, 0)
        if own + count > among - self.taken:
            return False
        self._own[caller] = own + count
        self.taken += count
        return True

    def give_back(self, caller: str | None, *, count: int = 1) -> None:
        """Return places that it has taken."""
        self.taken -= count
        if own := self._own[caller] - count:
            self._own[caller] = own
        else:
            del self._own[caller]
