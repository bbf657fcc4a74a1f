"""A chat runs through no code of features that are not declared."""

import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest

import gateway
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

ROOT = Path(gateway.__file__).parent.parent
KEY = {"content-type": "application/json", "x-api-key": "sesame"}
UNDECLARED = (
    "coe/experts/recipes",
    "coe/experts/translation",
    "coe/registry/aliases",
    "coe/retrieval",
    "gateway/cache",
    "gateway/observability/tracing",
    "gateway/request/audits",
    "gateway/request/cache_step",
    "gateway/request/citations",
    "gateway/request/keep_alive",
    "gateway/request/stored_step",
    "gateway/stored_responses",
)


async def test_a_plain_chat_runs_through_no_feature_that_is_not_declared() -> None:
    key = {"name": "alice", "sha256": hashlib.sha256(b"sesame").hexdigest(), "limits": {"tokens_per_minute": 10000}}
    files = set[str]()

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    async with gateway_of(registry_of(access={"keys": [key]})) as served:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        before = sys.getprofile()
        sys.setprofile(called)
        try:
            response = await served.post("/v1/chat/completions", body, headers=KEY)
        finally:
            sys.setprofile(before)
    names = {Path(file).relative_to(ROOT).as_posix() for file in files if file.startswith(str(ROOT))}
    assert response.status == 200
    assert {"gateway/request/line.py", "coe/routing/composition.py"} <= names
    assert sorted(name for name in names if name.startswith(UNDECLARED)) == []
