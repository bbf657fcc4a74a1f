"""Chunks end between sentences and fit the encoder."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coe.retrieval.indexing import MAX_TOKEN_CHARACTERS, Chunker, normalize_text, sentences
from coe.retrieval.insertion import DocumentKey
from tests.retrieval.samples import WordEncoder

ENCODER = WordEncoder()
KEY = DocumentKey("a", "b")


def chunks(text: str, *, tokens: int = 12, overlap: int = 4) -> list[str]:
    chunker = Chunker(ENCODER, tokens=tokens, overlap=overlap)
    return [chunk.text for chunk in chunker.document(KEY, text, source="", title="").chunks]


def size(text: str) -> int:
    (spans,) = ENCODER.spans([text])
    return sum(-(-(end - start) // MAX_TOKEN_CHARACTERS) for start, end in spans)


def texts_of_sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def test_sentence_boundaries() -> None:
    text = "Dr. Smith found 3.2 mg. It rose, e.g. fast! これはペン。あれは本。 Why?\n\n# A title\nand on"
    found = [part.strip() for part in texts_of_sentences(text) if part.strip()]
    assert found == [
        "Dr. Smith found 3.2 mg.",
        "It rose, e.g. fast!",
        "これはペン。",
        "あれは本。",
        "Why?",
        "# A title\nand on",
    ]


@given(st.text(alphabet=st.sampled_from("ab .!?。\n\t\"'(1é"), max_size=200) | st.text(max_size=100))
def test_sentences_are_the_whole_text(text: str) -> None:
    assert "".join(texts_of_sentences(text)) == text


def test_chunks_are_whole_sentences_and_overlap() -> None:
    text = "One two three. Four five six. Seven eight. Nine ten eleven. Twelve."
    assert chunks(text) == ["One two three. Four five six. Seven eight.", "Seven eight. Nine ten eleven. Twelve."]
    assert chunks(text, overlap=0) == ["One two three. Four five six. Seven eight.", "Nine ten eleven. Twelve."]


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab .!\n-é。"), max_size=400), st.integers(2, 20), st.integers(0, 8))
def test_no_chunk_is_too_long_and_no_word_is_lost(text: str, tokens: int, overlap: int) -> None:
    found = chunks(text, tokens=tokens, overlap=min(overlap, tokens - 1))
    assert all(size(one) <= tokens for one in found)
    assert all(one in text for one in found)
    assert set("".join(text.split())) == set("".join("".join(found).split()))


def test_a_sentence_longer_than_a_chunk_is_split_between_lines_then_words() -> None:
    items = "\n".join(f"- item {number} without a stop" for number in range(6))
    assert all(one.startswith("- item") for one in chunks(items, tokens=14, overlap=0))
    row = " ".join(f"word{number}" for number in range(40))
    assert all(word in row.split() for one in chunks(row) for word in one.split())


def test_ids_are_derived_from_the_content() -> None:
    chunker = Chunker(ENCODER, tokens=12, overlap=0)
    text = "One two three four five six. " * 4
    first = chunker.document(KEY, text, source="s", title="t")
    assert first == chunker.document(KEY, text, source="s", title="t")
    ids = [chunk.id for chunk in first.chunks]
    assert len(set(ids)) == len(ids) == 4
    longer = chunker.document(KEY, text + "And a last one that is new.", source="s", title="t")
    assert [chunk.id for chunk in longer.chunks][:4] == ids
    assert longer.digest != first.digest
    assert not set(ids) & {
        chunk.id for chunk in chunker.document(DocumentKey("a", "b", "c"), text, source="s", title="t").chunks
    }


def test_texts_are_normalized() -> None:
    assert normalize_text("\ufeffa\r\nb\rc\x00d\x1b[0m\ud800e\u0301\x0cf\t") == "a\nb\ncd[0m?é\n\nf\t"
