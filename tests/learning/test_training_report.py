"""The report of `coe train`, the comparison with the router in use, and proposed categories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import routers
from coe.core import Prediction
from coe.learning import support
from coe.learning.router_comparison import compare
from coe.learning.support import with_support
from coe.reports import novelty
from coe.reports.training import macro_recall, weakest
from routers.examples import build_training_set
from tests.fakes import registry_of

CONFUSION = {"categories": ["billing", "coding", "shipping", "general"], "counts": [
    [40, 0, 10, 0], [0, 9, 0, 3], [10, 0, 40, 0], [0, 0, 0, 500]]}  # fmt: skip


def test_the_headline_weighs_categories_alike_and_the_weakest_get_the_advice_that_fits() -> None:
    value, error = macro_recall(CONFUSION)
    assert value == np.mean([0.8, 0.75, 0.8, 1.0])  # .98 of all prompts are right
    assert 0.02 < error < 0.06
    coding, billing, shipping = weakest(CONFUSION)
    assert (
        coding.sentence == "coding: 75% of 12 prompts right, 25% taken for general; add examples (30 or more work well)"
    )
    assert billing.advice.startswith("merge it with shipping")
    assert shipping.taken_for == "billing"


def predictions(folder: Path, named: Mapping[str, str]) -> Path:
    folder.mkdir()
    (folder / "held_out.json").write_text(
        json.dumps({routers.prompt_digest(text): name for text, name in named.items()})
    )
    return folder


def test_a_router_that_is_worse_on_the_same_held_out_prompts_is_a_loss_and_noise_is_none(tmp_path: Path) -> None:
    pairs = [(f"prompt {n} of {name}", name) for name in ("code", "art") for n in range(40)]
    right = predictions(tmp_path / "right", dict(pairs))
    worse = predictions(
        tmp_path / "worse", {text: name if n % 4 else "general" for n, (text, name) in enumerate(pairs)}
    )
    near = predictions(tmp_path / "near", {text: name if n else "art" for n, (text, name) in enumerate(pairs)})
    used: Any = SimpleNamespace(folder=right)
    lost = compare(worse, used, registry_of(), pairs)
    assert (lost.is_loss, lost.gain, lost.prompts) == (True, -0.25, 80)
    assert not compare(near, used, registry_of(), pairs).is_loss
    used.folder = worse
    assert compare(right, used, registry_of(), pairs).gain == 0.25


def embed(texts: Any) -> Any:
    """Texts near an axis for what they are about: programs, or anything else."""
    words = ("code", "python", "function", "sql", "bug", "script")
    about = np.array([any(word in text.lower() for word in words) for text in texts], dtype=np.float32)
    noise = np.random.default_rng(0).normal(scale=0.05, size=(len(texts), 2)).astype(np.float32)
    return np.column_stack((about, 1 - about)) + noise


ENCODER: Any = SimpleNamespace(features=lambda texts, progress=None: embed(texts), dimensions=2)


def test_a_category_with_few_prompts_gets_its_description_and_shipped_prompts_of_its_topic() -> None:
    own = [routers.Example(f"python function {n}", "programs") for n in range(8)]
    rest = [one for one in routers.starter_examples() if one.category == "general"][:80]
    given = build_training_set([*own, *rest])
    grown = with_support(given, ENCODER, descriptions={"programs": "Python code"})
    assert grown.declared.sum() == len(given.texts)
    assert "programs: Python code" in grown.texts
    joined = {
        text for text, label in zip(grown.texts, grown.labels, strict=True) if grown.categories[label] == "programs"
    }
    shipped = {one.prompt for one in routers.starter_examples() if one.category == "code"}
    assert len(joined & shipped) > 100
    many = build_training_set([routers.Example(f"python function {n}", "programs") for n in range(60)] + rest)
    assert with_support(many, ENCODER, descriptions={}) is many


def test_categories_that_share_a_shipped_topic_divide_its_prompts(monkeypatch: Any) -> None:
    axes = {"atom": (1, 1, 0, 0, 0), "cell": (1, 0, 1, 0, 0), "court": (0, 0, 0, 1, 0), "hello": (0, 0, 0, 0, 1)}
    axes |= {"physics:": axes["atom"], "life:": axes["cell"]}  # the names with their descriptions

    def features(texts: Any) -> Any:
        noise = np.random.default_rng(0).normal(scale=0.05, size=(len(texts), 5))
        return np.array([axes[text.split()[0]] for text in texts]) + noise

    topics = (("atom", "science"), ("cell", "science"), ("court", "law"))
    shipped = [routers.Example(f"{word} {n}", name) for word, name in topics for n in range(40)]
    monkeypatch.setattr(support, "starter_examples", lambda: shipped)
    own = (("atom", "physics", 8), ("cell", "life", 8), ("hello", "general", 60))
    given = build_training_set(
        [routers.Example(f"{word} of mine {n}", name) for word, name, count in own for n in range(count)]
    )
    encoder: Any = SimpleNamespace(features=features, dimensions=5)
    grown = with_support(given, encoder, descriptions={})
    joined = {text: grown.categories[label] for text, label in zip(grown.texts, grown.labels, strict=True)}
    assert {joined[f"atom {n}"] for n in range(40)} == {"physics"}
    assert {joined[f"cell {n}"] for n in range(40)} == {"life"}


def test_prompts_of_a_shipped_category_that_is_not_declared_become_a_proposal(monkeypatch: Any) -> None:
    shipped = [
        routers.Example(f"{word} {n}", name)
        for word, name in (("sql", "code"), ("hello", "general"))
        for n in range(40)
    ]

    class General:
        categories = ("art", "general")

        def predict(self, texts: Any) -> list[Prediction]:
            return [Prediction(np.array([0.01, 0.99], dtype=np.float32), "fast") for _ in texts]

    monkeypatch.setattr(routers, "starter_examples", lambda: shipped)
    monkeypatch.setattr(routers, "load_encoder", lambda *_, **__: ENCODER)
    monkeypatch.setattr(novelty, "load_router", lambda *_: General())
    texts = [f"sql query {n}" for n in range(20)] + [f"good morning {n}" for n in range(20)]
    artifact: Any = SimpleNamespace(folder=Path())
    registry: Any = SimpleNamespace(category_names=("art", "general"))
    count, (proposal,) = novelty.propose_categories(registry, artifact, texts)
    assert (count, proposal.name, proposal.prompts, proposal.routed) == (40, "code", 20, {"general": 1.0})
    assert set(proposal.terms) == {"sql", "query"}
    assert set(proposal.examples) <= set(texts[:20])
