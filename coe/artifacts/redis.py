"""Shares promoted artifacts between machines through Redis; each machine mirrors them into its own folders.

`coe:artifacts:KIND` is a hash. Its fields `version` (empty if none is in use) and `history` change together. The
version in use and the one before it have the fields `tar:VERSION` and `sha256:VERSION`. `coe:artifacts:files` holds
small files that accompany the artifacts, by name, such as the traffic report.

A version is stored as one uncompressed tar archive. Everything in it is verified before a file is written.
`coe.artifacts.artifact_sync` mirrors the versions.

Stores the last traffic report in a small file of the state folder: jobs write it, gateways show it in `/metrics`.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import orjson

from coe.artifacts.manifest import (
    MANIFEST,
    MAX_FILES,
    Manifest,
    check_version,
    is_file_name,
    parse_manifest,
    replace_file,
)
from coe.errors import ArtifactError
from coe.redis import BlockingRedisClient
from coe.registry import load
from coe.settings import Settings
from coe.trials.drift import ASPECTS

if TYPE_CHECKING:
    from redis.client import Pipeline


MAX_VERSION_BYTES = 512 * 2**20
"""Bytes of a version, which Redis stores as one value."""
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_SMALL_FILE_BYTES = 4 * 2**20
"""Bytes of a history, and of a file that accompanies the artifacts."""
CONNECT_TIMEOUT_SECONDS = 2.0
TIMEOUT_SECONDS = 5.0
"""Seconds without a byte; a whole version may take longer."""
FOLDER = "folder"
FILES_KEY = "coe:artifacts:files"


def open_shared(address: str) -> RedisArtifacts | None:
    """Returns the Redis that `artifacts` in experts.yaml names, None if every machine has its own folder. Raises
    ConfigError."""
    return None if address == FOLDER else RedisArtifacts(address)


@dataclass(frozen=True, slots=True)
class SharedState:
    """The version in use on all machines, and the lines of its history."""

    version: str | None
    history: bytes = field(repr=False)


class RedisArtifacts:
    """Shares the versions in use between machines. It connects on the first call; every failure is an ArtifactError."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = BlockingRedisClient(
            url,
            key="artifacts",
            error=ArtifactError,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            timeout=TIMEOUT_SECONDS,
        )
        self._client, self.place = self._redis.client, self._redis.place

    def put(self, kind: str, version: str | None, folder: Path, history: bytes) -> None:
        """Sets the version in use everywhere (None: no version), in one step. The previous version stays for a
        rollback."""
        fields: dict[Any, Any] = {"version": version or "", "history": history}
        if version is not None:
            packed = pack(folder)
            fields |= {f"tar:{version}": packed, f"sha256:{version}": hashlib.sha256(packed).hexdigest()}

        def move(pipeline: Pipeline) -> None:
            found: Any = pipeline.hget(_key(kind), "version"), pipeline.hkeys(_key(kind))
            previous, known = (found[0] or b"").decode(), [field.decode() for field in found[1]]
            keep = {f"{part}:{one}" for part in ("tar", "sha256") for one in (version, previous)}
            outdated = (
                sorted(field for field in known if ":" in field and field not in keep) if previous != version else []
            )
            pipeline.multi()
            pipeline.hset(_key(kind), mapping=fields)
            if outdated:
                pipeline.hdel(_key(kind), *outdated)

        with self._redis.errors():
            self._client.transaction(move, _key(kind))

    def state(self, kind: str) -> SharedState | None:
        """The version in use and its history; None if nothing of that kind was ever shared."""
        version = self._value(_key(kind), "version", max_bytes=MAX_SMALL_FILE_BYTES)
        if version is None:
            return None
        history = self._value(_key(kind), "history", max_bytes=MAX_SMALL_FILE_BYTES) or b""
        name = version.decode("ascii", "replace")
        return SharedState(check_version(name) if name else None, history)

    def fetch(self, kind: str, version: str, into: Path) -> None:
        """Writes the files of a version into a folder, once all of them are verified."""
        check_version(version)
        packed = self._value(_key(kind), f"tar:{version}", max_bytes=MAX_VERSION_BYTES)
        digest = self._value(_key(kind), f"sha256:{version}", max_bytes=MAX_SMALL_FILE_BYTES)
        what = f"{self.place}: {kind} {version}"
        remedy = f"run `coe promote {kind} {version}` on the machine that made it"
        if packed is None:
            raise ArtifactError(f"{what} is not shared; {remedy}")
        if digest is None or hashlib.sha256(packed).hexdigest().encode() != digest:
            raise ArtifactError(f"{what} is damaged; {remedy}")
        unpack(packed, into, kind=kind, version=version, what=what)

    def put_file(self, name: str, content: bytes) -> None:
        """Shares a small file of that name."""
        with self._redis.errors():
            self._client.hset(FILES_KEY, name, content)

    def fetch_file(self, name: str, folder: Path) -> None:
        """Copies the shared file of that name into the folder, if there is one and it differs."""
        content = self._value(FILES_KEY, name, max_bytes=MAX_SMALL_FILE_BYTES)
        path = folder / name
        if content is not None and not (path.is_file() and path.read_bytes() == content):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)

    def _value(self, key: str, field: str, *, max_bytes: int) -> bytes | None:
        """A field of a hash, None if it does not exist. Raises ArtifactError for a value of more than `max_bytes`,
        without reading it."""
        with self._redis.errors():
            size: Any = self._client.hstrlen(key, field)
            if size > max_bytes:
                raise ArtifactError(
                    f"{self.place}: {key} {field[:64]} has {size} bytes, more than the {max_bytes} allowed"
                )
            value: Any = self._client.hget(key, field)
        return None if value is None else bytes(value)

    def close(self) -> None:
        """Closes the connections; the next call connects again."""
        self._redis.close()


