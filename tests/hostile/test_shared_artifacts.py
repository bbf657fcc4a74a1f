"""An attacker with write access to the shared Redis plants files, or stops a gateway's artifact sync."""

import gzip
import hashlib
import io
import logging
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from redis import Redis

from coe.artifacts.artifact_sync import ArtifactSync
from coe.artifacts.manifest import MAX_FILES, read_artifact, version_of
from coe.artifacts.redis import MAX_SMALL_FILE_BYTES, RedisArtifacts, unpack
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError
from coe.settings import Settings
from tests.records.redis_server import MISSING, installed

pytestmark = pytest.mark.skipif(not installed(), reason=MISSING)

KEY = "coe:artifacts:router"
NO_VERSIONS = [
    "../../planted",
    "/tmp/planted",
    "..",
    ".",
    "a/b",
    "planted",
    "0" * 11,
    "0" * 13,
    "A" * 12,
    "0" * 11 + "\n",
]
NO_VERSIONS += ["\0" * 12, "٣" * 12, "x" * (MAX_SMALL_FILE_BYTES + 1)]


def ascii_of(name: str) -> str:
    return ascii(name[:20])


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


class FollowingGateway:
    """A gateway that syncs artifacts from a Redis, in a folder that holds only its state."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.settings = Settings.read({"COE_HOME": str(folder / "deep" / "home")})
        self.share = RedisArtifacts(url)
        self.store = ArtifactStore(self.settings.artifacts, "router", self.share)
        self.follower = ArtifactSync(self.settings, self.share)

    def outside(self) -> list[str]:
        """Files outside the state folder."""
        return [
            str(path) for path in self.folder.rglob("*") if path.is_file() and self.settings.home not in path.parents
        ]

    def inside(self) -> list[str]:
        """Files in the state folder that are of a version."""
        return [path.name for path in self.settings.artifacts.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.fixture
def gateway(tmp_path: Path, redis_url: str) -> Iterator[FollowingGateway]:
    gateway = FollowingGateway(tmp_path, redis_url)
    yield gateway
    gateway.share.close()


Member = tuple[str, bytes] | tarfile.TarInfo


def archive(*members: Member) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return packed.getvalue()


def manifest(contents: dict[str, bytes], /, **changes: object) -> tuple[str, bytes]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    version = version_of(digests, data="d", categories=["a"])
    fields = {"kind": "router", "version": version, "created": "now", "categories": ["a"], "data": "d", "metrics": {}}
    return version, orjson.dumps(fields | {"files": digests} | changes)


def put(redis: Redis, version: str | bytes, packed: bytes | None = None) -> None:
    fields: dict[str, str | bytes] = {"version": version, "history": b""}
    if packed is not None and isinstance(version, str):
        fields |= {f"tar:{version}": packed, f"sha256:{version}": hashlib.sha256(packed).hexdigest()}
    redis.hset(KEY, mapping=fields)


@pytest.mark.parametrize("version", NO_VERSIONS, ids=ascii_of)
def test_a_name_that_is_no_version_is_refused_and_following_goes_on(
    version: str, gateway: FollowingGateway, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    good, content = manifest({"weights.bin": b"w"})
    whole = archive(("weights.bin", b"w"), ("manifest.json", content))
    put(redis, version, whole)
    with caplog.at_level(logging.WARNING, "coe.outage"):
        gateway.follower.sync()
    assert gateway.follower.outage.active
    assert len(caplog.records) == 1
    assert (gateway.outside(), gateway.inside()) == ([], [])
    put(redis, good, whole)
    gateway.follower.sync()
    assert (gateway.follower.outage.active, gateway.store.in_use()) == (False, good)


def test_a_pointer_to_a_folder_elsewhere_is_not_moved_to(gateway: FollowingGateway, redis: Redis) -> None:
    """The folder exists, so that nothing is left to fetch."""
    planted = gateway.settings.artifacts / "planted"
    planted.mkdir(parents=True)
    (planted / "manifest.json").write_bytes(manifest({})[1])
    put(redis, "../planted")
    gateway.follower.sync()
    assert gateway.follower.outage.active
    assert gateway.store.in_use() is None


@pytest.mark.parametrize("name", NO_VERSIONS[:-1], ids=ascii_of)
def test_no_verb_leaves_the_folder_by_a_name(name: str, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts", "router")
    for verb in (store.promote, store.published, store.manifest):
        with pytest.raises(ArtifactError):
            verb(name)
    (tmp_path / "artifacts" / "router").mkdir(parents=True)
    (tmp_path / "artifacts" / "router" / "current").write_text(name)
    with pytest.raises(ArtifactError):
        store.current()


def link(kind: bytes, name: str = "weights.bin", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def files(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, b"w")


def of(*members: Member, content: bytes | None = None) -> Callable[[], tuple[str, bytes]]:
    """An archive with the manifest of one good file and other members."""

    def made() -> tuple[str, bytes]:
        version, usual = manifest(files("weights.bin"))
        return version, archive(*members, ("manifest.json", usual if content is None else content))

    return made


def naming(name: str) -> Callable[[], tuple[str, bytes]]:
    """An archive whose manifest names the file too."""

    def made() -> tuple[str, bytes]:
        version, content = manifest(files(name))
        return version, archive((name, b"w"), ("manifest.json", content))

    return made


def crowded() -> tuple[str, bytes]:
    every = files(*(f"f{number}" for number in range(MAX_FILES + 1)))
    version, content = manifest(every)
    return version, archive(*every.items(), ("manifest.json", content))


def compressed() -> tuple[str, bytes]:
    version, content = manifest(files("weights.bin"))
    return version, gzip.compress(archive(("weights.bin", b"w"), ("manifest.json", content)))


def sparse() -> tuple[str, bytes]:
    version, content = manifest(files("weights.bin"))
    info = tarfile.TarInfo("weights.bin")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0"}
    info.pax_headers |= {"GNU.sparse.name": "weights.bin", "GNU.sparse.size": str(2**50)}
    return version, archive(info, ("manifest.json", content))


GOOD = ("weights.bin", b"w")


@pytest.mark.parametrize(
    "made",
    [
        *(
            naming(name)
            for name in ("../planted", "/tmp/planted", "..", "a/b", ".hidden", "current\n", "x" * 200, "\\..\\x")
        ),
        of(link(tarfile.SYMTYPE)),
        of(link(tarfile.LNKTYPE)),
        of(link(tarfile.SYMTYPE, "other", ".."), GOOD),
        of(link(tarfile.DIRTYPE, "other"), GOOD),
        of(link(tarfile.FIFOTYPE, "other"), GOOD),
        of(link(tarfile.CHRTYPE, "other"), GOOD),
        of(GOOD, ("other.bin", b"x")),
        of(GOOD, GOOD),
        of(("weights.bin", b"changed")),
        of(),
        of(GOOD, content=b"{"),
        of(GOOD, content=b"[]"),
        of(GOOD, content=b'{"categories": []}'),
        of(GOOD, content=manifest(files("weights.bin"), kind="gate")[1]),
        of(GOOD, content=manifest(files("weights.bin"), version="0" * 12)[1]),
        of(GOOD, content=manifest(files("weights.bin"), data="another")[1]),
        of(GOOD, content=manifest(files("weights.bin"), files=["weights.bin"])[1]),
        of(GOOD, content=manifest(files("weights.bin"), metrics=[])[1]),
        of(GOOD, ("manifest.json", manifest(files("weights.bin"))[1])),
        crowded,
        compressed,
        sparse,
        lambda: (manifest({})[0], b"no archive"),
        lambda: (manifest({})[0], b""),
        lambda: (manifest(files("weights.bin"))[0], of(GOOD)()[1][:700]),
    ],
)
def test_a_hostile_archive_writes_nothing(
    made: Callable[[], tuple[str, bytes]], gateway: FollowingGateway, redis: Redis, tmp_path: Path
) -> None:
    version, packed = made()
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ArtifactError, match="is damaged"):
        unpack(packed, into, kind="router", version=version, what="x")
    assert list(into.iterdir()) == []
    put(redis, version, packed)
    gateway.follower.sync()
    assert gateway.follower.outage.active
    assert (gateway.outside(), gateway.inside()) == ([], [])


@pytest.mark.parametrize(
    "history",
    [b"{", b"[]", b"{}\n", b'{"time": 0, "version": "../x", "was": null, "by": "hand", "why": ""}\n',
     b'{"time": "0", "version": null, "was": null, "by": "hand", "why": ""}\n', b"\xff",
     b"\n" * (MAX_SMALL_FILE_BYTES + 1)],
    ids=range(7),
)  # fmt: skip
def test_a_hostile_history_is_not_taken_over(history: bytes, gateway: FollowingGateway, redis: Redis) -> None:
    version, packed = of(GOOD)()
    put(redis, version, packed)
    redis.hset(KEY, "history", history)
    gateway.follower.sync()
    assert gateway.follower.outage.active
    assert gateway.store.in_use() is None
    assert gateway.store.history() == ()


def test_a_manifest_here_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest({"../secret": b"s"})[1])
    with pytest.raises(ArtifactError, match="without folders"):
        read_artifact(tmp_path)
