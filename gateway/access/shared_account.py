"""One API key's account that several gateways spend from."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from gateway.access.buckets import enough
from gateway.access.limits import Meter, Use, refusal
from gateway.access.redis_connection import RedisUnavailable
from gateway.access.token_lease import Argument, TokenLease, keep_of, stock_of

LEASE = 10.0
"""Seconds after which a gateway that is heard of no more has lost its slots."""
MOMENT = 0.1
"""Seconds; what the last one used is held ready for the next."""
IDLE = 1.0
"""Seconds without a request after which nothing is held."""
DRY = 0.1
"""Seconds for which a refusal is believed without asking again."""
NOTHING = Use(0, 0, 0)


class SharedContext(Protocol):
    """What the accounts of one gateway share."""

    degraded: bool

    def now(self) -> float: ...

    def touch(self, account: SharedAccount) -> None: ...

    async def step(self, key: str, arguments: list[Argument]) -> list[float]: ...


class SharedReservation(NamedTuple):
    """What was taken, from where, in which windows, and whether Redis was away."""

    stocks: tuple[TokenLease, ...]
    use: Use
    stamps: tuple[int, ...]
    alone: bool


class SharedAccount:
    """An Account. Asks Redis only when what it holds is not enough, one step at a time for all who wait."""

    def __init__(self, key: str, common: SharedContext) -> None:
        self._key = key
        self._common = common
        self._stocks: tuple[TokenLease, ...] = ()
        self._flight: asyncio.Future[bool] | None = None
        self._demand = NOTHING
        self._moment = self._recent = NOTHING
        self._began = self._told = 0.0
        self.alone = common.degraded  # Redis is away: all counting happens here
        self._lack: tuple[TokenLease, float, float] | None = (
            None  # what a step lacked, how much, until when it is believed
        )

    @property
    def meters(self) -> tuple[Meter, ...]:
        return tuple(stock.meter for stock in self._stocks)

    def declare(self, meters: tuple[Meter, ...]) -> None:
        """Count by these from now on; what has been counted stays."""
        known = {stock.meter.name: stock for stock in self._stocks}
        self._stocks = tuple(known.get(meter.name) or stock_of(meter) for meter in meters)
        for meter, stock in zip(meters, self._stocks, strict=True):
            stock.declare(meter)

    def left(self) -> list[float]:
        now = self._common.now()
        return [stock.left(now) for stock in self._stocks]

    # --------------------------------------------------------------------------------------------- taking

    async def take(self, use: Use) -> SharedReservation:
        while True:
            stocks, now = self._stocks, self._common.now()
            if self.alone:
                return self._take_alone(use, now)
            for stock in stocks:
                if not stock.covers(use[stock.unit], now):
                    break
            else:
                self._note(use, now)
                self._common.touch(self)
                return SharedReservation(
                    stocks, use, tuple([stock.spend(use[stock.unit]) for stock in stocks]), alone=False
                )
            await self._fetch(use, now)

    def settle(self, taken: SharedReservation, used: Use) -> None:
        now, use, shared = self._common.now(), taken.use, not self.alone
        for stock, stamp in zip(taken.stocks, taken.stamps, strict=True):
            unit = stock.unit
            stock.settle(use[unit], used[unit], stamp, alone=taken.alone, shared=shared, now=now)
        self._common.touch(self)

    def _take_alone(self, use: Use, now: float) -> SharedReservation:
        stocks = self._stocks
        for stock in stocks:
            amount, level = use[stock.unit], stock.level
            if not enough(level.left(now), amount, level.limit):
                raise refusal(self._key, stock.meter, amount, wait=level.wait(amount, now))
        return SharedReservation(
            stocks, use, tuple([stock.spend_alone(use[stock.unit]) for stock in stocks]), alone=True
        )

    async def _fetch(self, use: Use, now: float) -> None:
        """Wait for a step. Raises LimitReached where one has just shown that there is not enough."""
        if self._lack is not None:
            stock, short, deadline = self._lack
            missing = use[stock.unit] - stock.stand_in
            if now < deadline and missing >= short:
                raise refusal(self._key, stock.meter, use[stock.unit], wait=stock.level.wait(missing, now))
        self._demand = Use(*(waiting + more for waiting, more in zip(self._demand, use, strict=True)))
        try:
            # A client that leaves meanwhile does not stop the step: what it takes is there for the next.
            await asyncio.shield(self._flight or self._launch(use))
        finally:
            self._demand = Use(*(waiting - more for waiting, more in zip(self._demand, use, strict=True)))

    # --------------------------------------------------------------------------------------------- steps in Redis

    @property
    def holds(self) -> bool:
        return any(stock.holds for stock in self._stocks)

    async def give_back(self, *, everything: bool = False) -> None:
        """Tell the others what was used and what is not needed here; at times, that the slots in use still are."""
        now = self._common.now()
        recent = NOTHING if everything else self._pace(now)
        surplus = any(stock.surplus(keep_of(stock, NOTHING, recent)) > 0 for stock in self._stocks)
        if everything or surplus or now - self._told > LEASE / 3:
            while self._flight:
                await asyncio.shield(self._flight)
            await self._launch(NOTHING, recent=recent)

    def detach(self) -> None:
        """Count alone from now on."""
        if self.alone:
            return
        self.alone, now = True, self._common.now()
        for stock in self._stocks:
            stock.detach(now)

    async def attach(self) -> bool:
        """Tell Redis what happened meanwhile and count together again; False while it is still away."""
        while self._flight:
            await asyncio.shield(self._flight)
        return await self._launch(NOTHING, recent=NOTHING)

    def _launch(self, least: Use, *, recent: Use | None = None) -> asyncio.Future[bool]:
        self._flight = asyncio.ensure_future(self._fly(least, recent))
        return self._flight

    async def _fly(self, least: Use, recent: Use | None) -> bool:
        try:
            return await self._step(least, recent)
        finally:
            self._flight = None

    async def _step(self, least: Use, recent: Use | None) -> bool:
        stocks, now = self._stocks, self._common.now()
        recent = self._pace(now) if recent is None else recent
        arguments: list[Argument] = [LEASE]
        for stock in stocks:
            arguments += stock.order(least[stock.unit], keep=keep_of(stock, self._demand, recent), now=now)
        stamps = [stock.stamp for stock in stocks]
        try:
            answer = await self._common.step(self._key, arguments)
        except RedisUnavailable:
            for stock in stocks:
                stock.lose()
            self.detach()
            return False
        self._told = now = self._common.now()
        for place, (stock, stamp) in enumerate(zip(stocks, stamps, strict=True)):
            stock.land(answer[1 + 2 * place], answer[2 + 2 * place], stamp=stamp, now=now)
        if lacking := int(answer[0]):
            stock = stocks[lacking - 1]
            short = least[stock.unit] - stock.stand_in
            self._lack = stock, short, now + min(DRY, max(0.001, stock.level.wait(short, now)))
        self.alone = False
        return True

    # --------------------------------------------------------------------------------------------- pace

    def _note(self, use: Use, now: float) -> None:
        moment = self._moment
        if now - self._began > MOMENT:
            self._recent, moment, self._began = moment, NOTHING, now
        self._moment = Use(moment[0] + use[0], moment[1] + use[1], moment[2] + use[2])

    def _pace(self, now: float) -> Use:
        """What a busy moment used of late; nothing once the key is idle."""
        if now - self._began > IDLE:
            return NOTHING
        return Use(*map(max, self._recent, self._moment))
