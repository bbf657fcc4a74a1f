"""The learning round of the router: trains a candidate with corrected categories and tests it on held-out prompts.

The training set is the labelled base and the corrections that may join it. Quotas by tenant and category prevent one
tenant, or many corrections at once, from redefining a category. A promoted router is trained on all prompts, the
held-out ones too. `coe train` trains with the functions at the top.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from coe.artifacts.active_state import packaged_router
from coe.artifacts.manifest import ROUTER
from coe.errors import ConfigError, DataError
from coe.learning import promotion
from coe.learning.experience import NONE, LoadedExperience
from coe.learning.moves import is_held_out
from coe.learning.promotion import Judgement, held_out_evidence
from coe.learning.round import Candidate, Job, ManifestFields, RoundState, read_round_states
from coe.measuring.tables import numbered_prompts, pairs_digest
from coe.registry import Registry
from coe.terminal import print_error, progress_bar

MIN_PROMPTS = 2
"""Prompts that training needs of each category."""


def training_pairs(registry: Registry, *, base: Path, data: Path | None) -> list[tuple[str, str]]:
    """(prompt, category) pairs of the declared categories: a file's or the shipped ones, extra and declared examples.

    The file is `data`, or router.training_data relative to `base`; the extra ones are those of
    router.extra_training_data. Raises DataError for a category in a file that experts.yaml does not declare, and
    ConfigError for a category with too few prompts.
    """
    pairs = _pairs(registry, base=base, data=data)
    if problems := _problems(registry, pairs):
        raise ConfigError(*problems.values())
    return pairs


def training_problems(registry: Registry, *, base: Path) -> dict[int, str]:
    """Return the index of each category that training would refuse, and why. Raises DataError as `training_pairs`."""
    return _problems(registry, _pairs(registry, base=base, data=None))


def _problems(registry: Registry, pairs: Sequence[tuple[str, str]]) -> dict[int, str]:
    counts = Counter(category for _, category in set(pairs))
    file = registry.router.training_data or "a file of `router.training_data`"
    return {
        index: f"category {name!r} has {counts[name]} training prompts and needs {MIN_PROMPTS}; "
        f"add `examples` to it, or prompts to {file}"
        for index, name in enumerate(registry.category_names)
        if counts[name] < MIN_PROMPTS
    }


def _pairs(registry: Registry, *, base: Path, data: Path | None) -> list[tuple[str, str]]:
    import routers

    if data is None and registry.router.training_data:
        data = base / registry.router.training_data
    if data is not None:
        pairs = [(prompt, category) for _, prompt, category in numbered_prompts(data)]
        if unknown := sorted({category for _, category in pairs} - set(registry.category_names)):
            raise DataError(f"{data}: categories that experts.yaml does not declare: {', '.join(unknown)}")
    else:
        pairs = [
            (one.prompt, one.category) for one in routers.starter_examples() if one.category in registry.category_names
        ]
    if extra := registry.router.extra_training_data:
        pairs = add_prompts(pairs, base / extra, categories=registry.category_names)
    return pairs + [(example, category.name) for category in registry.categories for example in category.examples]


def add_prompts(pairs: Sequence[tuple[str, str]], path: Path, *, categories: Collection[str]) -> list[tuple[str, str]]:
    """Add the prompts of a file to (prompt, category) pairs. Raises DataError for a category that is not declared.

    A prompt that is already in the pairs is not added again; if the file gives another category, that one replaces it.
    Prompts with several categories within the file are left out, and their number is printed.
    """
    from routers.examples import normalize_prompt

    found: dict[str, set[str]] = {}
    for number, prompt, category in numbered_prompts(path):
        if category not in categories:
            remedy = "declare it in experts.yaml, or correct the line"
            raise DataError(f"{path}:{number}: category {category!r} is not declared; {remedy}")
        if text := normalize_prompt(prompt):
            found.setdefault(text, set()).add(category)
    added = {prompt: next(iter(names)) for prompt, names in found.items() if len(names) == 1}
    if several := len(found) - len(added):
        print_error(f"note: {path}: {several} prompts have several categories and are left out")
    kept = [
        (prompt, category) for prompt, category in pairs if added.get(normalize_prompt(prompt), category) == category
    ]
    before = {normalize_prompt(prompt): category for prompt, category in pairs}
    return [*kept, *((prompt, category) for prompt, category in added.items() if before.get(prompt) != category)]


def build_router(pairs: Sequence[Pair], out: Path, *, registry: Registry, encoder: str = "") -> Mapping[str, Any]:
    """Train a router on (prompt, category) pairs into the folder `out`. Returns its metrics."""
    from routers import Example, build

    described = {category.name: category.description for category in registry.categories}
    encoder = encoder or registry.router.encoder
    with progress_bar("training") as progress:
        examples = [Example(*pair) for pair in pairs]
        return build(examples, descriptions=described, encoder=encoder, out=out, progress=progress)


Pair = tuple[str, str]

MAX_TENANT_SHARE = 0.5
"""Largest share of one tenant in the corrections into a category."""
MAX_CORRECTION_RATIO = 1.0
"""Largest number of corrections into a category, as a multiple of its prompts in the base."""
MIN_QUOTA = 20
"""Corrections that are always allowed, into a category and from a tenant."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected request: its prompt, the corrected category and the tenant."""

    prompt: str
    category: str
    tenant: str


