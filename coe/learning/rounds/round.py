"""Runs one round of learning for one kind of artifact: judge a candidate, then promote it or keep its report.

`judge` of `plan_round` and `router_round` fits a candidate from the job's frame and tests it. `conclude`
does the steps that all kinds share: publish and promote an accepted candidate, keep the report of a rejected one, and
store the state that the next round starts from. `open_job` takes the job lock and opens what every round reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import orjson

from coe.artifacts.artifact_sync import synced_share
from coe.artifacts.atomic_files import replace_file
from coe.artifacts.redis import RedisArtifacts
from coe.artifacts.store import ArtifactStore, mirror
from coe.errors import ArtifactError
from coe.learning.experience import LoadedExperience, load_experience
from coe.learning.job_lock import CheckLock, job_lock
from coe.learning.log_frame import LogFrame, Logs, open_logs
from coe.learning.promotion import Judgement
from coe.registry import Registry, load
from coe.settings import Settings

if TYPE_CHECKING:
    from coe.artifacts.active_state import ActiveState

STATE_FILE = "rounds.json"


@dataclass(frozen=True, slots=True)
class RoundState:
    """The state of the last round of one kind.

    `in_use` is the digest or version that the round judged against, and `judged` counts the candidates judged against
    it. `inputs` is the digest of the round's other inputs, `feedback` the cursor behind the feedback that it read.
    `time` (Unix seconds), `promoted`, `sentence` and `report` (a folder, or empty) are the outcome. `tested` counts the
    ratings of the last test, the latest at `tested_at`.
    """

    in_use: str
    judged: int
    inputs: str
    feedback: str
    time: float
    promoted: bool
    sentence: str
    report: str
    tested: int = 0
    tested_at: float = 0.0

    @classmethod
    def of(cls, judgement: Judgement, *, in_use: str, inputs: str, time: float) -> RoundState:
        """The state after a judgement, if nothing is promoted."""
        return cls(in_use, judgement.round_, inputs, "", time, judgement.promote, judgement.sentence, "")


def read_round_states(artifacts: Path) -> Mapping[str, RoundState]:
    """The states by kind, empty before the first round. Raises ArtifactError for a damaged file."""
    path = artifacts / STATE_FILE
    try:
        return {kind: RoundState(**fields) for kind, fields in orjson.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it, and rounds are counted from zero") from None


def write_round_state(artifacts: Path, kind: str, state: RoundState) -> None:
    """Replace the state of one kind. The caller holds the job lock."""
    states = {**read_round_states(artifacts), kind: state}
    artifacts.mkdir(parents=True, exist_ok=True)
    fields = {name: asdict(one) for name, one in states.items()}
    replace_file(artifacts / STATE_FILE, orjson.dumps(fields, option=orjson.OPT_INDENT_2))


REPORTS = "reports"
MAX_REPORTS = 50
"""Kept reports of rejected candidates of all kinds, the newest."""
NOTHING_TO_LEARN = "nothing to learn from"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a round; `version` was promoted, `report` is empty where no candidate was judged."""

    kind: str
    promoted: bool
    sentence: str
    version: str | None = None
    folder: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)


