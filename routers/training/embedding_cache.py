"""A folder that caches ONNX exports and embeddings between trainings on the same encoder.

Exports are keyed by the digest of the encoder's files, embeddings by the digest of network and tokenizer. The cache
grows with every new text and is never evicted.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from coe.errors import ArtifactError
from coe.pinned_weights import digest_of
from routers.calibration import Floats
from routers.encoders import ROUTING_TOKENS, OnnxEncoder
from routers.training.export import EXPORT_VERSION, export_encoder

Progress = Callable[[float], None]


def export_with_cache(source: str, *, network: Path, tokenizer: Path, cache: Path | None) -> None:
    """Export like `export_encoder`, but copy the files of an earlier export of the same folder from `cache`.

    A hub name is always exported, because its files may change.
    """
    if cache is None or not Path(source).is_dir():
        export_encoder(source, network=network, tokenizer=tokenizer)
        return
    cached = cache / f"export-{EXPORT_VERSION}-{digest_of(Path(source))[:16]}"
    if not cached.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as draft:
            exported = Path(draft) / "export"
            exported.mkdir()
            export_encoder(source, network=exported / "network", tokenizer=exported / "tokenizer")
            if not cached.exists():
                exported.rename(cached)
    shutil.copyfile(cached / "network", network)
    shutil.copyfile(cached / "tokenizer", tokenizer)


class IdEncoder(Protocol):
    """The part of OnnxEncoder that CachedEncoder uses."""

    @property
    def dimensions(self) -> int: ...

    @property
    def width(self) -> int: ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]: ...

    def embed_ids(self, token_ids: Sequence[Sequence[int]], progress: Progress | None = None) -> Floats: ...


class CachedEncoder:
    """A coe.core.Encoder that computes only embeddings that `file` lacks, and adds them to it.

    Every method raises ArtifactError if the file is damaged.
    """

    def __init__(self, encoder: IdEncoder, file: Path) -> None:
        self._encoder = encoder
        self._file = file
        self.dimensions, self.width = encoder.dimensions, encoder.width

    def encode(self, texts: Sequence[str]) -> Floats:
        """Embed like `OnnxEncoder.encode`, with cached embeddings."""
        return np.ascontiguousarray(self.features(texts)[:, : self.dimensions])

    def features(self, texts: Sequence[str], progress: Progress | None = None) -> Floats:
        """Compute features like `OnnxEncoder.features`, with cached embeddings."""
        return self.embed_ids(self._encoder.tokenize(texts), progress)

    def embed_ids(self, token_ids: Sequence[Sequence[int]], progress: Progress | None = None) -> Floats:
        """Embed token ids like `OnnxEncoder.embed_ids`; only new ones run the encoder."""
        keys = [hashlib.blake2b(np.array(ids, dtype=np.int64).tobytes(), digest_size=16).digest() for ids in token_ids]
        cached = self._load()
        new = {key: ids for key, ids in zip(keys, token_ids, strict=True) if key not in cached}
        if new:
            cached |= zip(new, self._encoder.embed_ids(list(new.values()), progress), strict=True)
            self._save(cached)
        return np.array([cached[key] for key in keys], dtype=np.float32).reshape(len(keys), self.width)

    def _load(self) -> dict[bytes, Floats]:
        if not self._file.is_file():
            return {}
        try:
            with np.load(self._file, allow_pickle=False) as archive:
                keys, embeddings = archive["keys"], archive["embeddings"]
            return {row.tobytes(): embedding for row, embedding in zip(keys, embeddings, strict=True)}
        except Exception as error:  # zipfile, zlib, KeyError and ValueError all mean the same here
            raise ArtifactError(f"{self._file}: damaged ({error}); delete it") from error

    def _save(self, cached: dict[bytes, Floats]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(cached), dtype=np.uint8).reshape(len(cached), -1)
        with tempfile.TemporaryDirectory(dir=self._file.parent) as draft:
            written = Path(draft) / "embeddings.npz"
            np.savez(written, allow_pickle=False, keys=keys, embeddings=np.stack(list(cached.values())))
            written.replace(self._file)


def open_encoder(
    network: Path,
    tokenizer: Path,
    *,
    threads: int,
    cache: Path | None,
    tokens: int = ROUTING_TOKENS,
) -> OnnxEncoder | CachedEncoder:
    """Open the encoder in these two files, with the embeddings that `cache` holds of the same two."""
    encoder = OnnxEncoder(network, tokenizer, threads=threads, tokens=tokens)
    if cache is None:
        return encoder
    digest = hashlib.sha256(network.read_bytes() + tokenizer.read_bytes()).hexdigest()[:16]
    return CachedEncoder(encoder, cache / f"embeddings-{digest}.npz")