@dataclass(frozen=True, slots=True)
class RouterTrainingSet:
    """(prompt, category) pairs to train on: the labelled base, and the corrections `added` to it.

    `left_out` counts the other corrections by reason. `known` are the digests of those that the router in use was
    trained on.
    """

    base: tuple[Pair, ...]
    added: tuple[Pair, ...]
    left_out: Mapping[str, int]
    known: frozenset[str]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return self.base + self.added

    @property
    def new(self) -> int:
        """The number of corrections that the router in use was not trained on."""
        return sum(prompt_digest(prompt) not in self.known for prompt, _ in self.added)


def prompt_digest(prompt: str) -> str:
    """The digest by which an artifact records a training prompt without holding its text."""
    return hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=12).hexdigest()


def corrections(loaded: LoadedExperience) -> tuple[Correction, ...]:
    """The corrections whose prompt the log keeps (`log.store_prompts`)."""
    experience, texts = loaded.experience, loaded.frame.texts
    rows = np.flatnonzero(experience.corrected != NONE)
    ids = loaded.frame.table["request_id"].take(rows).to_pylist()
    return tuple(
        Correction(
            texts[name], experience.categories[experience.corrected[row]], experience.tenants[experience.tenant[row]]
        )
        for name, row in zip(ids, rows, strict=True)
        if name in texts
    )


def merge_corrections(
    base: Sequence[Pair], corrected: Sequence[Correction], *, known: frozenset[str] = frozenset()
) -> RouterTrainingSet:
    """The base and the corrections that may join it; the order of corrections does not matter.

    A prompt gets the category that most tenants gave it; a tie leaves the prompt out. A prompt of the base keeps its
    category. Corrections into a category number at most MAX_CORRECTION_RATIO times its prompts in the base, and at most
    MAX_TENANT_SHARE of them come from one tenant. The prompts with the smallest digests are kept, so that every round
    keeps the same ones.
    """
    in_base, sizes = dict(base), Counter(category for _, category in base)
    left_out: Counter[str] = Counter()
    votes: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in corrected:
        votes[one.prompt][one.category].add(one.tenant)
    chosen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for prompt, tenants_by_category in votes.items():
        ranked = sorted(((len(tenants), category) for category, tenants in tenants_by_category.items()), reverse=True)
        if prompt in in_base:
            left_out["the base knows the prompt"] += 1
        elif len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            left_out["tenants contradict each other"] += 1
        else:
            chosen[ranked[0][1]].append((prompt, min(tenants_by_category[ranked[0][1]])))
    added: list[Pair] = []
    for category in sorted(chosen):
        kept = _within_quota(chosen[category], most=max(MIN_QUOTA, int(MAX_CORRECTION_RATIO * sizes[category])))
        left_out["more than the category or the tenant may bring"] += len(chosen[category]) - len(kept)
        added += [(prompt, category) for prompt in kept]
    return RouterTrainingSet(tuple(base), tuple(added), {why: count for why, count in left_out.items() if count}, known)


def _within_quota(candidates: list[tuple[str, str]], *, most: int) -> list[str]:
    """At most `most` prompts within the tenants' quotas, those with the smallest digests."""
    by_tenant: dict[str, list[str]] = defaultdict(list)
    for prompt, tenant in sorted(candidates, key=lambda pair: prompt_digest(pair[0])):
        by_tenant[tenant].append(prompt)
    others = {tenant: len(candidates) - len(prompts) for tenant, prompts in by_tenant.items()}
    bound = {
        tenant: max(MIN_QUOTA, int(MAX_TENANT_SHARE / (1.0 - MAX_TENANT_SHARE) * rest))
        for tenant, rest in others.items()
    }
    kept = [prompt for tenant, prompts in by_tenant.items() for prompt in prompts[: bound[tenant]]]
    return sorted(kept, key=prompt_digest)[:most]