def _key(kind: str) -> str:
    return f"coe:artifacts:{kind}"


def pack(folder: Path) -> bytes:
    """The files of a published folder as a tar archive. Raises ArtifactError for more than MAX_VERSION_BYTES."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    if packed.tell() > MAX_VERSION_BYTES:
        raise ArtifactError(
            f"{folder}: {packed.tell() >> 20} MB, more than the {MAX_VERSION_BYTES >> 20} MB that Redis can store"
        )
    return packed.getvalue()


def unpack(packed: bytes, into: Path, *, kind: str, version: str, what: str) -> None:
    """Writes the files of an archive that holds this version and nothing else.

    Raises ArtifactError, with nothing written, for a file that is not plain, is missing, or has another name or digest
    than the manifest says, and for a manifest of another version.
    """
    try:
        digests, manifest = _read_archive(packed)
        if (manifest.kind, manifest.version) != (kind, version):
            raise ValueError(f"it holds {manifest.kind} {manifest.version}")
        if digests != manifest.files:
            wrong = sorted(name for name, _ in digests.items() ^ manifest.files.items())
            raise ValueError(f"{wrong[0]} is missing, unexpected, or does not match its digest")
        for name, content in _archive_members(packed):
            (into / name).write_bytes(content)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"{what} is damaged: {error}; `coe promote {kind} {version}` on the machine that made it repairs it"
        ) from error


def _read_archive(packed: bytes) -> tuple[dict[str, str], Manifest]:
    """The digest of every file but the manifest, and that. Raises ValueError."""
    digests: dict[str, str] = {}
    manifest = None
    for name, content in _archive_members(packed):
        if name == MANIFEST:
            if manifest is not None or len(content) > MAX_MANIFEST_BYTES:
                raise ValueError(f"{MANIFEST} is too large or there twice")
            manifest = parse_manifest(content)
        elif name in digests or len(digests) == MAX_FILES:
            raise ValueError(f"{name!r} is there twice, or is one of more than {MAX_FILES} files")
        else:
            digests[name] = hashlib.sha256(content).hexdigest()
    if manifest is None:
        raise ValueError(f"{MANIFEST} is missing")
    return digests, manifest


def _archive_members(packed: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents. Raises ValueError for a member that is not a plain file, or whose name is a path.

    The archive must not be compressed, nor a member sparse, so contents are never larger than the archive.
    """
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        for member in tar:
            plain = member.isreg() and not member.issparse() and is_file_name(member.name)
            content = tar.extractfile(member) if plain and member.size <= len(packed) else None
            if content is None:
                raise ValueError(f"it contains {member.name[:64]!r}, which is not a regular file")
            yield member.name, content.read()


TRAFFIC_REPORT_FILE = "traffic-report.json"
AlarmKind = Literal["collapse", "starvation", "degradation", "failing"]
ALARMS: tuple[AlarmKind, ...] = get_args(AlarmKind)


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """At `time` (Unix seconds): experts by kind of alarm, and whether each tested aspect has shifted.

    `sentences` describe the alarms; `notified` are those that the webhook has accepted."""

    time: float
    alarms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drift: Mapping[str, bool] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    notified: tuple[str, ...] = ()

    @classmethod
    def of(cls, report: Mapping[str, Any], *, now: float, notified: Sequence[str] = ()) -> TrafficReport:
        """The part of a `coe report` that metrics show."""
        alarms: dict[str, tuple[str, ...]] = {}
        for alarm in report["alarms"]:
            alarms[alarm["kind"]] = (*alarms.get(alarm["kind"], ()), alarm["expert"])
        drift = {finding["aspect"]: bool(finding["alarm"]) for finding in report["drift"]["findings"]}
        return cls(now, alarms, drift, tuple(alarm.get("sentence", "") for alarm in report["alarms"]), tuple(notified))

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))


def read_traffic_report(path: Path) -> TrafficReport | None:
    """The stored report; None where there is none or the file is damaged, since metrics must not fail."""
    try:
        found = orjson.loads(path.read_bytes())
        alarms: dict[str, tuple[str, ...]] = {kind: tuple(found["alarms"].get(kind, ())) for kind in ALARMS}
        drift: dict[str, bool] = {
            aspect: bool(found["drift"][aspect]) for aspect in ASPECTS if aspect in found["drift"]
        }
        sentences, notified = (tuple(map(str, found[name])) for name in ("sentences", "notified"))
        return TrafficReport(float(found["time"]), alarms, drift, sentences, notified)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def publish_traffic_report(settings: Settings, report: Mapping[str, Any], notified: Sequence[str] = ()) -> None:
    """Store the report of `coe report` for this machine's gateways, and for other machines where artifacts are
    shared."""
    content = TrafficReport.of(report, now=time.time(), notified=notified).to_json()
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    share = open_shared(load(settings.config, environ=settings.environ).artifacts)
    if share is not None:
        with closing(share):
            share.put_file(TRAFFIC_REPORT_FILE, content)  # first, or a gateway here could put the former one back
    replace_file(settings.artifacts / TRAFFIC_REPORT_FILE, content)
