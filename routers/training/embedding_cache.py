"""Exports and readings kept in a folder, so that training again on the same encoder does not compute them again."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from coe.errors import ArtifactError
from routers.calibration import Floats
from routers.encoders import ROUTING_TOKENS, OnnxEncoder
from routers.training.export import EXPORT_VERSION, export_encoder
from routers.training.parallel import TaskRunner

Progress = Callable[[float], None]


def export_once(source: str, *, network: Path, tokenizer: Path, memory: Path | None) -> None:
    """As `export_encoder`, from `memory` where the same files were exported before. A hub name, whose files may change,
    is exported anew."""
    if memory is None or not Path(source).is_dir():
        export_encoder(source, network=network, tokenizer=tokenizer)
        return
    kept = memory / f"export-{EXPORT_VERSION}-{_digest_of_folder(Path(source))}"
    if not kept.is_dir():
        memory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=memory) as draft:
            made = Path(draft) / "export"
            made.mkdir()
            export_encoder(source, network=made / "network", tokenizer=made / "tokenizer")
            if not kept.exists():
                made.rename(kept)
    shutil.copyfile(kept / "network", network)
    shutil.copyfile(kept / "tokenizer", tokenizer)


class CachedEncoder:
    """A coe.core.Encoder that asks `encoder` only for token sequences whose readings `file` lacks, and adds them."""

    def __init__(self, encoder: OnnxEncoder, file: Path) -> None:
        self._encoder = encoder
        self._file = file
        self.dimensions, self.width = encoder.dimensions, encoder.width

    def encode(self, texts: Sequence[str]) -> Floats:
        """As OnnxEncoder.encode. Raises ArtifactError when the file is damaged."""
        return np.ascontiguousarray(self.read(texts)[:, : self.dimensions])

    def read(self, texts: Sequence[str], progress: Progress | None = None) -> Floats:
        """As OnnxEncoder.read. Raises ArtifactError when the file is damaged."""
        return self.read_ids(self._encoder.tokenize(texts), progress)

    def read_ids(self, tokens: Sequence[Sequence[int]], progress: Progress | None = None) -> Floats:
        """As OnnxEncoder.read_ids. Raises ArtifactError when the file is damaged."""
        keys = [hashlib.blake2b(np.array(ids, dtype=np.int64).tobytes(), digest_size=16).digest() for ids in tokens]
        known = self._read()
        new = {key: ids for key, ids in zip(keys, tokens, strict=True) if key not in known}
        if new:
            known |= zip(new, self._encoder.read_ids(list(new.values()), progress), strict=True)
            self._write(known)
        return np.array([known[key] for key in keys], dtype=np.float32).reshape(len(keys), self.width)

    def _read(self) -> dict[bytes, Floats]:
        if not self._file.is_file():
            return {}
        try:
            with np.load(self._file, allow_pickle=False) as archive:
                keys, embeddings = archive["keys"], archive["embeddings"]
            return {row.tobytes(): reading for row, reading in zip(keys, embeddings, strict=True)}
        except Exception as error:  # zipfile, zlib, KeyError and ValueError all mean the same here
            raise ArtifactError(f"{self._file}: damaged ({error}); delete it") from error

    def _write(self, known: dict[bytes, Floats]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
        with tempfile.TemporaryDirectory(dir=self._file.parent) as draft:
            written = Path(draft) / "readings.npz"
            np.savez(written, allow_pickle=False, keys=keys, embeddings=np.stack(list(known.values())))
            written.replace(self._file)


def open_encoder(
    network: Path,
    tokenizer: Path,
    *,
    threads: int,
    memory: Path | None,
    tokens: int = ROUTING_TOKENS,
    work: TaskRunner | None = None,
) -> OnnxEncoder | CachedEncoder:
    """The encoder in these two files, with the readings that `memory` holds of the same two."""
    encoder = OnnxEncoder.load(network, tokenizer, threads=threads, tokens=tokens, work=work)
    if memory is None:
        return encoder
    digest = hashlib.sha256(network.read_bytes() + tokenizer.read_bytes()).hexdigest()[:16]
    return CachedEncoder(encoder, memory / f"readings-{digest}.npz")


def _digest_of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