HELD_OUT_SHARE = 0.2
"""Share of all prompts, base and corrections, that is held out for the test."""
MIN_NEW_CORRECTIONS = 20
"""New corrections that a round needs; also the prompts that a category needs to have a held-out part."""

Build = Callable[[Sequence[Pair], Path], Mapping[str, Any]]
"""Trains a router on (prompt, category) pairs into a folder and returns its metrics."""


def judge_router(data: RouterTrainingSet, build: Build, *, round_: int) -> Judgement:
    """Train one router with and one without the new corrections, and compare both on the held-out prompts.

    Neither sees the held-out prompts. The router in use cannot be tested because it was trained on them. A loss in any
    category prevents the promotion.
    """
    sizes, base = Counter(category for _, category in data.base), set(data.base)
    tested: list[Pair] = []
    trained: list[Pair] = []
    for prompt, category in data.pairs:
        is_tested = sizes[category] >= MIN_NEW_CORRECTIONS and is_held_out(prompt, share=HELD_OUT_SHARE)
        (tested if is_tested else trained).append((prompt, category))
    before = [pair for pair in trained if pair in base or prompt_digest(pair[0]) in data.known]
    if not tested:
        return promotion.judge([], round_=round_)
    old, new = (_train_and_score(build, part, tested) for part in (before, trained))
    categories = [category for _, category in tested]
    evidence = held_out_evidence(old, new, categories, guarded=sorted(sizes))
    return promotion.judge([evidence], round_=round_)


def _train_and_score(
    build: Build, pairs: Sequence[Pair], tested: Sequence[Pair]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    import routers

    with TemporaryDirectory(prefix="coe-router-") as folder:
        build(pairs, Path(folder))
        router = routers.load(Path(folder))
        found = router.predict([prompt for prompt, _ in tested])
        names = [router.categories[prediction.best] for prediction in found]
    return np.array([name == category for name, (_, category) in zip(names, tested, strict=True)], dtype=np.float64)


BASE, CORRECTIONS = "base", "corrections"
"""Metrics in the manifest of a router: the digest of its labelled base, and those of the corrections in its training
set."""


def judge(job: Job) -> Candidate | str | None:
    """Judge a router trained with corrected categories."""
    if not np.any(job.loaded.experience.corrected != NONE):
        return None
    data = _training_set(job)
    if isinstance(data, str):
        return data
    version, inputs = job.store(ROUTER).in_use(), pairs_digest(data.added)
    last = read_round_states(job.settings.artifacts).get(ROUTER)
    if last is not None and last.in_use != str(version):  # tests of another router do not count
        last = None
    if last is not None and last.inputs == inputs:
        return "no correction is new"
    build = partial(build_router, registry=job.registry)
    judgement = judge_router(data, build, round_=1 if last is None else last.judged + 1)
    report = {
        **judgement.to_json(),
        "base": len(data.base),
        "corrections": len(data.added),
        "new": data.new,
        "by_category": dict(Counter(category for _, category in data.added)),
        "left_out": dict(data.left_out),
    }

    def save(folder: Path) -> ManifestFields:
        metrics = dict(build(data.pairs, folder))
        metrics |= {BASE: pairs_digest(data.base), CORRECTIONS: [prompt_digest(prompt) for prompt, _ in data.added]}
        return {"categories": job.registry.category_names, "data": pairs_digest(data.pairs), "metrics": metrics}

    return Candidate(
        RoundState(
            str(version), judgement.round_, inputs, "", job.now, judgement.promote, judgement.sentence, report=""
        ),
        replaces=version,
        report=report,
        save=save,
    )


def _training_set(job: Job) -> RouterTrainingSet | str:
    """The labelled base and the corrections that may join it, or why there is nothing to learn."""
    base = training_pairs(job.registry, base=job.settings.config.parent, data=None)
    artifact = job.store(ROUTER).current() or packaged_router(job.registry)  # in a dry run none may be in use
    assert artifact is not None
    metrics = artifact.manifest.metrics
    if metrics.get(BASE, artifact.manifest.data) != pairs_digest(base):
        if job.store(ROUTER).may_adopt_packaged():
            return "the packaged router is in use, which was trained for other categories; run `coe train` once"
        remedy = "name them as router.training_data or router.extra_training_data and train"
        return f"the router was trained on other prompts than are declared; {remedy}"
    corrected = corrections(job.loaded)
    if not corrected:
        return "the log keeps no prompts of the corrected requests; set log.store_prompts"
    data = merge_corrections(base, corrected, known=frozenset(metrics.get(CORRECTIONS, ())))
    if data.new < MIN_NEW_CORRECTIONS:
        return f"{data.new} corrections are new, and a round takes {MIN_NEW_CORRECTIONS}"
    return data
