"""Tables and JSON Lines become rows of probes; a reference suggests its checker."""

from pathlib import Path

import pytest

from coe.errors import DataError
from coe.measuring.probes.imports import rows_of, with_checker
from coe.measuring.probes.probes import probe_of


def test_columns_of_a_table_are_the_fields_of_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(
        "Question,answer,category,checker,note\n"
        '"What is 2, plus 2?",4,math,,x\n'
        "Which letter?,(B),math,,\n"
        "Capital of France?,Paris,,,\n"
        "Pi?,3.14,math,exact,\n"
        f"Explain.,{'word ' * 30},general,,\n"
    )
    places, rows = zip(*rows_of(path), strict=True)
    assert places[0] == f"{path}:2"
    good = [with_checker(row) for row in rows[:4]]
    assert good[0] == {"prompt": "What is 2, plus 2?", "category": "math", "reference": "4", "checker": "numeric"}
    assert [row["checker"] for row in good] == ["numeric", "choice", "contains", "exact"]
    for row in good:
        probe_of({"category": "general"} | row, ("general", "math"))
    with pytest.raises(ValueError, match="empty or free text"):
        with_checker(rows[4])


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
        ("x.csv", b"text,answer\na,b\n", "lacks the column prompt; it has text, answer"),
        ("x.csv", b"prompt\n\xff\n", "cannot be read as CSV"),
        ("x.jsonl", b"{", ":1: not JSON"),
    ],
)
def test_a_file_of_another_format_is_an_error(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        list(rows_of(tmp_path / name))
    assert why in str(raised.value)
    with pytest.raises(DataError, match="no such file"):
        list(rows_of(tmp_path / "missing.csv"))
