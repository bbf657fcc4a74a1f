"""Corrected categories make a better router, and only where that is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coe.feedback import Feedback
from gateway.in_use import read_in_use
from tests.cli.shop import DECLARED, Shop
from tests.learning.samples import record
from tests.records.redis_server import RedisServer
from tests.routers.conftest import examples, sentences

TENANTS = ("a", "b", "c")


@pytest.fixture
def school(tmp_path: Path, tiny_encoder: Path, redis: RedisServer) -> Shop:
    """Trained on prompts that call chess football; keeps the prompts."""
    shop = Shop(tmp_path / "experts.yaml", "sqlite:///log.sqlite")
    pairs = [(e.prompt, e.category) for e in examples(count=60)]
    pairs += [(f"hello there {number}", "general") for number in range(30)]
    pairs += [(text, "chess") for text in sentences("chess", count=25, seed=5)]
    pairs += [(text, "football") for text in sentences("chess", count=40, seed=6)]
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": text, "category": name}) for text, name in pairs)
    )
    shop.declare(
        categories=[*DECLARED["categories"], {"name": "chess", "description": "a game of kings"}],
        router={"training_data": "prompts.jsonl", "encoder": str(tiny_encoder)},
        log={"url": shop.url, "store_prompts": True},
    )
    shop.run("train")
    return shop


def correct(shop: Shop, texts: list[str], category: str) -> None:
    records = [
        record(
            f"req_{number}",
            time=shop.began + number,
            prompt=text,
            category="football",
            expert="chef",
            candidates=("chef", "generalist"),
            probabilities={"football": 0.6, "general": 0.4},
            tenant=TENANTS[number % 3],
        )
        for number, text in enumerate(texts)
    ]
    events = [
        Feedback(f"c{number}", one.request_id, one.time, "category", category, tenant=one.tenant)
        for number, one in enumerate(records)
    ]
    shop.append(records, events)


def test_corrections_of_many_teach_the_router_and_are_remembered(school: Shop) -> None:
    before = school.store("router").in_use()
    correct(school, sentences("chess", count=90, seed=7), "chess")
    found = school.report("retrain")["router"]
    assert found["promoted"], found["sentence"]
    assert school.store("router").in_use() == found["version"] != before
    folder = Path(found["folder"])
    assert (folder / "report.md").read_text().startswith("# Router, round 1: promoted")
    assert (folder / "report.svg").is_file()
    router = read_in_use(school.settings).router
    tested = sentences("chess", count=40, seed=8)
    right = [router.categories[one.best] == "chess" for one in router.predict(tested)]
    assert sum(right) > 35
    assert "router" not in school.report("retrain") or "no correction is new" in school.run("retrain")
    assert school.report("rollback", "router")["in_use"] == before


def test_too_few_corrections_make_no_round_and_wrong_ones_no_router(school: Shop) -> None:
    correct(school, sentences("cooking", count=10, seed=7), "astronomy")
    assert "10 corrections are new, and a round takes 20" in school.report("retrain")["router"]["sentence"]
    correct(school, sentences("cooking", count=70, seed=7), "astronomy")
    found = school.report("retrain")["router"]
    assert not found["promoted"], found["sentence"]
