"""Secrets in a base_url: in its userinfo, its query or its fragment."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from coe.errors import ConfigError
from coe.experts.error_mapping import ErrorMapping
from coe.experts.replicas import Replica
from coe.settings import Endpoint
from coe.urls import remove_suffix, secrets_in
from gateway.observability.tracing import check_tracing
from tests.fakes import NOWHERE, ScriptedExpert
from tests.gateway.served import Served, serving

URL = "https://user:w%2Frd-secret@host:81/v1/?key=query-secret&version=2024-10#fragment-secret"


def test_a_replica_is_named_without_secrets_and_still_told_from_another() -> None:
    one = Replica(ScriptedExpert("x"), endpoint=Endpoint(URL, "m"))
    other = Replica(ScriptedExpert("x"), endpoint=Endpoint("http://host:81/v1?key=other", "m"))
    assert one.address == other.address == "host:81"
    assert one.root == remove_suffix(URL, "/v1")
    assert one.seed != other.seed
    assert "secret" not in repr(Endpoint(URL, "m"))


@pytest.mark.parametrize("word", ["query-secret", "w%2Frd-secret", "w/rd-secret", "key=query-secret&version=2024-10"])
def test_what_a_server_repeats_of_it_is_struck_out(word: str) -> None:
    assert word in secrets_in(URL)
    error = ErrorMapping("clever", key="", base_url=URL).refusal(500, {}, f"no {word} here".encode(), api="chat")
    assert "secret" not in str(error)
    assert "no *** here" in str(error)


def test_the_collectors_address_is_shown_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"traces are to go to https://host:81/v1/ and") as refused:
        check_tracing(replace(NOWHERE, traces=URL))
    assert "secret" not in str(refused.value)


async def text_of(served: Served, path: str) -> str:
    async with served.client.get(served.url + path) as page:
        return await page.text()


@pytest.mark.anyio
async def test_no_page_and_no_line_of_the_log_shows_them_and_requests_carry_them(tmp_path: Path) -> None:
    log = (tmp_path / "stderr").open("wb")
    async with serving(tmp_path, stderr=log) as served:
        base = served.upstream.url.replace("http://", "http://user:word-secret@") + "?key=query-secret#fragment-secret"
        experts = [
            {"name": name, "model": model, "runtime": "external", "base_url": base}
            for name, model in (("good", "good"), ("broken", "status:500"))
        ]
        served.declare(experts=experts, assignment={"general": "good"})
        async with asyncio.timeout(60):
            while "broken" not in await text_of(served, "/v1/models"):
                await asyncio.sleep(0.05)
        pages = []
        async with served.send_chat("good") as answer:
            assert answer.status == 200
            pages.append(str(dict(answer.headers)))
        async with served.send_chat("broken") as answer:
            assert answer.status == 503
            pages.append(await answer.text() + str(dict(answer.headers)))
        paths = ("/v1/experts", "/metrics", "/v1/report", "/v1/map", "/openapi.json")
        pages += [await text_of(served, path) for path in paths]
        declared = orjson.loads(await text_of(served, "/v1/experts"))["data"]
        addresses = [one["address"] for expert in declared for one in expert["replicas"]]
        sent = served.upstream.headers[-1]
    log.close()
    pages.append((tmp_path / "stderr").read_text())
    assert [page for page in pages if "-secret" in page] == []
    assert set(addresses) == {served.upstream.url.removeprefix("http://").removesuffix("/v1")}
    assert sent["Authorization"].startswith("Basic ")
