"""The learning round of the router: gives the router in use the corrected prompts as exemplars, without training it.

The routing log is the truth: a round writes what it holds (`routers.corrections`), and `coe train` adds the same
corrections to its prompts. A quota by API key prevents one caller from redefining categories. A correction that the
router follows anyway, such as one that it was trained on, needs no exemplar; one that changes too many other prompts
is left out. `coe train` trains with the functions at the top.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.artifacts.active_state import category_texts, check_router
from coe.artifacts.api_keys import with_admin_key
from coe.artifacts.artifact_sync import sync_once
from coe.artifacts.manifest import ROUTER
from coe.artifacts.versions import REPORT
from coe.errors import ConfigError, DataError
from coe.learning.log_frame import Logs, open_logs
from coe.learning.round import Candidate, Job, ManifestFields, RoundState, conclude, open_job, read_round_states
from coe.learning.support import with_support
from coe.measuring.tables import numbered_prompts, pairs_digest
from coe.records import missing_file
from coe.records.record import Feedback
from coe.registry import Registry
from coe.settings import Settings
from coe.terminal import print_error, progress_bar

if TYPE_CHECKING:
    from routers.corrections import Corrections

Pair = tuple[str, str]
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
    return _with_categories(pairs, added)


def _with_categories(pairs: Sequence[Pair], added: Mapping[str, str]) -> list[Pair]:
    """Add prompts by their category; they replace the same prompts of other categories."""
    from routers.examples import normalize_prompt

    kept = [
        (prompt, category) for prompt, category in pairs if added.get(normalize_prompt(prompt), category) == category
    ]
    before = {normalize_prompt(prompt) for prompt, _ in kept}
    return [*kept, *((prompt, category) for prompt, category in added.items() if prompt not in before)]


def build_router(
    pairs: Sequence[Pair], out: Path, *, corrected: Sequence[Correction], registry: Registry
) -> Mapping[str, Any]:
    """Train a router on (prompt, category) pairs and the corrections into the folder `out`, and give it those that it
    still does not follow as exemplars. Returns its metrics."""
    import routers

    added = {routers.normalize_prompt(one.prompt): one.category for one in corrected}
    examples = [routers.Example(*pair) for pair in _with_categories(pairs, added)]
    with progress_bar("training") as progress:
        support = partial(with_support, descriptions={one.name: one.description for one in registry.categories})
        metrics = routers.build(examples, support=support, encoder=registry.router.encoder, out=out, progress=progress)
    exemplars, report = fit_corrections(out, corrected, pairs, registry)
    if exemplars is not None:
        exemplars.write(out)
    return metrics | {"corrections": report["corrections"]}


MAX_CORRECTIONS = 1_000
"""Newest corrected prompts that count; the fast stage compares a text with all of them in 50 µs."""
MIN_QUOTA = 20
"""Corrections that an API key may always bring; more of them may be at most as many as those of all other keys. Keys
with the scope admin, and a gateway without keys, have no quota."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected request: its prompt (empty if the log does not keep it), the category that it had, and the feedback
    with the category that it should have."""

    prompt: str
    was: str
    event: Feedback

    @property
    def category(self) -> str:
        return str(self.event.value)

    @property
    def digest(self) -> str:
        """The digest by which the router and records name the prompt."""
        from routers import prompt_digest

        return prompt_digest(self.prompt)


def read_corrections(logs: Logs) -> list[Correction]:
    """The corrections in the log, oldest first, without those that were withdrawn. Raises StoreError."""
    events = [event for page in logs.feedback() for event in page if event.kind == "category" and event.value]
    pairs = [(logs.find(event.request_id), event) for event in sorted(events, key=lambda event: event.time)]
    return [
        Correction(record.prompt or "", record.category, event)
        for record, event in pairs
        if record is not None and record.tenant == event.tenant
    ]


def all_corrections(settings: Settings, registry: Registry) -> list[Correction]:
    """The corrections in the log of a service; none before its first request. Raises StoreError."""
    if missing_file(registry.log.url, base=settings.home):
        return []
    with open_logs(registry.log.url, base=settings.home) as logs:
        return read_corrections(logs)


def logged_corrections(settings: Settings, registry: Registry) -> list[Correction]:
    """The corrections that count in the log of a service. Raises StoreError."""
    return choose_corrections(all_corrections(settings, registry), with_admin_key(registry, settings))[0]


def exemplars_in_use(settings: Settings) -> tuple[Registry, Collection[str]]:
    """The declaration, and the digests of the corrections that the router in use has as exemplars."""
    from routers.corrections import Corrections

    sync_once(settings)
    registry, artifact = check_router(settings)
    exemplars = Corrections.read(artifact.folder)
    return registry, () if exemplars is None else exemplars.digests.tolist()


def withdraw(settings: Settings, identifiers: Sequence[str]) -> list[Correction]:
    """Store that corrections do not count any more, and take them from the router; returns them.

    An identifier is the digest of a corrected prompt, or its beginning. Raises DataError, and withdraws none, for one
    that names no correction or several; JobError while another job runs; or StoreError.
    """
    now, chosen = time.time(), list[Correction]()
    with open_job(settings, since=now, now=now, dry_run=False) as job:
        known = read_corrections(job.logs)
        for identifier in identifiers:
            named = [one for one in known if identifier and one.digest.startswith(identifier)]
            if (count := len({one.digest for one in named})) != 1:
                problem = f"it is the beginning of {count} IDs of corrections in the routing log"
                raise DataError(f"--remove {identifier!r}: {problem}; `coe corrections` lists them")
            chosen += [one for one in named if one not in chosen]
        for event in (one.event for one in chosen):
            job.logs.append([replace(event, event_id=f"withdrawn_{event.dedup_key.hex()}", time=now, value="")])
        conclude(ROUTER, judge(job), job)
    return chosen


def choose_corrections(
    corrected: Sequence[Correction], registry: Registry
) -> tuple[list[Correction], Mapping[str, int]]:
    """The corrections that count, newest first, one for each prompt; and the number of others by reason.

    Each key has one vote for a prompt, its latest; most votes win, and a tie leaves the prompt out. Every key is within
    its quota.
    """
    left_out: Counter[str] = Counter()
    votes: dict[str, dict[str | None, Correction]] = defaultdict(dict)
    for one in corrected:
        if not one.prompt:
            left_out["without a prompt in the log (log.store_prompts)"] += 1
        elif one.category not in registry.category_names:
            left_out["of a category that is not declared"] += 1
        else:
            votes[one.prompt][one.event.key] = one
    chosen = list[Correction]()
    for by_key in votes.values():
        ranked = Counter(vote.category for vote in by_key.values()).most_common(2)
        if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
            left_out["keys contradict each other"] += 1
        else:
            winners = [vote for vote in by_key.values() if vote.category == ranked[0][0]]
            chosen.append(max(winners, key=lambda vote: vote.event.time))
    chosen.sort(key=lambda one: (-one.event.time, one.event.event_id))
    trusted = {None, *(key.name for key in registry.access.keys if "admin" in key.scopes)}
    sizes, used, kept = Counter(one.event.key for one in chosen), Counter[str | None](), list[Correction]()
    for one in chosen[:MAX_CORRECTIONS]:
        key = one.event.key
        if key in trusted or used[key] < max(MIN_QUOTA, len(chosen) - sizes[key]):
            used[key] += 1
            kept.append(one)
    left_out["more than a key, or all of them, may bring"] = len(chosen) - len(kept)
    return kept, {why: count for why, count in left_out.items() if count}


MAX_CHANGED_SHARE = 0.005
"""Largest share of other prompts whose category corrections may change."""
MAX_OTHERS = 1_000
"""Training prompts on which that is tested, those with the smallest digests."""


def fit_corrections(
    folder: Path, corrected: Sequence[Correction], base: Sequence[Pair], registry: Registry
) -> tuple[Corrections | None, dict[str, Any]]:
    """The exemplars of the corrections that the router in `folder` does not follow by itself, and a report.

    If they change the category of more than MAX_CHANGED_SHARE of the prompts of `base`, those that change most are left
    out.
    """
    import routers

    router = routers.load(folder, declared=category_texts(registry))
    router.corrections = None
    predicted = router.predict([one.prompt for one in corrected])
    added = {
        one.digest: (one.prompt, one.category)
        for one, prediction in zip(corrected, predicted, strict=True)
        if router.categories[prediction.best] != one.category
    }
    left_out, changed = Counter({"followed without an exemplar": len(corrected) - len(added)}), Counter[str]()
    if added:
        others = sorted({prompt for prompt, _ in base} - {prompt for prompt, _ in added.values()})
        others = sorted(others, key=routers.prompt_digest)[:MAX_OTHERS]
        before = router.predict(others)
        router.correct(list(added.values()))
        after = zip(before, router.predict(others), strict=True)
        changed.update(new.correction.digest for old, new in after if new.correction and new.best != old.best)
        for digest, _ in changed.most_common():
            if changed.total() > MAX_CHANGED_SHARE * len(others):
                del added[digest], changed[digest]
                left_out["would change other prompts"] += 1
        router.corrections = None
    if added:
        router.correct(list(added.values()))
    return router.corrections, {
        "corrections": len(added),
        "by_category": dict(Counter(category for _, category in added.values())),
        "changed_others": changed.total(),
        "left_out": dict(+left_out),
    }


def judge(job: Job) -> Candidate | str | None:
    """Give the router in use the corrections in the log; a string says why nothing changes."""
    from routers.corrections import CORRECTIONS

    artifact = check_router(job.settings)[1]  # in a dry run, the packaged router is not in use
    corrected, left_out = choose_corrections(read_corrections(job.logs), job.registry)
    has_exemplars = CORRECTIONS in artifact.manifest.files
    if not corrected and not has_exemplars:
        return _count(left_out) if left_out else None
    version = job.store(ROUTER).in_use()
    inputs = pairs_digest(sorted((one.prompt, one.category) for one in corrected))
    last = read_round_states(job.settings.artifacts).get(ROUTER)
    if last is not None and (last.in_use, last.inputs) == (str(version), inputs):
        return "no correction is new"
    base = _pairs(job.registry, base=job.settings.config.parent, data=None)
    exemplars, report = fit_corrections(artifact.folder, corrected, base, job.registry)
    report["left_out"] |= left_out
    if exemplars is None and not has_exemplars:
        return _count(report["left_out"])
    sentence = f"promoted: {report['corrections']} corrected prompts are exemplars"
    if report["left_out"]:
        sentence += f"; not {_count(report['left_out'])}"

    def save(folder: Path) -> ManifestFields:
        for name in artifact.manifest.files.keys() - {CORRECTIONS, REPORT}:
            shutil.copyfile(artifact.folder / name, folder / name)
        if exemplars is not None:
            exemplars.write(folder)
        manifest = artifact.manifest
        metrics = {**manifest.metrics, "corrections": report["corrections"]}
        return {"categories": manifest.categories, "data": manifest.data, "metrics": metrics}

    state = RoundState(str(version), 0, inputs, "", job.now, True, sentence, report="")
    return Candidate(state, replaces=version, report={"promoted": True, **report}, save=save)


def _count(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {why}" for why, count in left_out.items())
