"""Runs one round of learning for one kind of artifact: judge a candidate, then promote it or keep its report.

`judge` of `plan_round` and `router_round` fits a candidate from the job's frame and tests it. `conclude`
does the steps that all kinds share: publish and promote an accepted candidate, keep the report of a rejected one, and
store the state that the next round starts from. `open_job` takes the job lock and opens what every round reads.

One learning job runs at a time: its lock is a lease in the log's Redis, else a file lock. A thread extends the lease
while the job runs, so that a long fit does not lose it. Before a job changes anything it checks that it still holds the
lock.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from uuid import uuid4

import orjson

from coe.artifacts.artifact_sync import synced_share
from coe.artifacts.manifest import replace_file
from coe.artifacts.redis import RedisArtifacts
from coe.artifacts.store import ArtifactStore, mirror
from coe.errors import ArtifactError, JobError, StoreError
from coe.file_lock import file_lock, holder_name
from coe.learning.experience import LoadedExperience, load_experience
from coe.learning.log_frame import LogFrame, Logs, open_logs
from coe.redis import BlockingRedisClient
from coe.registry import Registry, load
from coe.settings import Settings
from coe.terminal import print_error

if TYPE_CHECKING:
    from coe.artifacts.active_state import ActiveState


LOCK_KEY = "coe:retrain"
LEASE_SECONDS = 30.0
"""Time that the lock outlives a job that was killed or disconnected."""
EXTENSION_SECONDS = 10.0
"""Time between two extensions of the lease."""
REDIS_TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 1.0

CheckLock = Callable[[], None]
"""Raises JobError unless this job still holds the lock."""


@contextmanager
def job_lock(url: str, *, home: Path, lease: float = LEASE_SECONDS, wait: float = 0.0) -> Iterator[CheckLock]:
    """A context that one job at a time enters, of all that share the Redis at `url` or the state folder `home`.

    Yields a check to call before anything is changed. Raises JobError, which names the holder, where another job still
    runs after `wait` seconds, and StoreError where Redis does not answer.
    """
    is_redis, deadline = url.startswith(("redis://", "rediss://")), time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            try:
                check = stack.enter_context(_redis_lock(url, lease) if is_redis else _file_lock(home / "retrain.lock"))
                break
            except JobError as error:
                if time.monotonic() >= deadline:
                    raise
                if wait:
                    print_error(f"note: waiting for up to {wait:.0f} s: {error}")
                    wait = 0.0
            time.sleep(POLL_SECONDS)
        yield check


@contextmanager
def _file_lock(path: Path) -> Iterator[CheckLock]:
    with file_lock(path, held=_held_error):
        yield lambda: None  # the kernel holds the lock as long as this process lives


@contextmanager
def _redis_lock(url: str, lease: float) -> Iterator[CheckLock]:
    redis = BlockingRedisClient(
        url,
        key="log.url",
        error=lambda problem: StoreError(f"retrain: the lock in Redis cannot be acquired ({problem})"),
        connect_timeout=REDIS_TIMEOUT_SECONDS,
        timeout=REDIS_TIMEOUT_SECONDS,
    )
    lock = redis.client.lock(LOCK_KEY, timeout=lease, blocking=False, thread_local=False)
    stopped = threading.Event()

    def check() -> None:
        """Extend the lease now. Raises JobError where it is lost or Redis does not answer."""
        try:
            with redis.errors():
                lock.extend(lease, replace_ttl=True)
        except StoreError as error:
            cause = error.__cause__
            raise JobError(f"retrain: the lock was lost ({cause}); nothing is promoted, run it again") from error

    def extend() -> None:
        while not stopped.wait(min(EXTENSION_SECONDS, lease / 3)):
            with suppress(JobError):  # `check` reports it before anything is changed
                check()

    with closing(redis):
        with redis.errors():
            if not lock.acquire(token=f"{holder_name()} {uuid4().hex[:8]}"):
                holder: Any = redis.client.get(LOCK_KEY)
                raise _held_error((holder or b"").decode())
        extension = threading.Thread(target=extend, name="coe-retrain-lease", daemon=True)
        extension.start()
        try:
            yield check
        finally:
            stopped.set()
            extension.join()
            with suppress(StoreError), redis.errors():  # the lease is lost, or it expires by itself
                lock.release()


def _held_error(holder: str) -> JobError:
    return JobError(f"another job is running ({holder or 'it has just begun'}); wait for it or stop it")


STATE_FILE = "rounds.json"


@dataclass(frozen=True, slots=True)
class RoundState:
    """The state of the last round of one kind.

    `in_use` is the digest or version that the round judged against, and `judged` counts the candidates judged against
    it. `inputs` is the digest of the round's other inputs, `feedback` the cursor behind the feedback that it read.
    `time` (Unix seconds), `promoted`, `sentence` and `report` (a folder, or empty) are the outcome.
    """

    in_use: str
    judged: int
    inputs: str
    feedback: str
    time: float
    promoted: bool
    sentence: str
    report: str


def read_round_states(artifacts: Path) -> Mapping[str, RoundState]:
    """The states by kind, empty before the first round. Raises ArtifactError for a damaged file."""
    path = artifacts / STATE_FILE
    try:
        return {kind: RoundState(**fields) for kind, fields in orjson.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it, and rounds are counted from zero") from None


REPORTS = "reports"
MAX_REPORTS = 50
"""Kept reports of rejected candidates of all kinds, the newest."""


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
    folder. After promotion `state.in_use` is `digest`, or the version where `digest` is None, and the next candidates
    are judged from the first test on.
    """

    state: RoundState
    replaces: str | None
    report: Mapping[str, Any]
    save: Callable[[Path], ManifestFields]
    digest: str | None = None


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


