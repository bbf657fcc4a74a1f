"""Every client in every feature, against an expert that speaks its API and one for which the gateway translates."""

from __future__ import annotations

import re

import pytest

from tests.clients.matrix import environment
from tests.clients.matrix.clients import CLIENTS, GAPS, Cell, Client, Feature
from tests.clients.matrix.conftest import Runs
from tests.clients.matrix.document import DOCUMENT, page
from tests.clients.matrix.runs import Run
from tests.clients.matrix.script import ANSWER, LOOP_ANSWER, STEPS, code_of, codes_in

CELLS = [
    pytest.param(client, expert, feature, id=f"{client.key}-{expert}-{feature}")
    for client in CLIENTS
    for expert in client.experts
    for feature in client.features
]


@pytest.fixture(scope="module")
def results() -> dict[Cell, bool]:
    """True for each tested cell that works."""
    return {}


@pytest.mark.parametrize(("client", "expert", "feature"), CELLS)
def test_a_client_works(client: Client, expert: str, feature: Feature, runs: Runs, results: dict[Cell, bool]) -> None:
    if reason := environment.unavailable(client.index):
        pytest.skip(reason)
    cell = (client.key, expert, feature)
    run = runs(client, expert)
    if (gap := GAPS.get(cell)) is None:
        check(run, expert, feature)
    else:
        with pytest.raises(AssertionError, match=re.escape(gap.error)):  # it works: remove its line from GAPS
            check(run, expert, feature)
    results[cell] = gap is None


def test_the_page_of_tested_clients_is_what_this_run_found(results: dict[Cell, bool]) -> None:
    if missing := [cell.id for cell in CELLS if (cell.values[0].key, *cell.values[1:]) not in results]:
        pytest.skip(f"not tested or failed: {', '.join(missing)}")
    found, written = page(results), DOCUMENT.read_text() if DOCUMENT.exists() else ""
    DOCUMENT.write_text(found)
    assert written == found, f"{DOCUMENT.name} was out of date; this run has written it anew, so commit it"


def check(run: Run, expert: str, feature: Feature) -> None:
    """Raise AssertionError unless a feature works: at the client, at the server, and on the right expert."""
    report = run.reports.get(feature)
    assert report is not None, f"the program ended before {feature}:\n{run.errors}"
    assert "error" not in report, f"{report['error']}\n{run.errors}"
    requests = run.requests[feature]
    assert {one.expert for one in requests} == {expert}
    if feature == "chat":
        assert report["text"] == ANSWER
    elif feature == "stream":
        assert "".join(report["pieces"]) == ANSWER
        assert len(report["pieces"]) > 1, "the stream arrived in one piece"
    elif feature == "tools":
        assert report["text"] == LOOP_ANSWER
        assert len(requests) == STEPS + 1
        assert codes_in(requests[-1].view.results) == [code_of(step) for step in range(1, STEPS + 1)]
    else:
        assert report["pieces"], "no piece arrived before the cancellation"
        assert all(one.closed for one in requests), "the server's connection was not closed"
        assert run.left_in_flight == 0
