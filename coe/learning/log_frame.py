"""The routing log as one frame: a pyarrow table with a row for each request and the feedback on it, read once a job.

`Logs` reads both logs synchronously, for jobs without an event loop. Estimates and fits are queries on the frame. Its
columns are fields of records and of ratings; names are dictionary-encoded, so that a request takes some 400 bytes.
`write_rows` writes both to a file of JSON Lines, for `coe log export`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from coe.errors import DataError
from coe.records import open_log_and_feedback
from coe.records.record import (
    CONFIG,
    FEEDBACK_KINDS,
    RECORD,
    Feedback,
    FeedbackLog,
    FeedbackPage,
    LogQuery,
    RecipeCall,
    RoutingLog,
    RoutingRecord,
)

if TYPE_CHECKING:
    from pyarrow import DataType, Schema, Table

MAX_REQUESTS = 1_000_000
"""Newest requests of a frame."""
MAX_TEXTS = 50_000
"""Newest rated or corrected requests whose text a frame keeps."""
COLUMNS = frozenset(
    """request_id time category expert reason propensity candidates probabilities router outcome api tenant attempts
    stream first_token_ms total_ms input_tokens output_tokens cached_tokens cost propensities retrieval gain
    fallback_from steps feedback_kind feedback_value feedback_preferred feedback_category""".split()  # noqa: SIM905
)
"""Columns of a frame."""


# ------------------------------------------------------------------------------------------------------------ feedback


@dataclass(frozen=True, slots=True)
class Rating:
    """The feedback on a request that learning uses: the most reliable kind of rating, and the corrected category."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG

    feedback_kind: str | None = None
    """Kind of the rating: score, thumb, preferred, regenerated or abandoned."""
    feedback_value: float | None = None
    """Score from 0 to 1, or thumb: 1 up, -1 down."""
    feedback_preferred: str | None = None
    """Expert that should have answered."""
    feedback_category: str | None = None
    """Category that the request belongs to."""
    feedback_time: float | None = None
    """Unix time in seconds of the latest of both."""

    @property
    def is_given(self) -> bool:
        """True if somebody rated or corrected the request; the gateway notes the other kinds by itself."""
        return self.feedback_category is not None or self.feedback_kind not in (None, "regenerated", "abandoned")


class Ratings:
    """The feedback that learning uses by request: the most reliable and then latest rating, and the latest correction.

    Neither the order nor repetition of events matters. Takes some 640 bytes a request with feedback.
    """

    def __init__(self, events: Iterable[Feedback]) -> None:
        self._found: dict[tuple[str, str], dict[bool, Feedback]] = {}
        for event in events:
            known = self._found.setdefault((event.tenant or "", event.request_id), {})
            is_correction = event.kind == "category"
            known[is_correction] = max(known.get(is_correction, event), event, key=_precedence)

    def __len__(self) -> int:
        return len(self._found)

    def of(self, record: RoutingRecord) -> Rating:
        """The feedback on that request by its own tenant; its fields are None where there is none."""
        if (known := self._found.get((record.tenant or "", record.request_id))) is None:
            return NO_RATING
        rating, corrected = known.get(False), known.get(True)
        value = rating.value if rating else None
        return Rating(
            feedback_kind=rating.kind if rating else None,
            feedback_value=float(value) if isinstance(value, int | float) else None,
            feedback_preferred=value if isinstance(value, str) else None,
            feedback_category=(str(corrected.value) or None) if corrected else None,
            feedback_time=max(one.time for one in known.values()),
        )


def _precedence(feedback: Feedback) -> tuple[int, float, str]:
    """Sort key of several feedbacks on one request: the most reliable kind counts, then the latest event."""
    return -FEEDBACK_KINDS.index(feedback.kind), feedback.time, feedback.event_id


RATING = TypeAdapter(Rating)
NO_RATING = Rating()
Row = tuple[RoutingRecord, Rating]


# ------------------------------------------------------------------------------------------------------------- columns


def _frame_schema() -> Schema:
    """The pyarrow schema of COLUMNS, as the annotations give it, with dictionaries in place of repeated text."""
    import pyarrow

    text, number = pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.float64()
    types: dict[Any, DataType] = {
        str: text,
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: number,
        tuple[str, ...]: pyarrow.list_(text),
        tuple[float, ...]: pyarrow.list_(pyarrow.float32()),
        Mapping[str, float]: pyarrow.map_(text, pyarrow.float32()),
    }

    def columns(declared: type) -> dict[str, DataType]:
        hints = {name: (hint, *get_args(hint)) for name, hint in get_type_hints(declared).items()}
        names = [field.name for field in fields(declared) if declared is RecipeCall or field.name in COLUMNS]
        return {name: types[next(hint for hint in hints[name] if hint in types)] for name in names}

    types[tuple[RecipeCall, ...]] = pyarrow.list_(pyarrow.struct(columns(RecipeCall)))
    return pyarrow.schema(columns(RoutingRecord) | columns(Rating) | {"request_id": pyarrow.string()})


def _to_table(rows: Sequence[Row], schema: Schema) -> Table:
    import pyarrow

    ratings = {field.name for field in fields(Rating)}

    def values(name: str) -> list[Any]:
        found = [getattr(row[name in ratings], name) for row in rows]
        if name == "steps":
            return [[asdict(call) for call in calls] for calls in found]
        return [list(value.items()) if isinstance(value, Mapping) else value for value in found]

    return pyarrow.table({name: pyarrow.array(values(name), schema.field(name).type) for name in schema.names})


