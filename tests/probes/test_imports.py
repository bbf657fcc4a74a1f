"""Tables and JSON Lines become rows of probes; a reference suggests its checker."""

from pathlib import Path
from typing import Any

import pytest

from coe.errors import DataError
from coe.measuring.probes.imports import rows_of, with_checker
from coe.measuring.probes.probes import probe_of


def rows(path: Path) -> list[Any]:
    return [row for _, row in rows_of(path)]


def test_columns_of_a_table_are_the_fields_of_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(
        "Question,answer,category,tolerance,constraints,checker,note\n"
        '"What is 2, plus 2?",4,math,,,,x\n'
        "Which letter?,(B),math,,,,\n"
        "Capital of France?,Paris,,,,,\n"
        'Four words,,general,,"{""words"": 4}",constraints,\n'
        "Pi?,3.14,math,.01,,numeric,\n"
        "Pi?,3.14,math,much,,numeric,\n"
        f"Explain.,{'word ' * 30},general,,,,\n"
    )
    found = list(rows_of(path))
    assert found[0][0] == f"{path}:2"
    good = [with_checker(row) for _, row in found[:5]]
    assert good[0] == {"prompt": "What is 2, plus 2?", "category": "math", "reference": "4", "checker": "numeric"}
    assert [row["checker"] for row in good] == ["numeric", "choice", "contains", "constraints", "numeric"]
    for row in good:
        probe_of({"category": "general"} | row, ("general", "math"))
    with pytest.raises(ValueError, match="`tolerance` is a relative error"):
        probe_of(found[5][1], ("general", "math"))
    with pytest.raises(ValueError, match="empty or free text"):
        with_checker(found[6][1])


def test_lines_of_json_are_rows_of_probes(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"prompt": "2 + 2?", "reference": 4, "checker": null}\n\n{"messages": []}\n3\n')
    assert [place for place, _ in rows_of(path)] == [f"{path}:{line}" for line in (1, 3, 4)]
    number, chat, other = map(with_checker, rows(path))
    assert number == {"prompt": "2 + 2?", "reference": "4", "checker": "numeric"}
    assert (chat, other) == ({"messages": []}, 3)


@pytest.mark.parametrize(
    ("reference", "checker"),
    [
        *(("4", "numeric"), ("-3.5", "numeric"), ("$5", "numeric"), ("12 kg", "numeric"), ("C", "choice")),
        *(("Paris", "contains"), ("12 angry men", "contains"), ("I", "choice"), ("1, 2", "contains")),
    ],
)
def test_a_reference_suggests_its_checker(reference: str, checker: str) -> None:
    assert with_checker({"prompt": "x", "reference": reference})["checker"] == checker


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.csv", b"", "lacks the column prompt"),
        ("x.csv", b"text,answer\na,b\n", "it has text, answer"),
        ("x.csv", b"prompt\n\xff\n", "cannot be read as CSV"),
        ("x.jsonl", b"{", ":1: not JSON"),
    ],
)
def test_a_file_of_another_format_is_an_error(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        rows(tmp_path / name)
    assert why in str(raised.value)
    with pytest.raises(DataError, match="no such file"):
        rows(tmp_path / "missing.csv")
