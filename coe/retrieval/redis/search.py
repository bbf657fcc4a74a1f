"""Searching in Redis, in few ways there and back: what was there at the last search is asked, while looking whether it
still is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from coe.redis import RedisClient
from coe.retrieval.fusion import candidates, check_encoder, contenders, fused
from coe.retrieval.passages import EncoderId, Passage, Vector
from coe.retrieval.redis import scripts, terms
from coe.retrieval.redis.terms import cosine, scored

PREFIX = "coe:{documents}:"
INDEX = f"{PREFIX}index"
SPARE = 10
"""Candidates fetched beyond those that are wanted: some may have gone since."""
EFFORT = 100
"""EF of VSIM: candidates that the search through the graph keeps in view. Of 100,000 chunks it finds 98.8 % of the
nearest 50 with it, 99.6 % with twice as many in twice the time."""


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """A version of the index and its parts, each of them TENANT/COLLECTION."""

    version: str
    parts: tuple[str, ...]

    @property
    def base(self) -> str:
        return f"{PREFIX}{self.version}:"

    def prefixes(self, parts: Sequence[str]) -> list[str]:
        return [f"{self.base}{part}:" for part in parts]


@dataclass(frozen=True, slots=True)
class _Found:
    """Chunk -> cosine of the nearest, packed rows of the question's words, and how many chunks there are."""

    nearest: Mapping[int, float]
    rows: Mapping[str, Sequence[bytes]]
    chunks: int


class RedisSearch:
    """Of the version in use, or of a `version` that is not. For one event loop."""

    def __init__(self, redis: RedisClient, encoder: EncoderId, *, version: str | None = None) -> None:
        self._redis, self._encoder, self._version = redis, encoder, version
        self._known: IndexVersion | None = None
        self._vectors = redis.client.register_script(scripts.VECTORS)

    async def passages(
        self, text: str, vector: Vector, *, collections: Sequence[str], tenant: str | None, limit: int
    ) -> Sequence[Passage]:
        """As Retriever.search: candidates of both kinds on one way, then the vectors of those that only their words
        found, where they may still matter, then the records."""
        most, words = candidates(limit), terms.asked(text)
        place = self._known or await self.place()
        if place is None:
            return ()
        parts = _visible(place, tenant, collections)
        now, found = await self._candidates(place, parts, vector, words, most)
        if now != place:
            place = await self.place()
            if place is None:
                return ()
            parts = _visible(place, tenant, collections)
            _, found = await self._candidates(place, parts, vector, words, most)
        self._known = place
        prefixes = place.prefixes(parts)
        lexical = terms.best(found.rows, chunks=found.chunks, most=most)
        new = contenders(found.nearest, lexical, wanted=limit + SPARE)
        cosines = {**found.nearest, **await self._cosines(prefixes, new, vector)}
        order = fused(cosines, lexical)
        return (await self._passages(prefixes, order[: limit + SPARE], cosines, parts))[:limit]

    async def place(self) -> IndexVersion | None:
        """What there is now; None before the first write. Raises IndexMismatch where another encoder made it."""
        version = await self.version()
        if version is None:
            return None
        parts = await self._redis.run(self._redis.client.smembers(f"{PREFIX}{version}:parts"))
        return IndexVersion(version, _named(parts))

    async def version(self) -> str | None:
        """The version in use, made by this encoder; None before the first write."""
        if self._version is not None:
            return self._version
        return self._checked(await self._redis.run(self._redis.client.hmget(INDEX, *_HEAD)))

    def _checked(self, head: Sequence[bytes | None]) -> str | None:
        version, digest, dimensions = head
        if version is None or digest is None or dimensions is None:
            return None
        made_by = EncoderId(digest.decode(), int(dimensions))
        check_encoder(self._redis.place, made_by=made_by, now=self._encoder)
        return version.decode()

    async def _candidates(
        self, place: IndexVersion, parts: Sequence[str], vector: Vector, words: Sequence[str], most: int
    ) -> tuple[IndexVersion, _Found]:
        """What there is now, and what the place has."""
        prefixes, blob = place.prefixes(parts), vector.astype("<f4").tobytes()
        async with self._redis.client.pipeline(transaction=False) as pipe:
            pipe.hmget(INDEX, *_HEAD)
            pipe.smembers(f"{place.base}parts")
            for prefix in prefixes:
                pipe.execute_command(
                    *("VSIM", f"{prefix}vectors", "FP32", blob, "WITHSCORES", "COUNT", most, "EF", EFFORT)
                )
                pipe.execute_command("VCARD", f"{prefix}vectors")
            if prefixes:
                pipe.eval(scripts.WORDS, len(prefixes), *prefixes, *words)
            head, members, *found = await self._redis.run(pipe.execute())
        version = self._version if self._version is not None else self._checked(head)
        return IndexVersion(version or "", _named(members)), _found(found, most)

    async def _cosines(self, prefixes: Sequence[str], numbers: Sequence[int], vector: Vector) -> dict[int, float]:
        """None of chunks that are gone."""
        if not numbers:
            return {}
        found = await self._redis.run(self._vectors(keys=prefixes, args=numbers))
        return {number: cosine(raw, vector) for number, raw in zip(numbers, found, strict=True) if raw}

    async def _passages(
        self, prefixes: Sequence[str], order: Sequence[int], cosines: Mapping[int, float], parts: Sequence[str]
    ) -> Sequence[Passage]:
        if not order:
            return ()
        async with self._redis.client.pipeline(transaction=False) as pipe:
            for prefix in prefixes:
                pipe.hmget(f"{prefix}chunks", order)
            found = await self._redis.run(pipe.execute())
        passages = []
        for at, number in enumerate(order):
            for part, records in zip(parts, found, strict=True):
                if records[at]:
                    name, text, source, title = orjson.loads(records[at])
                    passages.append(Passage(name, text, source, title, part.partition("/")[2], cosines[number]))
        return passages


_HEAD = ("version", "digest", "dimensions")


def _named(members: Any) -> tuple[str, ...]:
    return tuple(sorted(part.decode() for part in members))


def _visible(place: IndexVersion, tenant: str | None, collections: Sequence[str]) -> list[str]:
    """The parts of these collections, all for none, that a tenant may see."""
    found = ((part, *part.partition("/")) for part in place.parts)
    return [
        part
        for part, owner, _, collection in found
        if owner in ("", tenant or "") and (not collections or collection in collections)
    ]


def _found(answers: Sequence[Any], most: int) -> _Found:
    """Two answers for each part, and then what the words' script says."""
    if not answers:
        return _Found({}, {}, 0)
    *by_part, words = answers
    nearest = {number: cosine for near in by_part[::2] for number, cosine in scored(near)}
    kept = sorted(nearest, key=lambda number: -nearest[number])[:most]
    rows: dict[str, list[bytes]] = {}
    for word, packed in zip(words[::2], words[1::2], strict=True):
        rows.setdefault(word.decode(), []).append(packed)
    return _Found({number: nearest[number] for number in kept}, rows, sum(by_part[1::2]))
