"""Data that cannot train a router, and the error messages."""

from pathlib import Path

import pytest

import routers
from coe.errors import DataError


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "fewer than two categories"),
        ([("a", "x"), ("b", "x")], "x: 2"),
        ([("a", "x"), ("b", "x"), ("c", "y")], "y: 1"),
        ([("a", "x"), ("b", "x"), ("c", "y"), ("c", "y"), ("a", "y")], "y: 1"),
        (
            [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "x"), ("e", "z")],
            "x: 2, y: 2, z: 0; 1 contradictory: the same prompt under two categories",
        ),
        ([("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), (" ", "z")], "z: 0"),
    ],
    ids=[
        *("no data", "one class", "one prompt in a class", "one prompt left in a class"),
        *("a class contradicted away", "a class of blanks"),
    ],
)
def test_insufficient_data_is_rejected_with_counts(rows: list[tuple[str, str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        routers.build([routers.Example(*row) for row in rows], out=tmp_path / "out")
