"""`coe benchmark --decisions` and `coe report`: what routing is worth, on a log of experts of known quality."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.errors import DataError
from tests.cli.logged_service import DECLARED, TRUTH, LoggedService

Router = Callable[[str], str]
"""Returns the expert of a category."""


def decided(service: LoggedService, router: Router) -> Path:
    """The decisions of a router on the requests of the exported log."""
    exported, file = service.config.with_name("log.jsonl"), service.config.with_name("decisions.jsonl")
    service.run("log", "export", exported)
    rows = map(json.loads, exported.read_text().splitlines())
    made = [{"request_id": row["request_id"], "expert": router(row["category"])} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


def truth(router: Router) -> float:
    return float(np.mean([TRUTH[router(name)].get(name, 0.2) for own in TRUTH.values() for name in own]))


def test_the_order_of_the_estimated_values_is_the_true_order_and_every_interval_holds(service: LoggedService) -> None:
    service.serve(1500)
    routers: dict[str, Router] = {
        "right": lambda category: "chef" if category in TRUTH["chef"] else "generalist",
        "half right": lambda category: "chef" if category == "cooking" else "generalist",
        "always one": lambda category: "chef",
        "wrong": lambda category: "generalist" if category in TRUTH["chef"] else "chef",
    }
    found = dict[str, dict[str, dict[str, Any]]]()
    for name, router in routers.items():
        report = service.report("benchmark", "--decisions", decided(service, router))
        assert (report["requests"], report["decisions"]) == (1500, 1500)
        found[name] = {row["policy"]: row for row in report["policies"]}
        yours, gain = found[name]["yours"], found[name]["the plan in use"]["gain"]
        assert yours["low"] <= truth(router) <= yours["high"]
        assert gain["low"] <= truth(router) - truth(lambda category: "generalist") <= gain["high"]
    values = [rows["yours"]["value"] for rows in found.values()]
    assert values == sorted(values, reverse=True)
    assert found["right"]["the plan in use"]["gain"]["low"] > 0 > found["wrong"]["random"]["gain"]["high"]
    assert found["always one"]["always chef"]["gain"]["value"] == 0
    shown = service.run("benchmark", "--decisions", decided(service, routers["right"]))
    assert "the plan in use    0." in shown


def test_what_the_log_cannot_support_is_refused_with_the_remedy(service: LoggedService) -> None:
    file = decided(service, lambda category: "chef")
    with pytest.raises(DataError, match="holds no rows"):
        service.run("benchmark", "--decisions", file)
    service.serve(300, expert="generalist", candidates=("generalist", "chef"), propensities=(1.0, 0.0), propensity=1.0)
    with pytest.raises(DataError, match=r"(?s)100% of its decisions could not .*exploration: \{rate: 0.3, max_qual"):
        service.run("benchmark", "--decisions", decided(service, lambda category: "chef"))
    file.write_text('{"request_id": "a", "expert": "nobody"}\n')
    with pytest.raises(DataError, match="row 1: 'nobody' is not in the plan in use, which has chef, generalist"):
        service.run("benchmark", "--decisions", file)
    file.write_text('{"request_id": "a", "expert": "chef"}\n')
    with pytest.raises(DataError, match=r"0 of its 1 decisions .*100 are needed. Rate more answers"):
        service.run("benchmark", "--decisions", file)
    with pytest.raises(AssertionError, match="give a folder DIR, or --decisions FILE"):
        service.run("benchmark")


def test_the_report_tells_whoever_pays_what_routing_saved_and_what_quality_that_cost(service: LoggedService) -> None:
    prices = {"chef": {"input": 10.0, "output": 10.0}, "generalist": {"input": 1.0, "output": 1.0}}
    service.declare(experts=[one | {"prices": prices[one["name"]]} for one in DECLARED["experts"]])
    used: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 500, "cost": 0.004}
    unknown = service.report("report", "--against", "chef")["value"]
    assert unknown["verdict"].endswith("is not known, because the log has no answers in this time")
    service.serve(1500, **used)
    page = service.config.with_name("value.html")
    value = service.report("report", "--against", "chef", "--html", page)["value"]
    assert value["verdict"].startswith("routing saved $16.5 (73%; $16.5 to $16.5) against always calling chef; ")
    quality = value["quality"]
    assert quality["alone"]["low"] <= truth(lambda category: "chef") <= quality["alone"]["high"]
    assert quality["gain"]["low"] <= 0.0 <= quality["gain"]["high"]  # both experts are good at two of four categories
    assert "no difference in ratings is shown yet" in value["verdict"]
    text = page.read_text()
    assert json.loads(text.partition('id="report">')[2].partition("</script>")[0])["value"] == value
    assert not re.search(r"(src|href)=|https?://(?!www.w3.org/2000/svg)", text)
    lines = service.run("report", "--against", "chef").splitlines()
    assert lines[0] == value["verdict"]
    with pytest.raises(DataError, match=r"--against: experts\.yaml has no expert 'cook'; it has chef, generalist"):
        service.run("report", "--against", "cook")