class ManifestFields(TypedDict):
    """Fields of the manifest of a published candidate."""

    categories: Sequence[str]
    data: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A judged candidate.

    `state` is stored for the next round; its `promoted` and `sentence` are the verdict. `replaces` is the version that
    was in use when the round began, None for none. `report` is JSON-able. `save` writes the artifact's files into a
    folder. After promotion `state.in_use` is `digest`, or the version where `digest` is None, and with `restarts_tests`
    the next candidates are judged from the first test on.
    """

    state: RoundState
    replaces: str | None
    report: Mapping[str, Any]
    save: Callable[[Path], ManifestFields]
    digest: str | None = None
    restarts_tests: bool = True

    def write_report(self, kind: str, folder: Path) -> None:
        """Write report.json and report.md into a folder that exists."""
        (folder / "report.json").write_bytes(orjson.dumps(self.report, option=orjson.OPT_INDENT_2))
        (folder / "report.md").write_text(report_page(kind, self.report), encoding="utf-8")


SHOWN_FIRST = ("sentence", "promoted", "round", "reason", "evidence")
"""Fields of a report that the head of its page has."""


def report_page(kind: str, report: Mapping[str, Any]) -> str:
    """The report of a round as Markdown: the verdict, then a line for each number, name and finding."""

    def line(value: Any) -> str:
        if isinstance(value, Mapping):
            return str(value.get("sentence") or ", ".join(f"{name} {line(one)}" for name, one in value.items() if one))
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    sentence: str = report["sentence"]
    parts = [
        f"# {kind.capitalize()}, round {report['round']}: {'promoted' if report['promoted'] else 'kept'}",
        f"{sentence[0].upper()}{sentence[1:]}.",
    ]
    for name, value in report.items():
        title = name.replace("_", " ").capitalize()
        if name in SHOWN_FIRST or not value:
            continue
        if isinstance(value, list) and isinstance(value[0], Mapping):
            parts += [f"## {title}", "\n".join(f"- {line(one)}" for one in value)]
        elif isinstance(value, Mapping | int | float | str):
            parts.append(f"{title}: {line(value)}.")
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Job:
    """A job that holds the lock: the state in use, and the logs from `since` to `now` (Unix seconds).

    `check_lock` raises JobError once the lock is lost.
    """

    settings: Settings
    in_use: ActiveState
    logs: Logs
    check_lock: CheckLock
    since: float
    now: float
    dry_run: bool
    share: RedisArtifacts | None = None

    @property
    def registry(self) -> Registry:
        return self.in_use.registry

    def store(self, kind: str) -> ArtifactStore:
        return ArtifactStore(self.settings.artifacts, kind, self.share)

    @cached_property
    def frame(self) -> LogFrame:
        """Users' requests with their feedback, read once."""
        return self.logs.frame(since=self.since, until=self.now)

    @cached_property
    def loaded(self) -> LoadedExperience:
        """The experience over the columns of the plan in use. Raises DataError where no request is left."""
        return load_experience(self.frame, categories=self.in_use.router.categories, experts=self.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The declared experts, and the arms of recipes in the plan in use."""
        return self.in_use.assignment.experts

    def tests_so_far(self, kind: str, *, in_use: str, inputs: str) -> int | None:
        """The number of candidates judged against `in_use`; None where the last of them had the same inputs."""
        last = read_round_states(self.settings.artifacts).get(kind)
        if last is None or last.in_use != in_use:
            return 0
        return None if last.inputs == inputs else last.judged

    def promote(self, kind: str, version: str, *, instead_of: str | None, why: str) -> None:
        """Put the version into use.

        Raises JobError or ArtifactError, and changes nothing, where the lock was lost, or experts.yaml or the version
        in use changed since the job began.
        """
        declared = load(self.settings.config, environ=self.settings.environ).digest
        store = self.store(kind)
        mirror([store])
        if declared != self.registry.digest or store.in_use() != instead_of:
            raise ArtifactError(f"retrain: {kind} or experts.yaml was changed in the meantime; nothing is promoted")
        self.check_lock()
        store.promote(version, by="retrain", why=why)


@contextmanager
def open_job(settings: Settings, *, since: float, now: float, dry_run: bool) -> Iterator[Job]:
    """Take the job lock and open the logs. Raises JobError, StoreError, or the error of a damaged state."""
    from coe.artifacts.active_state import load_active_state

    url = load(settings.config, environ=settings.environ).log.url
    with job_lock(url, home=settings.home) as check_lock, open_logs(url, base=settings.home) as logs:
        share = synced_share(settings)
        if share is not None:
            share.fetch_file(STATE_FILE, settings.artifacts)
        try:
            in_use = load_active_state(settings, packaged=not dry_run)
            yield Job(settings, in_use, logs, check_lock, since, now, dry_run, share)
        finally:
            if share is not None and (state := settings.artifacts / STATE_FILE).is_file():
                share.put_file(STATE_FILE, state.read_bytes())


def conclude(kind: str, judged: Candidate | str | None, job: Job) -> Outcome | None:
    """Conclude a round. `judged` is the candidate, or why there is nothing to learn from, or None if the kind is not in
    use. Returns None for None."""
    if judged is None:
        return None
    if isinstance(judged, str):
        return Outcome(kind, False, f"{NOTHING_TO_LEARN}: {judged}")
    state = judged.state
    if job.dry_run:
        return Outcome(kind, False, f"dry run, nothing is changed; {state.sentence}", report=judged.report)
    version = None
    if state.promoted:
        store = job.store(kind)
        with store.draft() as draft:
            manifest_fields = judged.save(draft)
            judged.write_report(kind, draft)
            artifact = store.publish(draft, **manifest_fields)
        version, folder = artifact.manifest.version, artifact.folder
        job.promote(kind, version, instead_of=judged.replaces, why=state.sentence)
        state = replace(state, in_use=judged.digest or version)
        if judged.restarts_tests:
            state = replace(state, judged=0, tested=0, tested_at=0.0)
    else:
        folder = keep_report(job.settings.artifacts / REPORTS, judged, kind=kind, now=job.now)
    write_round_state(job.settings.artifacts, kind, replace(state, report=str(folder)))
    return Outcome(kind, state.promoted, state.sentence, version, str(folder), judged.report)


def keep_report(root: Path, judged: Candidate, *, kind: str, now: float) -> Path:
    """Write the report of a candidate into a new folder under `root`, named by the time `now` (Unix seconds) and the
    kind of artifact. Deletes the oldest folders beyond MAX_REPORTS. Returns the new one.
    """
    folder = root / f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S.%fZ}-{kind}"
    folder.mkdir(parents=True)
    judged.write_report(kind, folder)
    for old in sorted(root.iterdir())[:-MAX_REPORTS]:
        shutil.rmtree(old)
    return folder
