"""The shipped rules and dashboards for Prometheus and Grafana use existing metrics and labels."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from ruamel.yaml import YAML

from tests.gateway.served import serving

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
OUTSIDE = {"device", "instance", "job", "le", "tier"}
"""Labels that Prometheus adds, the one of histograms, and those of experts that share devices."""


def dashboard() -> Any:
    return orjson.loads((DEPLOY / "grafana" / "coe.json").read_bytes())


def rules() -> list[Any]:
    (group,) = YAML(typ="safe").load(DEPLOY / "prometheus" / "rules.yml")["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    variables = [variable["definition"] for variable in dashboard()["templating"]["list"] if "definition" in variable]
    return [*targets, *variables, *(rule["expr"] for rule in rules())]


@pytest.mark.anyio
async def test_every_metric_and_label_of_dashboard_and_rules_is_on_the_page(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        async with served.send_chat("good") as response:
            assert response.status == 200
        async with served.send_chat("status-500") as response:
            assert response.headers["x-coe-cause"] == "server_error"
        async with served.client.get(f"{served.url}/metrics") as response:
            page = await response.text()
    there: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        there |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    labels = set(re.findall(r'[{,]([a-z_]+)="', page)) | OUTSIDE
    used = [name for text in expressions() for name in re.findall(r"\b(?:coe|process)_[a-z_]+\b", text)]
    assert len(used) > 30
    assert set(used) <= there
    for text in expressions():
        named = [name for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for name in group.split(", ")]
        named += re.findall(r'[{,]\s*([a-z_]+)[=!]~?=?"', text)
        assert set(named) <= labels, text


def test_every_number_of_our_own_is_on_the_dashboard() -> None:
    shown = " ".join(expressions())
    source = "".join(path.read_text() for path in (DEPLOY.parent / "gateway").rglob("*.py"))
    ours = set(re.findall(r'"(coe_[a-z_]+)"', source))
    assert len(ours) > 15
    assert {name for name in ours if not re.search(rf"\b{name}(?:_bucket)?\b", shown)} == set()


def test_every_alert_says_what_happened_and_how_bad_it_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
