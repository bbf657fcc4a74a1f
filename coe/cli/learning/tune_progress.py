"""Shows the progress of `coe tune`, and a table of its plan and the single experts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from coe.jobs.tune import Limits, Status
from coe.terminal import print_error, printable

LINE_SECONDS = 10.0
"""Time between two lines of progress without a terminal."""
REFRESH_SECONDS = 0.5


def status_line(status: Status, limits: Limits) -> str:
    """Return the state of a run in one line."""
    dollars = "" if limits.dollars is None else f" of ${limits.dollars:.2f}"
    minutes = f"{status.seconds // 60:.0f}:{status.seconds % 60:02.0f}"
    if limits.seconds is not None:
        minutes += f" of {limits.seconds // 60:.0f}:{limits.seconds % 60:02.0f}"
    certainty = "first probes" if status.certainty is None else f"certainty of the plan {status.certainty:.0%}"
    scores = f"{status.known} of {status.cells} scores ({status.scored} new)"
    return f"{scores}, ${status.spent:.2f}{dollars}, {minutes} min, {certainty}"


@contextmanager
def tune_progress(
    status: Callable[[], Status], limits: Limits
) -> Iterator[tuple[float, Callable[[], None], Callable[[str], None]]]:
    """Yield the seconds between two calls of a function that shows the state, that function, and one that prints a
    line. On a terminal the state is a line that changes, else it is a new line each time."""
    if not sys.stderr.isatty():
        yield LINE_SECONDS, lambda: print_error(status_line(status(), limits)), print_error
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("measuring") as spinner:
        yield (
            REFRESH_SECONDS,
            lambda: spinner.update(status_line(status(), limits)),
            lambda line: console.print(printable(line), markup=False, highlight=False, soft_wrap=True),
        )


def show_comparison(against: Sequence[Mapping[str, Any]], assignment: Sequence[Mapping[str, Any]]) -> None:
    """Print the expert of each category, and the plan next to each single expert: quality, cost, latency."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    chosen = Table(title="plan", title_justify="left")
    for name in ("category", "expert", "runner-up"):
        chosen.add_column(name)
    for row in assignment:
        expert = f"{row['expert']} (declared)" if row["pinned"] else row["expert"]
        chosen.add_row(row["category"], expert, row["runner_up"] or "-")
    console.print(chosen)
    table = Table(title="this plan against each single expert", title_justify="left")
    table.add_column("expert")
    for name in ("quality", "vs. plan", "$ per 1000", "latency"):
        table.add_column(name, justify="right")
    plan = next(row["estimate"] for row in against if row["expert"] is None)
    for row in against:
        latency = "-" if row["latency_ms"] is None else f"{row['latency_ms'] / 1000:.1f} s"
        cost = "-" if row["cost"] is None else f"{row['cost']:.3g}"
        style = "bold" if row["expert"] is None else None
        table.add_row(
            row["expert"] or "this plan", f"{row['estimate']:.3f}", _difference(row, plan), cost, latency, style=style
        )
    console.print(table)


def _difference(row: Mapping[str, Any], plan: float) -> str:
    """The difference of an expert's quality from the plan's, with its standard error if it is known."""
    if row["expert"] is None:
        return ""
    error = row["less_plan"]["standard_error"]
    return f"{row['estimate'] - plan:+.3f}" + ("" if error is None else f" ± {error:.3f}")
