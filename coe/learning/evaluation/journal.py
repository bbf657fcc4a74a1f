"""The journal of a scoring run: one JSON line per probe and expert, so that a run that was stopped can go on."""

from __future__ import annotations

import fcntl
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import orjson

from coe.errors import DataError


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert on one probe. `key` is the digest of all the score depends on; `score` is None where `error` is set.

    `answer` is the SHA-256 of the answer's text, `cut` that it ran out of tokens, `note` why code failed its tests, and
    `consistent` False when the judge's two verdicts contradict each other. `code` is the error's machine-readable code.
    """

    key: str
    prompt_id: str
    expert: str
    score: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None
    answer: str | None = None
    cut: bool = False
    consistent: bool = True
    note: str = ""
    code: str = ""
    error: str = ""


class Journal:
    """The journal of one run: `scored` and `failed` hold the known cells by key; `append` adds one, on disk first.

    Raises DataError when a line is not a cell, or another run has the journal open. An incomplete last line is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scored: dict[str, Cell] = {}
        self.failed: dict[str, Cell] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        self._file = self._path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(self._read())
        except BlockingIOError:
            self._file.close()
            message = f"{self._path}: another run is writing here; wait for its end, or choose another folder"
            raise DataError(message) from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def append(self, cell: Cell) -> None:
        """Add a cell and flush it, so that it survives the end of this process."""
        assert self._file is not None
        self._file.write(orjson.dumps(asdict(cell), option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        self._note(cell)

    def _read(self) -> int:
        """Read all complete lines; returns their size in bytes."""
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    self._note(Cell(**orjson.loads(line)))
                except (orjson.JSONDecodeError, TypeError) as error:
                    message = f"{self._path}:{number}: not a line of the journal ({error})"
                    raise DataError(f"{message}; delete it and its probe is requested again") from None
        return whole

    def _note(self, cell: Cell) -> None:
        if cell.score is None:
            self.failed[cell.key] = cell
        else:
            self.scored[cell.key] = cell
            self.failed.pop(cell.key, None)
