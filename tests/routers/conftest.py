"""Fixtures: a sentence encoder small enough to train a router in seconds, and the folder of that router.

Each is made once for all test processes of a run, and for the other folders that import these fixtures.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import routers
from routers.heads import LexicalHead
from routers.training.export import export_encoder

WORDS = {
    "cooking": (
        "bake",
        "bread",
        "oven",
        "flour",
        "butter",
        "sugar",
        "recipe",
        "stew",
        "onion",
        "garlic",
        "roast",
        "dough",
    ),
    "astronomy": (
        "star",
        "planet",
        "orbit",
        "comet",
        "galaxy",
        "moon",
        "eclipse",
        "nebula",
        "mars",
        "gravity",
        "lunar",
    ),
    "football": ("goal", "striker", "penalty", "referee", "pitch", "keeper", "league", "offside", "corner", "tackle"),
}
COMMON = (
    "how",
    "do",
    "i",
    "the",
    "a",
    "what",
    "is",
    "my",
    "for",
    "of",
    "to",
    "explain",
    "please",
    "with",
    "tell",
    "me",
)
UNSEEN_WORDS = ("pawn", "rook", "bishop", "knight", "castle", "checkmate", "gambit", "opening")
"""Words of the category chess, which no router in these tests is trained on."""


def sentences(category: str, *, count: int, seed: int) -> list[str]:
    rng = random.Random(f"{category} {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        words = rng.sample(COMMON, 4) + rng.sample(WORDS.get(category, UNSEEN_WORDS), 2)
        rng.shuffle(words)
        found[" ".join(words)] = None
    return list(found)


def examples(*, count: int = 40, seed: int = 0) -> list[routers.Example]:
    return [routers.Example(text, name) for name in WORDS for text in sentences(name, count=count, seed=seed)]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, in the first test process of the run that needs it; others wait meanwhile."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = folder.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)  # of a process that failed
            draft.mkdir()
            make(draft)
            draft.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers with small weights, so that word embeddings dominate."""
    return made_once(tmp_path_factory, "bert", lambda base: save_bert(base, layers=3, spread=0.003)) / "saved"


def save_bert(
    base: Path, *, layers: int, spread: float, causal: bool = False, family: str = "Bert", positions: int = 512
) -> Path:
    """Save a BERT (or another `family`) with random weights of standard deviation `spread`, in the layout of
    sentence-transformers. `causal` hides later tokens."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = [*COMMON, *UNSEEN_WORDS, *(word for found in WORDS.values() for word in found)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *words]
    vocabulary = list(dict.fromkeys(vocabulary))
    (base / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=spread,
        is_decoder=causal,
    )
    getattr(transformers, f"{family}Model")(config).eval().save_pretrained(base)
    transformers.BertTokenizerFast(str(base / "vocab.txt")).save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=256)
    folder = base / "saved"
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def built(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    """The folder of a router trained on `training_rows()`, its metrics, and the calls of `progress`."""
    made = made_once(tmp_path_factory, "built", lambda base: _build(base, tiny_encoder))
    metrics, progress_calls = json.loads((made / "report.json").read_text())
    return made / "router", metrics, [tuple(call) for call in progress_calls]


def training_rows() -> list[routers.Example]:
    """`examples()` and some bad rows."""
    good = examples()
    bad = [
        good[0],
        routers.Example("  \n", "cooking"),
        routers.Example("bake a star", "cooking"),
        routers.Example("bake a star", "astronomy"),
        routers.Example("stew " * 200_000, "cooking"),
        routers.Example("\x00\x07 orbit \ud800", "astronomy"),
    ]
    return [*good, *bad]


def _build(base: Path, encoder: Path) -> None:
    """Train into `router`; what `routers.build` returned and reported goes to report.json."""
    progress_calls: list[tuple[str, float]] = []
    (base / "router").mkdir()
    metrics = routers.build(
        training_rows(),
        encoder=str(encoder),
        out=base / "router",
        progress=lambda stage, share: progress_calls.append((stage, share)),
        threads=1,
    )
    (base / "report.json").write_text(json.dumps([metrics, progress_calls]))


@pytest.fixture
def exported(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings copy one export of the tiny encoder: each saves 9 s of processor time."""

    def make(base: Path) -> None:
        export_encoder(str(tiny_encoder), network=base / "network", tokenizer=base / "tokenizer")

    made = made_once(tmp_path_factory, "exported", make)

    def copied(encoder: str, *, network: Path, tokenizer: Path) -> None:
        shutil.copyfile(made / "network", network)
        shutil.copyfile(made / "tokenizer", tokenizer)

    monkeypatch.setattr("routers.training.export.export_encoder", copied)


@pytest.fixture
def folder(built: tuple[Path, dict[str, Any], list[Any]], tmp_path: Path) -> Path:
    """A copy of the built router's folder, for tests that damage it."""
    return Path(shutil.copytree(built[0], tmp_path / "router"))


def lexical_score(head: LexicalHead, text: str, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], float]:
    """Logits (n_categories,) of a text and its share of known terms, computed plainly from the tables of `head`."""
    logits = head.bias + head.features.dense(text, ids) @ head.dense
    if not len(ids):
        return logits, 0.0
    rows, counts = head.features.terms(ids)
    counts *= head.idf[rows]
    squares = float(counts @ counts)
    logits += (counts @ head.weights[rows]) / np.float32(squares**0.5)
    return logits, float(counts**2 @ head.known[rows]) / squares
