"""What is in use for gateways on several machines: versions and the pointers to them in Redis, mirrored into folders.

`coe:artifacts:KIND` is a hash: `version` (empty where none is in use) and `history`, which move together, and for the
version in use and the one before it `tar:VERSION` with its `sha256:VERSION`. `coe:artifacts:beside` holds small files
that lie beside them, by name.

An artifact as one tar archive: packed whole, and verified whole before a file of it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.manifest import check_version
from coe.artifacts.store import ArtifactStore, Shared
from coe.errors import ArtifactError
from coe.redis import BlockingRedisClient

if TYPE_CHECKING:
    from redis.client import Pipeline
import io
import tarfile

from coe.artifacts.manifest import MANIFEST, MAX_FILES, Manifest, is_file_name, parsed

LARGEST = 512 * 2**20
"""Bytes of a version, which Redis keeps as one value."""
MAX_MANIFEST_BYTES = 64 * 2**20


def pack(folder: Path) -> bytes:
    """The files of a published folder. Raises ArtifactError for more than LARGEST bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    if packed.tell() > LARGEST:
        raise ArtifactError(f"{folder}: {packed.tell() >> 20} MB, more than the {LARGEST >> 20} MB that Redis can keep")
    return packed.getvalue()


def unpack(packed: bytes, into: Path, *, kind: str, version: str, what: str) -> None:
    """Write the files of an archive that holds this version and nothing else.

    Raises ArtifactError, with nothing written, for a file that is not plain, has another name or digest than the
    manifest says, or is missing, and for a manifest of another version.
    """
    try:
        digests, manifest = _inspected(packed)
        if (manifest.kind, manifest.version) != (kind, version):
            raise ValueError(f"it holds {manifest.kind} {manifest.version}")
        if digests != manifest.files:
            wrong = sorted(name for name, _ in digests.items() ^ manifest.files.items())
            raise ValueError(f"{wrong[0]} is missing, too many, or not what its digest says")
        for name, content in _files(packed):
            (into / name).write_bytes(content)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"{what} is damaged: {error}; `coe promote {kind} {version}` where it was made mends it"
        ) from error


def _inspected(packed: bytes) -> tuple[dict[str, str], Manifest]:
    """The digest of every file but the manifest, and that. Raises ValueError."""
    digests: dict[str, str] = {}
    manifest = None
    for name, content in _files(packed):
        if name == MANIFEST:
            if manifest is not None or len(content) > MAX_MANIFEST_BYTES:
                raise ValueError(f"{MANIFEST} is too large or there twice")
            manifest = parsed(content)
        elif name in digests or len(digests) == MAX_FILES:
            raise ValueError(f"{name!r} is there twice, or is one of more than {MAX_FILES} files")
        else:
            digests[name] = hashlib.sha256(content).hexdigest()
    if manifest is None:
        raise ValueError(f"{MANIFEST} is missing")
    return digests, manifest


def _files(packed: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents. Raises ValueError for a member that is no plain file, or whose name is a path.

    The archive may not be compressed, nor a member sparse: so they hold no more than the archive has bytes.
    """
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        for member in tar:
            plain = member.isreg() and not member.issparse() and is_file_name(member.name)
            content = tar.extractfile(member) if plain and member.size <= len(packed) else None
            if content is None:
                raise ValueError(f"it holds {member.name[:64]!r}, which is no plain file")
            yield member.name, content.read()


MAX_SMALL_BYTES = 4 * 2**20
"""Size of a history, and of a file that lies beside the artifacts."""
CONNECT_TIMEOUT_SECONDS = 2.0
TIMEOUT_SECONDS = 5.0
"""Seconds without a byte; a version takes longer as a whole."""
FOLDER = "folder"
BESIDE = "coe:artifacts:beside"


def share_at(address: str) -> RedisArtifacts | None:
    """What `artifacts` in experts.yaml names; None where every machine has its own folder. Raises ConfigError."""
    return None if address == FOLDER else RedisArtifacts(address)


def mirror(stores: Sequence[ArtifactStore]) -> None:
    """Take over what is in use elsewhere: everything is fetched and verified before a pointer moves.

    Raises ArtifactError, after which what was in use is so still, when Redis is away or a version is damaged.
    """
    for store in stores:
        store.fetch_shared()
    for store in stores:
        store.take_shared()


class RedisArtifacts:
    """A Share in Redis. Nothing is connected before the first call; every failure is an ArtifactError."""

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
        """Have the version in use everywhere, or none, in one step; the one in use until now stays to go back to."""
        fields: dict[Any, Any] = {"version": version or "", "history": history}
        if version is not None:
            packed = pack(folder)
            fields |= {f"tar:{version}": packed, f"sha256:{version}": hashlib.sha256(packed).hexdigest()}

        def move(line: Pipeline) -> None:
            found: Any = line.hget(_name(kind), "version"), line.hkeys(_name(kind))
            was, known = (found[0] or b"").decode(), [field.decode() for field in found[1]]
            kept = {f"{part}:{one}" for part in ("tar", "sha256") for one in (version, was)}
            old = sorted(field for field in known if ":" in field and field not in kept) if was != version else []
            line.multi()
            line.hset(_name(kind), mapping=fields)
            if old:
                line.hdel(_name(kind), *old)

        with self._redis.errors():
            self._client.transaction(move, _name(kind))

    def stated(self, kind: str) -> Shared | None:
        """What is in use; None where nothing was ever said of that kind."""
        version = self._value(_name(kind), "version", at_most=MAX_SMALL_BYTES)
        if version is None:
            return None
        history = self._value(_name(kind), "history", at_most=MAX_SMALL_BYTES) or b""
        name = version.decode("ascii", "replace")
        return Shared(check_version(name) if name else None, history)

    def fetch(self, kind: str, version: str, into: Path) -> None:
        """Write the files of a version as they were put, once all of them are verified."""
        check_version(version)
        packed = self._value(_name(kind), f"tar:{version}", at_most=LARGEST)
        digest = self._value(_name(kind), f"sha256:{version}", at_most=MAX_SMALL_BYTES)
        what = f"{self.place}: {kind} {version}"
        if packed is None:
            raise ArtifactError(f"{what} is not there; `coe promote {kind} {version}` where it was made puts it there")
        if digest is None or hashlib.sha256(packed).hexdigest().encode() != digest:
            raise ArtifactError(f"{what} is damaged; `coe promote {kind} {version}` where it was made mends it")
        unpack(packed, into, kind=kind, version=version, what=what)

    def tell(self, name: str, content: bytes) -> None:
        """Have a small file of that name everywhere."""
        with self._redis.errors():
            self._client.hset(BESIDE, name, content)

    def hear(self, name: str, folder: Path) -> None:
        """Have in the folder what was told of it last, if anything was."""
        content = self._value(BESIDE, name, at_most=MAX_SMALL_BYTES)
        path = folder / name
        if content is not None and not (path.is_file() and path.read_bytes() == content):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)

    def _value(self, key: str, field: str, *, at_most: int) -> bytes | None:
        """A field of a hash, None where there is none. Raises ArtifactError for one of more bytes, unread."""
        with self._redis.errors():
            size: Any = self._client.hstrlen(key, field)
            if size > at_most:
                raise ArtifactError(
                    f"{self.place}: {key} {field[:64]} has {size} bytes, more than the {at_most} allowed"
                )
            value: Any = self._client.hget(key, field)
        return None if value is None else bytes(value)

    def close(self) -> None:
        """Connections are made anew where it is asked again."""
        self._redis.close()


def _name(kind: str) -> str:
    return f"coe:artifacts:{kind}"
