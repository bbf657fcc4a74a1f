"""Reading probe files, good and bad."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from coe.errors import DataError
from coe.measuring.probes import read_probes

GOOD = {"prompt": "2 + 2?", "category": "math", "checker": "numeric", "reference": "4"}
CHAT = {"category": "math", "checker": "judge"}
CATEGORIES = ("math", "code", "general")


def written(folder: Path, *rows: object) -> Path:
    path = folder / "probes.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_every_kind_of_probe_is_read(tmp_path: Path) -> None:
    rows = [
        GOOD | {"id": "sum"},
        GOOD | {"prompt": "letter?", "checker": "choice", "reference": "B"},
        GOOD | {"prompt": "word?", "checker": "exact"},
        GOOD | {"prompt": "words?", "checker": "contains"},
        {"prompt": "code", "category": "code", "checker": "code", "tests": "assert f(1) == 2"},
        {"prompt": "poem", "category": "general", "checker": "judge"},
    ]
    probes = read_probes(written(tmp_path, *rows), categories=CATEGORIES)
    assert [probe.checker for probe in probes] == ["numeric", "choice", "exact", "contains", "code", "judge"]
    assert probes[0].prompt_id == "sum"
    assert len({probe.prompt_id for probe in probes}) == len({probe.digest for probe in probes}) == 6


def test_tables_read_as_json_lines_do(tmp_path: Path) -> None:
    rows = [GOOD, {"messages": [{"role": "user", "content": "x"}], "category": "general", "checker": "judge"}]
    columns = {"tests": None, "messages": None, "id": None, "tolerance": None}
    parquet.write_table(pyarrow.Table.from_pylist([columns | rows[0], rows[1]]), tmp_path / "probes.parquet")
    from_parquet = read_probes(tmp_path / "probes.parquet", categories=CATEGORIES)
    assert from_parquet == read_probes(written(tmp_path, *rows), categories=CATEGORIES)
    table = 'category,checker,reference,tests,tolerance,prompt\nmath,numeric,4,,0.1,2 + 2?\nmath,judge,,,,"Why, so?"\n'
    (tmp_path / "probes.csv").write_text(table)
    rows = [GOOD | {"tolerance": 0.1}, CHAT | {"prompt": "Why, so?"}]
    from_csv = read_probes(tmp_path / "probes.csv", categories=CATEGORIES)
    assert from_csv == read_probes(written(tmp_path, *rows), categories=CATEGORIES)


def test_a_conversation_is_sent_whole_and_stored_as_its_routing_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "so"}]
    row = {"messages": [*turns, {"role": "user", "content": "last"}], "category": "general", "checker": "judge"}
    (probe,) = read_probes(written(tmp_path, row), categories=CATEGORIES)
    assert len(probe.messages) == 3
    assert probe.prompt.splitlines()[0] == "last"


def test_the_digest_covers_what_the_score_depends_on_and_nothing_else(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        return read_probes(written(tmp_path, GOOD | changes), categories=CATEGORIES)[0].digest

    assert digest() == digest(category="general") == digest(id="x")
    different = {
        digest(),
        digest(prompt="3 + 3?"),
        digest(reference="5"),
        digest(checker="exact"),
        digest(tolerance=0.1),
    }
    assert len(different) == 5


@pytest.mark.parametrize(
    ("row", "output"),
    [
        ([], "expected an object"),
        (GOOD | {"prompt": " "}, "`prompt`: String should match"),
        (GOOD | {"messages": [{"role": "user", "content": "x"}]}, "either `prompt`"),
        (CHAT | {"messages": [{"role": "robot", "content": "x"}]}, "`messages.0.role`: Input should be 'system'"),
        (CHAT | {"messages": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        (GOOD | {"category": "maths"}, "declares (math, code, general), not 'maths'"),
        (GOOD | {"checker": "numerical"}, "`checker`: Input should be 'exact'"),
        (GOOD | {"reference": None}, "needs a `reference`"),
        (GOOD | {"reference": "four"}, "must hold a number"),
        (GOOD | {"reference": "3,5"}, "must have a decimal point, for a comma may part a list: write 3.5"),
        (GOOD | {"reference": "2 und 3"}, "must be one number, without others next to it"),
        (GOOD | {"checker": "choice", "reference": "K"}, "letter from A to J"),
        (GOOD | {"checker": "exact", "reference": "..."}, "more than punctuation"),
        (GOOD | {"checker": "code"}, "needs `tests`"),
        (GOOD | {"checker": "code", "tests": "assert f(:"}, "not Python"),
        (GOOD | {"checker": "code", "tests": "assert " + "-" * 100_000 + "1"}, "not Python"),
        (GOOD | {"tolerance": -1}, "`tolerance`: Input should be greater"),
        (GOOD | {"id": []}, "`id."),
    ],
)
def test_a_bad_probe_is_named_with_its_line_and_the_remedy(tmp_path: Path, row: object, output: str) -> None:
    path = written(tmp_path, GOOD, row)
    with pytest.raises(DataError) as raised:
        read_probes(path, categories=CATEGORIES)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert output in str(raised.value)


def test_all_bad_probes_are_named_at_once_but_not_thousands(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_probes(written(tmp_path, *({} for _ in range(50))), categories=CATEGORIES)
    assert str(raised.value).count("\n") == 20


@pytest.mark.parametrize(
    ("content", "output"),
    [("", "holds no probes"), ("{", ":1: not JSON"), (f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}", ":2: the same id or")],
)
def test_an_unusable_file_is_an_error_with_the_reason(tmp_path: Path, content: str, output: str) -> None:
    with pytest.raises(DataError, match=output):
        read_probes(written(tmp_path, content), categories=CATEGORIES)


def test_a_missing_file_and_a_file_that_is_no_parquet_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_probes(tmp_path / "none.jsonl", categories=CATEGORIES)
    (tmp_path / "x.parquet").write_text("nonsense")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_probes(tmp_path / "x.parquet", categories=CATEGORIES)
