"""Writes routing records with their feedback to a file for `coe log export`: JSON Lines (`.jsonl`) or parquet.

Both formats have the same columns: the fields of a record, and those of its rating.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError
from coe.learning.log_frame import Row, frame_schema, to_table
from coe.records.codec import RECORD

SUFFIXES = (".jsonl", ".parquet")
ROW_GROUP_SIZE = 10_000
"""Rows of a parquet row group, which is held in memory: about 40 MB without prompts and embeddings."""
REDACTED: dict[str, Any] = {"digest": "", "prompt": None, "left_out": (), "embedding": None}
"""Values in place of the fields that hold or reveal the user's text."""


def write_rows(path: Path, rows: Iterable[Row], *, redact: bool = False) -> int:
    """Write the rows to `path` in one step and return their number; with `redact` without the fields of REDACTED.

    An error or an interruption leaves no partial file. Raises DataError where the file cannot be written.
    """
    if redact:
        rows = ((replace(record, **REDACTED), rating) for record, rating in rows)
    path = path.resolve()  # a link stays a link
    draft = path.with_name(f".{path.name}.draft")  # the next run overwrites the draft of a killed one
    try:
        count = _write_parquet(draft, rows) if path.suffix == ".parquet" else _write_jsonl(draft, rows)
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check its folder and the free disk space") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return count


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("wb") as file:
        for record, rating in rows:
            file.write(
                orjson.dumps(RECORD.adapter.dump_python(record, mode="json", warnings=False) | asdict(rating)) + b"\n"
            )
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    from pyarrow import parquet

    schema, rows, count = frame_schema(), iter(rows), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(to_table(group, schema))
            count += len(group)
    return count
