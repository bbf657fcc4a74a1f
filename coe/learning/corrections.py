"""Corrected categories become training prompts: the labelled base, and as many corrections as may join it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coe.learning.estimation.experience import NONE, Experience
from coe.learning.estimation.experience_loader import identity
from coe.records.record import RoutingRecord

Pair = tuple[str, str]

SHARE = 0.5
"""Largest part of a category's corrections that comes from one tenant."""
RATIO = 1.0
"""Corrections into a category, as a multiple of its prompts in the base."""
FREE = 20
"""Corrections that may always come, into a category and from a tenant."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What somebody said the category of a prompt is."""

    prompt: str
    category: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Lessons:
    """(prompt, category) pairs to train on, the base first, and why corrections were left out, counted by reason."""

    pairs: tuple[Pair, ...]
    learnt: int
    left_out: Mapping[str, int]


def corrections(records: Iterable[Sequence[RoutingRecord]], experience: Experience) -> tuple[Correction, ...]:
    """The corrected requests whose prompt the log keeps (`log.store_prompts`), from pages of records."""
    rows = {
        int(name): (experience.categories[category], experience.tenants[tenant])
        for name, category, tenant in zip(experience.identity, experience.corrected, experience.tenant, strict=True)
        if category != NONE
    }
    found = {}
    for page in records:
        for record in page:
            name = identity(record.request_id)
            if name in rows and record.prompt:
                found[name] = Correction(record.prompt, *rows[name])
    return tuple(found.values())


def lessons(base: Sequence[Pair], corrected: Sequence[Correction]) -> Lessons:
    """The base and the corrections that may join it. The order of corrections does not matter.

    What most tenants say of a prompt counts, a tie nothing, and the base is never contradicted. No tenant has more than
    SHARE of the corrections into a category, and these are at most RATIO times its prompts in the base: so neither one
    voice nor a wave of corrections turns a category into something else. Which ones stay goes by a digest of the
    prompt, so that the next round keeps the same.
    """
    known, sizes = dict(base), Counter(category for _, category in base)
    left_out: Counter[str] = Counter()
    votes: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in corrected:
        votes[one.prompt][one.category].add(one.tenant)
    chosen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for prompt, said in votes.items():
        ranked = sorted(((len(tenants), category) for category, tenants in said.items()), reverse=True)
        if prompt in known:
            left_out["the base knows the prompt"] += 1
        elif len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            left_out["tenants contradict each other"] += 1
        else:
            chosen[ranked[0][1]].append((prompt, min(said[ranked[0][1]])))
    learnt: list[Pair] = []
    for category in sorted(chosen):
        kept = _bounded(chosen[category], most=max(FREE, int(RATIO * sizes[category])))
        left_out["more than the category or the tenant may bring"] += len(chosen[category]) - len(kept)
        learnt += [(prompt, category) for prompt in kept]
    return Lessons((*base, *learnt), len(learnt), {reason: count for reason, count in left_out.items() if count})


def _bounded(candidates: list[tuple[str, str]], *, most: int) -> list[str]:
    """At most `most` prompts, no tenant's share above SHARE (or FREE), those of the smallest digests."""
    by_tenant: dict[str, list[str]] = defaultdict(list)
    for prompt, tenant in sorted(candidates, key=lambda pair: _digest(pair[0])):
        by_tenant[tenant].append(prompt)
    others = {tenant: len(candidates) - len(prompts) for tenant, prompts in by_tenant.items()}
    bound = {tenant: max(FREE, int(SHARE / (1.0 - SHARE) * rest)) for tenant, rest in others.items()}
    kept = [prompt for tenant, prompts in by_tenant.items() for prompt in prompts[: bound[tenant]]]
    return sorted(kept, key=_digest)[:most]


def _digest(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode("utf-8", "replace")).digest()
