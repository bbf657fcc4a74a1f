"""The benchmark: its report, its bounds, rare categories, unknown sizes and baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.cli.benchmark import _lines
from coe.core import Neighbour, Prediction
from coe.errors import DataError
from coe.measuring.benchmark import benchmark
from coe.measuring.quality import Difference, Quality, clustered_mean, paired_difference
from coe.measuring.recorded_answers import RecordedAnswers


class FirstWord:
    """A router that classifies by the first word, with high confidence."""

    version = "test"

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.categories = tuple(sorted({category for _, category in pairs}))

    def predict_fast(self, text: str) -> Prediction:
        return self.predict([text])[0]

    def predict(
        self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None, encode: bool = False
    ) -> list[Prediction]:
        return [Prediction(self._posterior(text.split()[0]), "test") for text in texts]

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        return []

    def _posterior(self, word: str) -> NDArray[np.float32]:
        certain = [float(category == word) or 0.01 for category in self.categories]
        return np.array(certain, dtype=np.float32) / np.float32(sum(certain))


def made_up(*, rare: int = 0) -> Quality:
    """400 prompts: `small` is right on code, `large` on law; `rare` prompts more of a category of their own."""
    rng = np.random.default_rng(0)
    categories = ["code", "law"] * 200 + ["rare"] * rare
    skill = {"code": (0.9, 0.2, 0.5), "law": (0.2, 0.8, 0.5), "rare": (0.5, 0.5, 0.5)}
    return Quality(
        benchmark="made up",
        prompts=tuple(f"{category} question {i}" for i, category in enumerate(categories)),
        categories=tuple(categories),
        models=("small", "large", "closed"),
        scores=np.array([rng.random(3) < skill[category] for category in categories], dtype=np.float64),
        active_b=np.array([7.0, 70.0, 30.0]),
        left_out=3,
    )


class CodeOrNot:
    """An encoder whose vectors say whether a text is about code."""

    dimensions = 2

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.features(texts)[:, :2]

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(len(texts))
        vectors = [[1.0, 0.0] if text.startswith("code") else [0.0, 1.0] for text in texts]
        return np.array([[*vector, *vector] for vector in vectors], dtype=np.float32)


def run(data: Quality, work: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"train_router": lambda pairs, folder: FirstWord(pairs), "encoder": CodeOrNot()} | options
    return benchmark(data, work=work, **given)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(made_up(), tmp_path_factory.mktemp("work"))


def test_the_report_has_the_documented_shape_and_is_json(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert (report["benchmark"], report["prompts"], report["models"], report["splits"]) == ("made up", 400, 3, 5)
    assert (report["left_out"], report["seeds"]) == (3, [0, 1, 2, 3, 4])
    assert list(report["methods"]) == [
        *("random", "best_single", "knn", "ridge"),
        *("coe_hard", "coe_categories", "coe", "class_map_on_test", "oracle"),
    ]
    for name, found in report["methods"].items():
        assert set(found) == {"mean", "standard_error", "mean_active_b", "against"}
        assert set(found["against"]) == {"best_single", "coe"} - {name}


def test_routing_by_category_earns_what_the_right_experts_earn(report: dict[str, Any]) -> None:
    mean = {name: found["mean"] for name, found in report["methods"].items()}
    assert mean["coe"] == pytest.approx(0.85, abs=0.04)
    assert mean["coe"] == mean["coe_hard"] == mean["class_map_on_test"]
    assert mean["random"] < mean["best_single"] < mean["coe"] < mean["oracle"]
    assert report["gap_closed"] == pytest.approx(
        (mean["coe"] - mean["best_single"]) / (mean["oracle"] - mean["best_single"])
    )
    assert report["methods"]["coe"]["mean_active_b"] == pytest.approx(38.5, abs=3)


def test_nothing_about_size_is_invented_where_a_size_is_not_known(tmp_path: Path) -> None:
    data = made_up()
    data.active_b[2] = np.nan
    report = run(data, tmp_path)
    assert report["methods"]["random"]["mean_active_b"] is None
    assert report["methods"]["coe"]["mean_active_b"] == pytest.approx(38.5, abs=3)
    assert json.dumps(report, allow_nan=False)


def trained_labels(data: Quality, work: Path) -> set[str]:
    """The categories that a router is trained on."""
    seen: set[str] = set()

    def train(pairs: Sequence[tuple[str, str]], folder: Path) -> FirstWord:
        seen.update(category for _, category in pairs)
        return FirstWord(pairs)

    run(data, work, train_router=train, seeds=(0,))
    return seen


def test_a_rare_label_joins_its_category_before_the_general_one(tmp_path: Path) -> None:
    assert trained_labels(made_up(rare=4), tmp_path / "few") == {"code", "law"}
    data = made_up(rare=30)
    labels = tuple(f"tag {number}" if name == "rare" else name for number, name in enumerate(data.categories))
    assert trained_labels(replace(data, categories=labels), tmp_path / "none") == {"code", "law", "general"}
    coarse = tuple("wide" if name == "rare" else "other" for name in data.categories)
    assert trained_labels(replace(data, categories=labels, coarse=coarse), tmp_path / "some") == {"code", "law", "wide"}


def test_prompts_that_teach_nothing_do_not_make_a_category(tmp_path: Path) -> None:
    data = made_up(rare=60)
    same = ("hello",) * 30 + ("bye",) * 30
    prompts = (*data.prompts[:400], *same)
    assert trained_labels(replace(data, prompts=prompts), tmp_path / "same") == {"code", "law"}
    law = tuple("law" if name == "code" else name for name in data.categories)
    with pytest.raises(DataError, match="made up: fewer than two categories have 8 different prompts"):
        trained_labels(replace(data, prompts=prompts, categories=law), tmp_path / "one")
    few = replace(data, prompts=data.prompts[:15], categories=("x",) * 15, scores=data.scores[:15])
    with pytest.raises(DataError, match="made up: fewer than 16 different prompts"):
        run(few, tmp_path)


def test_prompts_are_embedded_once_and_the_same_seeds_give_the_same_scores(tmp_path: Path) -> None:
    encoder = CodeOrNot()
    first, second = (run(made_up(), tmp_path, encoder=encoder, seeds=(1, 2))["methods"] for _ in range(2))
    assert encoder.calls == [400, 400]
    assert first == second


def coarse_pool(kind: str) -> Quality:
    """600 prompts of two categories. `hidden`: a kind of prompt that no category names decides which model is right;
    `named`: the category decides; `saturated`: nearly all answers are right."""
    rng = np.random.default_rng(1)
    words = [("code", "law")[number % 2] for number in range(600)]
    side = np.array([number // 2 % 2 for number in range(600)])
    first = {"hidden": side, "named": np.array([word == "code" for word in words]), "saturated": np.zeros(600)}[kind]
    low, high = (0.96, 0.98) if kind == "saturated" else (0.3, 0.8)
    chance = np.column_stack((np.where(first, high, low), np.where(first, low, high), np.full(600, (low + high) / 2)))
    return Quality(
        benchmark=kind,
        prompts=tuple(
            f"{word} {'inner' if one else 'outer'} {i}" for i, (word, one) in enumerate(zip(words, side, strict=True))
        ),
        categories=tuple(words),
        models=("small", "large", "closed"),
        scores=(rng.random((600, 3)) < chance).astype(np.float64),
        active_b=np.array([7.0, 70.0, 30.0]),
        left_out=0,
    )


class InnerOrOuter(CodeOrNot):
    """An encoder whose vectors say a kind of prompt that no category names, and the category, with some noise."""

    dimensions = 8

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.features(texts)

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        noise = np.array([np.random.default_rng(abs(hash_of(text))).normal(size=8) for text in texts]) * 0.2
        noise[:, 0] += ["inner" in text for text in texts]
        noise[:, 1] += ["outer" in text for text in texts]
        noise[:, 2] += [text.startswith("code") for text in texts]
        return np.asarray(noise / np.linalg.norm(noise, axis=1, keepdims=True), dtype=np.float32)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-8:], "big")


@pytest.mark.parametrize("kind", ["hidden", "saturated"])
def test_nowhere_below_a_simple_rival(tmp_path: Path, kind: str) -> None:
    def train(pairs: Sequence[tuple[str, str]], folder: Path) -> FirstWord:
        return EncodedFirstWord(pairs)

    methods = run(coarse_pool(kind), tmp_path, encoder=InnerOrOuter(), train_router=train)["methods"]
    for rival in ("best_single", "knn", "ridge", "coe_categories"):
        assert methods[rival]["against"]["coe"]["verdict"] != "better", (rival, methods[rival])
    if kind == "hidden":
        assert methods["coe"]["mean"] > methods["coe_categories"]["mean"] + 0.15


class EncodedFirstWord(FirstWord):
    """Predicts by the first word, with the features of InnerOrOuter on request."""

    def predict(
        self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None, encode: bool = False
    ) -> list[Prediction]:
        found = super().predict(texts)
        if not encode:
            return found
        return [replace(one, features=row) for one, row in zip(found, InnerOrOuter().features(texts), strict=True)]


def test_a_difference_is_paired_by_prompt_and_level_below_two_errors(report: dict[str, Any]) -> None:
    against = {name: found["against"] for name, found in report["methods"].items()}
    assert against["random"]["coe"]["verdict"] == "worse"
    assert against["coe"]["best_single"]["verdict"] == "better"
    assert against["coe_hard"]["coe"] == {"difference": 0.0, "standard_error": 0.0, "verdict": "level"}
    assert Difference(0.019, 0.01).verdict == "level"
    assert Difference(-0.021, 0.01).verdict == "worse"
    assert Difference(0.3, float("nan")).verdict == "level"


def test_the_error_of_a_mean_counts_a_prompt_of_several_splits_once() -> None:
    rng = np.random.default_rng(0)
    prompts, values = np.arange(500), rng.random(500)
    once, thrice = (clustered_mean([values] * n, [prompts] * n) for n in (1, 3))
    assert once.error == pytest.approx(values.std(ddof=1) / 500**0.5)
    assert thrice.value == pytest.approx(once.value)
    assert thrice.error == pytest.approx(once.error)
    pair = paired_difference([values + 0.1], [values], [prompts])
    assert pair.value == pytest.approx(0.1)
    assert pair.error == pytest.approx(0.0, abs=1e-12)


def test_a_prompt_of_several_splits_counts_once_in_the_gains_of_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = (np.random.default_rng(1).random((400, 3)) < (0.7, 0.8, 0.7)).astype(np.float64)
    data = replace(made_up(), scores=scores)
    classes = np.where(data.scores > 0, 0, [1, 2, 3])
    recorded = RecordedAnswers(classes, np.full(classes.shape, 100.0), np.ones(classes.shape, dtype=np.bool_))
    once, twice = (run(data, tmp_path, seeds=seeds, recorded=recorded) for seeds in ((0,), (0, 0)))
    rows = [report["recipes"]["at_shares_of_best_single"]["0.5"] for report in (once, twice)]
    assert rows[0] == pytest.approx(rows[1])
    assert rows[0]["standard_error"] > 0
    assert "0.5 x the best single model" in "\n".join(_lines(twice))
