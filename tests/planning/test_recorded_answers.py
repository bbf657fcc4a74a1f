"""Recorded answers: which are equal, how long they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coe.errors import DataError
from coe.measuring.quality import Quality, read_quality
from coe.measuring.recorded_answers import read_answers
from coe.measuring.tables import write_parquet
from tests.planning.test_quality import SCORES, Rows, folder_of, write

TEXTS = [["1,000.50", "1000.5", "7"], ["B", "(B)", ""], ["Paris", "paris.", "London"], ["50 %", "0.5", "1/2"]]
MODEL_NAMES = ("closed", "large", "small")


def rows_of(texts: list[list[str]] = TEXTS, *, length: str = "output_chars") -> Rows:
    return [
        {"benchmark": "b", "prompt_id": f"p{i}", "model": model, "answer": text, length: 40 * (i + 1)}
        for i, row in enumerate(texts)
        for model, text in zip(MODEL_NAMES, row, strict=True)
    ]


def folder_with(folder: Path, answers: Rows, ending: str = "jsonl") -> tuple[Path, Quality]:
    write(folder_of(folder, ending=ending), "answers", answers, ending)
    return folder, read_quality(folder)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_equal_answers_have_equal_numbers_in_a_row(tmp_path: Path, ending: str) -> None:
    found = read_answers(*folder_with(tmp_path, rows_of()[::-1], ending))
    assert found is not None
    assert found.classes.dtype == np.int64
    assert found.classes.tolist() == [[0, 0, 2], [0, 0, -1], [0, 0, 2], [0, 0, 0]]
    np.testing.assert_allclose(found.tokens, np.tile([[10], [20], [30], [40]], 3))
    assert found.recorded.all()


def test_characters_stand_in_where_tokens_are_missing(tmp_path: Path) -> None:
    answers = [{**row, "output_tokens": 7 if row["model"] == "large" else None} for row in rows_of()]
    found = read_answers(*folder_with(tmp_path, answers))
    assert found is not None
    assert found.tokens.tolist() == [[10, 7, 10], [20, 7, 20], [30, 7, 30], [40, 7, 40]]


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        ('{"a": 1, "b": 2}', '{"b":2.0,"a":1}', '{"a": 1}'),
        ("some long text " * 30, " some  long text " * 30, "another long text " * 30),
        ("3.50", "7/2", "3.5001"),
    ],
)
def test_numbers_json_and_long_texts_are_compared(tmp_path: Path, one: str, other: str, different: str) -> None:
    found = read_answers(*folder_with(tmp_path, rows_of([[one, other, different]] * 4)))
    assert found is not None
    assert found.classes.tolist() == [[0, 0, 2]] * 4


def test_refusals_and_cut_off_programs_are_no_answers(tmp_path: Path) -> None:
    found = read_answers(
        *folder_with(tmp_path, rows_of([["I don't know", "```python\ndef f(", "..."]] * 3 + [["7"] * 3]))
    )
    assert found is not None
    assert found.classes.tolist() == [[-1, -1, -1]] * 3 + [[0, 0, 0]]


def test_written_answers_are_read_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert read_answers(folder, read_quality(folder)) is None
    texts = [
        ["a b", "a b", None],
        ["B", "C", "B"],
        ["tests passed", "tests failed 12", "tests passed"],
        ["1", None, "1"],
    ]
    rows = [
        {"prompt_id": f"p{number}", "model": model, "answer": text, "output_tokens": number}
        for number, row in enumerate(texts)
        for model, text in zip(MODEL_NAMES, row, strict=True)
    ]
    write_parquet(folder / "answers.parquet", rows)
    found = read_answers(folder, read_quality(folder))
    assert found is not None
    assert found.classes.tolist() == [[0, 0, -1], [0, 1, 0], [0, 1, 0], [0, -1, 0]]
    assert found.tokens[:, 0].tolist() == [0, 1, 2, 3]


def test_other_benchmarks_models_and_prompts_left_out_are_ignored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, scores=[row for row in SCORES if (row["prompt_id"], row["model"]) != ("p0", "large")])
    other = {"benchmark": "c", "prompt_id": "far", "model": "large", "answer": "A", "output_chars": 4}
    extra = {"benchmark": "b", "prompt_id": "p1", "model": "unscored", "answer": "A", "output_chars": 4}
    write(folder, "answers", [*rows_of(), other, extra], "jsonl")
    quality = read_quality(folder)
    assert quality.prompt_ids == ("p1", "p2", "p3")
    found = read_answers(folder, quality)
    assert found is not None
    assert found.classes.tolist() == [[0, 0, -1], [0, 0, 2], [0, 0, 0]]


def test_a_missing_row_is_no_answer_and_has_the_usual_length(tmp_path: Path) -> None:
    answers = [row for row in rows_of() if (row["prompt_id"], row["model"]) != ("p0", "small")]
    found = read_answers(*folder_with(tmp_path, answers))
    assert found is not None
    assert found.classes[0].tolist() == [0, 0, -1]
    assert found.tokens[0, 2] == 30
    assert not found.recorded[0, 2]
    assert found.recorded.sum() == 11


@pytest.mark.parametrize("unknown", [None, "inf"])
def test_a_model_without_lengths_has_the_mean_of_all(tmp_path: Path, unknown: str | None) -> None:
    answers = [{**row, "output_chars": unknown} if row["model"] == "small" else row for row in rows_of()]
    found = read_answers(*folder_with(tmp_path, answers))
    assert found is not None
    np.testing.assert_allclose(found.tokens[:, 2], 25)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [{k: v for k, v in row.items() if k != "answer"} for row in rows], "lacks the column answer"),
        (lambda rows: [{k: v for k, v in row.items() if k != "output_chars"} for row in rows], "fill in output_tokens"),
        (lambda rows: [{**row, "output_chars": "long"} for row in rows], "row 1: output_chars is 'long'"),
        (lambda rows: [{**row, "output_chars": None} for row in rows], "no answer has a length"),
        (lambda rows: [{**row, "benchmark": "c"} for row in rows], "no answer has a length"),
    ],
)
def test_bad_tables_are_refused_with_the_file_and_the_count(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    folder, quality = folder_with(tmp_path, spoil(rows_of()))
    with pytest.raises(DataError, match=message) as caught:
        read_answers(folder, quality)
    assert "answers.jsonl" in str(caught.value)