@contextmanager
def open_job(settings: Settings, *, since: float, now: float, dry_run: bool) -> Iterator[Job]:
    """Take the job lock and open the logs. Raises JobError, StoreError, or the error of a damaged state."""
    from coe.artifacts.active_state import load_active_state

    url = load(settings.config, environ=settings.environ).log.url
    with ExitStack() as stack:
        check_lock = stack.enter_context(job_lock(url, home=settings.home))
        logs = stack.enter_context(open_logs(url, base=settings.home))
        share = synced_share(settings)
        if share is not None:
            stack.enter_context(closing(share))
            share.fetch_file(STATE_FILE, settings.artifacts)
        try:
            in_use = load_active_state(settings, packaged=not dry_run)
            yield Job(settings, in_use, logs, check_lock, since, now, dry_run, share)
        finally:
            if share is not None and (state := settings.artifacts / STATE_FILE).is_file():
                share.put_file(STATE_FILE, state.read_bytes())


def conclude(kind: str, judged: Candidate | str | None, job: Job) -> Outcome | None:
    """Conclude a round. `judged` is the candidate, or why there is nothing to learn from, or None if the kind is not in
    use. Returns None for None.

    Raises JobError or ArtifactError, and promotes nothing, where the lock was lost, or experts.yaml or the version in
    use changed since the job began.
    """
    if judged is None:
        return None
    if isinstance(judged, str):
        return Outcome(kind, False, f"nothing to learn from: {judged}")
    state, artifacts, version = judged.state, job.settings.artifacts, None
    if job.dry_run:
        return Outcome(kind, False, f"dry run, nothing is changed; {state.sentence}", report=judged.report)
    report = orjson.dumps(judged.report, option=orjson.OPT_INDENT_2)
    if state.promoted:
        store = job.store(kind)
        with store.draft() as draft:
            manifest_fields = judged.save(draft)
            (draft / "report.json").write_bytes(report)
            artifact = store.publish(draft, **manifest_fields)
        version, folder = artifact.manifest.version, artifact.folder
        declared = load(job.settings.config, environ=job.settings.environ).digest
        mirror([store])
        if declared != job.registry.digest or store.in_use() != judged.replaces:
            raise ArtifactError(f"retrain: {kind} or experts.yaml was changed in the meantime; nothing is promoted")
        job.check_lock()
        store.promote(version, by="retrain", why=state.sentence)
        state = replace(state, in_use=judged.digest or version, judged=0)
    else:
        reports = artifacts / REPORTS
        folder = reports / f"{datetime.fromtimestamp(job.now, UTC):%Y%m%dT%H%M%S.%fZ}-{kind}"
        folder.mkdir(parents=True)
        (folder / "report.json").write_bytes(report)
        for old in sorted(reports.iterdir())[:-MAX_REPORTS]:
            shutil.rmtree(old)
    states = {**read_round_states(artifacts), kind: replace(state, report=str(folder))}
    fields = {name: asdict(one) for name, one in states.items()}
    replace_file(artifacts / STATE_FILE, orjson.dumps(fields, option=orjson.OPT_INDENT_2))
    return Outcome(kind, state.promoted, state.sentence, version, str(folder), judged.report)