def indices(column: Any, names: Sequence[str]) -> NDArray[np.int64]:
    """The position in `names` of each entry of a text column, shape (n,); -1 for any other text and for nothing."""
    import pyarrow
    from pyarrow import compute

    found = compute.index_in(column, value_set=pyarrow.array(names, pyarrow.string()))
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def numbers(column: Any) -> NDArray[np.float64]:
    """A column of numbers or truth values, shape (n,), NaN for nothing."""
    return np.asarray(column.cast("float64").to_numpy(zero_copy_only=False), dtype=np.float64)


# ---------------------------------------------------------------------------------------------------------------- file

REDACTED: dict[str, Any] = {"digest": "", "prompt": None, "left_out": ()}
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
        count = 0
        with draft.open("wb") as file:
            for record, rating in rows:
                fields = RECORD.adapter.dump_python(record, mode="json", warnings=False) | asdict(rating)
                file.write(orjson.dumps(fields) + b"\n")
                count += 1
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check its folder and the free disk space") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return count


# --------------------------------------------------------------------------------------------------------------- frame


@dataclass(frozen=True, slots=True, eq=False)
class LogFrame:
    """Users' requests, oldest first: a table of COLUMNS.

    `texts` has the routed text by id of the newest MAX_TEXTS rated or corrected requests, where the log keeps it;
    `left_out` counts by reason what the logs hold besides.
    """

    table: Table
    texts: Mapping[str, str]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def part(self, rows: NDArray[np.bool_]) -> LogFrame:
        """The requests of a mask."""
        return replace(self, table=self.table.filter(rows))


def frame_of(
    pages: Iterable[Sequence[RoutingRecord]], feedback: Iterable[Sequence[Feedback]], *, limit: int = MAX_REQUESTS
) -> LogFrame:
    """The frame of the newest `limit` requests in pages of records, oldest first, with feedback in any order.

    Requests of CoE's own commands are not in it.
    """
    import pyarrow

    ratings, schema = Ratings(event for events in feedback for event in events), _frame_schema()
    tables, count, rated = deque[Any](), 0, 0
    texts: deque[tuple[str, str]] = deque(maxlen=MAX_TEXTS)
    for page in pages:
        rows = [(record, ratings.of(record)) for record in page if not record.purpose]
        with_feedback = [record for record, rating in rows if rating is not NO_RATING]
        texts.extend((record.request_id, record.prompt) for record, rating in rows if record.prompt and rating.is_given)
        tables.append(_to_table(rows, schema))
        count, rated = count + len(rows), rated + len(with_feedback)
        while count - len(tables[0]) >= limit:
            count -= len(tables.popleft())
    table = pyarrow.concat_tables(tables) if tables else schema.empty_table()
    table = table.filter(np.arange(count) >= count - limit)
    unknown = len(ratings) - rated
    return LogFrame(table, dict(texts), {"feedback for unknown requests": unknown} if unknown > 0 else {})


# ---------------------------------------------------------------------------------------------------------------- logs

PAGE_SIZE = 2_000
"""Records or events in memory at a time."""


class Logs:
    """Both logs, opened; `damaged` counts the damaged entries read so far. Methods raise StoreError."""

    def __init__(self, runner: asyncio.Runner, records: RoutingLog, feedback: FeedbackLog) -> None:
        self._runner, self._records, self._feedback = runner, records, feedback
        self.damaged = 0

    def frame(self, *, since: float, until: float) -> LogFrame:
        """The newest requests from `since` to `until` (Unix seconds), with their feedback."""
        before = self.damaged
        frame = frame_of(self.records(since=since, until=until), self.feedback(since=since))
        damaged = self.damaged - before
        return replace(frame, left_out={**frame.left_out, "damaged entries": damaged}) if damaged else frame

    def records(self, *, since: float = 0.0, until: float, category: str = "") -> Iterator[tuple[RoutingRecord, ...]]:
        """Pages of the records from `since` to `until` (Unix seconds), oldest first; none is empty. Those of requests
        that a CoE command sent have a `purpose`."""
        query = LogQuery(since=since, category=category, limit=PAGE_SIZE)
        while True:
            page = self._runner.run(self._records.read(query))
            self.damaged += page.damaged
            if kept := tuple(record for record in page.records if record.time <= until):
                yield kept
            if page.cursor == query.after or (page.records and not kept):
                return
            query = replace(query, after=page.cursor)

    def pages(self, *, after: str = "") -> Iterator[FeedbackPage]:
        """Pages of feedback after a cursor, in the order it was stored; none is empty."""
        while True:
            page = self._runner.run(self._feedback.read(after=after, limit=PAGE_SIZE))
            self.damaged += page.damaged
            if page.cursor == after:
                return
            after = page.cursor
            yield page

    def find(self, request_id: str) -> RoutingRecord | None:
        """The record of a request; None if the log does not have it."""
        return self._runner.run(self._records.find(request_id))

    def append(self, events: Sequence[Feedback]) -> None:
        """Store feedback."""
        self._runner.run(self._feedback.append(events))

    def feedback(self, *, since: float = 0.0) -> Iterator[tuple[Feedback, ...]]:
        """Pages of the events since a time; requests since then cannot have older feedback."""
        for page in self.pages():
            yield tuple(event for event in page.events if event.time >= since)


@contextmanager
def open_logs(url: str, *, base: Path) -> Iterator[Logs]:
    """Open the logs at `url`; relative paths start at `base`."""
    with asyncio.Runner() as runner:
        records, feedback = open_log_and_feedback(url, base=base)
        try:
            yield Logs(runner, records, feedback)
        finally:
            runner.run(feedback.aclose())
            runner.run(records.aclose())
