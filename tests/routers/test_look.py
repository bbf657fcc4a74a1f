"""A look at the encoder begins with what a glance has seen, and sees what training did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

import routers
from routers.cascade import load_cascade
from routers.cheap import CheapHeads
from routers.encoders import OnnxEncoder
from routers.pieces import frame, load_tokenizer
from tests.routers.conftest import WORDS, sentences

Built = tuple[Path, dict[str, Any], list[Any]]
TEXTS = [*(sentences(name, count=1, seed=7)[0] for name in WORDS), "", "é 中 bake Россия", "bake the bread, " * 200]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_a_look_reads_what_the_encoder_reads_of_a_text(built: Built, text: str) -> None:
    router = load_cascade(built[0], threads=1)
    looked, read = router.study([text]), router.study([text], readings=router.encoder.read([text]))
    np.testing.assert_array_equal(looked.vectors, read.vectors)
    for name, logits in read.heads.items():
        np.testing.assert_array_equal(looked.heads[name], logits)


def test_a_text_is_glanced_at_once(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    see = CheapHeads._see

    def counted(self: CheapHeads, text: str) -> Any:
        seen.append(text)
        return see(self, text)

    monkeypatch.setattr(CheapHeads, "_see", counted)
    router = routers.load(built[0])
    for text in ("bake", "orbit", "bake"):
        router.peek(text, hurried=True)
        router.predict([text])
    assert seen == ["bake", "orbit", "bake"]


def test_a_text_is_framed_as_its_tokenizer_does(built: Built) -> None:
    tokenizer = load_tokenizer(built[0] / "tokenizer.json")
    encoder = OnnxEncoder(built[0] / "encoder.onnx", tokenizer, tokens=8, characters=1000)
    assert encoder.tokenize(["bake the bread"]) == [tokenizer.encode("bake the bread").ids]
    (cut,) = encoder.tokenize(["bake " * 20])
    whole = tokenizer.encode("bake " * 20).ids
    assert cut == [*whole[:7], whole[-1]]


@pytest.mark.parametrize(
    ("template", "before", "behind"),
    [("$A", [], []), ("[CLS] $A", [2], []), ("$A [SEP]", [], [3]), ("[CLS] [CLS] $A [SEP]", [2, 2], [3])],
)
def test_special_tokens_are_known_by_their_side(
    built: Built, template: str, before: list[int], behind: list[int]
) -> None:
    tokenizer = load_tokenizer(built[0] / "tokenizer.json")
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    assert frame(tokenizer) == (before, behind)
