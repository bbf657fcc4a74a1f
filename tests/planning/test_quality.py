"""Quality data: the three formats, the pool, what is left out, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from coe.errors import DataError
from coe.measuring.quality import column_means, filled, read_quality

Rows = list[dict[str, Any]]

PROMPTS: Rows = [
    {"benchmark": "b", "prompt_id": f"p{i}", "prompt": f"text {i}", "category": "c", "label": "l" if i % 2 else ""}
    for i in range(4)
]
SCORES: Rows = [
    {"benchmark": "b", "prompt_id": f"p{i}", "model": model, "score": value}
    for i in range(4)
    for model, value in (("small", 0.25), ("large", 0.75), ("closed", 1.0))
]
MODELS: Rows = [
    {"benchmark": "b", "model": "small", "active_b": 7},
    {"benchmark": "b", "model": "large", "active_b": 70.5},
    {"benchmark": "b", "model": "closed", "active_b": None},
]
POOL = ["small", "large", "closed"]


def write(folder: Path, name: str, rows: Rows, ending: str) -> None:
    path = folder / f"{name}.{ending}"
    if ending == "jsonl":
        path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    elif ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def folder_of(
    folder: Path, *, prompts: Rows = PROMPTS, scores: Rows = SCORES, models: Rows | None = MODELS, ending: str = "jsonl"
) -> Path:
    write(folder, "prompts", prompts, ending)
    write(folder, "scores", scores, ending)
    if models is not None:
        write(folder, "models", models, ending)
    return folder


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_reads_the_same(tmp_path: Path, ending: str) -> None:
    data = read_quality(folder_of(tmp_path, ending=ending))
    assert data.benchmark == "b"
    assert data.prompts == ("text 0", "text 1", "text 2", "text 3")
    assert data.categories == ("c", "l", "c", "l")
    assert data.models == ("closed", "large", "small")
    np.testing.assert_allclose(data.scores, [[1.0, 0.75, 0.25]] * 4)
    np.testing.assert_allclose(data.active_b, [np.nan, 70.5, 7])


def test_the_pool_can_be_cut_to_models_of_known_size(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert read_quality(folder, max_active_b=1000).models == ("large", "small")
    with pytest.raises(DataError, match="1 model"):
        read_quality(folder, max_active_b=10)
    (folder / "models.jsonl").unlink()
    with pytest.raises(DataError, match=r"no model's size is known; add a table models"):
        read_quality(folder, max_active_b=1000)


def test_models_that_were_not_requested_exclude_no_prompt(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, scores=[*SCORES[1:-1], {**SCORES[-1], "score": None}])
    data = read_quality(folder, only=["small", "large"])
    assert (data.models, data.left_out, data.unscored) == (("large", "small"), 1, ())
    whole = read_quality(folder)  # p0 lacks small, p3 lacks closed
    assert (whole.prompts, whole.left_out) == (("text 1", "text 2"), 2)
    assert read_quality(folder, only=["small", "huge", "large"]).unscored == ("huge",)
    with pytest.raises(DataError, match="no scores of huge, tiny; run `coe score`"):
        read_quality(folder, only=["huge", "tiny"])


def test_a_model_that_shares_no_prompt_with_the_others_is_left_out(tmp_path: Path) -> None:
    few = [row for row in SCORES if row["model"] != "closed" or row["prompt_id"] == "p0"]
    few = [row for row in few if row["model"] == "closed" or row["prompt_id"] != "p0"]
    data = read_quality(folder_of(tmp_path, scores=few), only=POOL)
    assert (data.models, data.unscored, len(data.prompts)) == (("large", "small"), ("closed",), 3)


def test_a_repeated_score_is_averaged(tmp_path: Path) -> None:
    data = read_quality(folder_of(tmp_path, scores=[*SCORES, {**SCORES[0], "score": 0.75}]))
    assert data.scores[0].tolist() == [1.0, 0.75, 0.5]


def test_of_several_benchmarks_one_must_be_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, prompts=[*PROMPTS, {**PROMPTS[0], "benchmark": "other"}])
    with pytest.raises(DataError, match="choose one of b, other"):
        read_quality(folder)
    with pytest.raises(DataError, match="there is no benchmark 'x'"):
        read_quality(folder, benchmark="x")
    assert len(read_quality(folder, benchmark="b").prompts) == 4


def test_a_benchmark_column_may_be_absent(tmp_path: Path) -> None:
    def bare(rows: Rows) -> Rows:
        return [{key: value for key, value in row.items() if key != "benchmark"} for row in rows]

    data = read_quality(folder_of(tmp_path, prompts=bare(PROMPTS), scores=bare(SCORES), models=bare(MODELS)))
    np.testing.assert_allclose(data.active_b, [np.nan, 70.5, 7])
    assert data.scores.shape == (4, 3)


def test_a_prompt_of_any_length_is_read_from_csv(tmp_path: Path) -> None:
    long = "word " * 40_000
    data = read_quality(folder_of(tmp_path, prompts=[{**PROMPTS[0], "prompt": long}, *PROMPTS[1:]], ending="csv"))
    assert data.prompts[0] == long


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scores": [*SCORES, {**SCORES[0], "score": 1.5}]},
            r"1 values of score are outside 0 to 1, 1\.5 of small on prompt p0",
        ),
        ({"scores": [{**SCORES[0], "score": "good"}, *SCORES]}, r"row 1: score is 'good', not a number"),
        ({"scores": [{**row, "prompt_id": "q"} for row in SCORES]}, "no score belongs to one of the prompts"),
        ({"scores": [SCORES[0], SCORES[4], SCORES[8]]}, "no prompt has a score of every model"),
        ({"scores": [{"prompt_id": "p0", "score": 1}]}, "lacks the column model"),
        ({"prompts": [*PROMPTS, PROMPTS[0]]}, "1 prompt_id occur more than once, 'p0'"),
        ({"prompts": [{**row, "label": "", "category": ""} for row in PROMPTS]}, "4 of 4 prompts have neither"),
    ],
)
def test_the_error_for_unusable_data_names_the_problem(tmp_path: Path, change: dict[str, Rows], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_quality(folder_of(tmp_path, **change))


def test_missing_empty_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts file"):
        read_quality(tmp_path)
    folder = folder_of(tmp_path)
    (folder / "scores.jsonl").write_bytes(b"{]\n")
    with pytest.raises(DataError, match=r"scores\.jsonl:1: not JSON"):
        read_quality(folder)
    (folder / "scores.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"scores\.jsonl: holds no rows"):
        read_quality(folder)
    (folder / "prompts.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"prompts\.parquet: cannot be read"):
        read_quality(folder)


def test_means_of_columns_are_of_finite_values_only() -> None:
    values = np.array([[1.0, np.nan, np.inf, np.nan], [3.0, 5.0, 7.0, -np.inf]])
    np.testing.assert_array_equal(column_means(values, 0.5), [2.0, 5.0, 7.0, 0.5])
    np.testing.assert_array_equal(filled(values, [9, 9, 9, 0.5]), [[1.0, 5.0, 7.0, 0.5], [3.0, 5.0, 7.0, 0.5]])
    assert column_means(np.array([4.0, np.inf]), np.nan) == 4.0
    assert np.isnan(column_means(np.array([]), np.nan))
