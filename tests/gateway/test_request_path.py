"""A chat runs through no code of features that are not declared."""

import sys
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import orjson
import pytest

import gateway
from coe.registry import AccessSpec
from coe.settings import Settings
from gateway.app import create_app
from gateway.main import open_services
from tests.access.samples import key_of
from tests.fakes import Gateway, registry_of
from tests.gateway import words_server
from tests.list_log import ListLog
from tests.recipes.member_server import MemberServer

pytestmark = pytest.mark.anyio

ROOT = Path(gateway.__file__).parent.parent
UNDECLARED = (
    "coe/recipes",
    "coe/retrieval",
    "coe/routing/rules.py",
    "gateway/cache.py",
    "gateway/observability/tracing.py",
    "gateway/request/streams.py",
    "gateway/request/stored_step.py",
    "gateway/stored_responses.py",
)
_in_request: ContextVar[bool] = ContextVar("in_request", default=False)


async def test_a_plain_chat_runs_through_no_feature_that_is_not_declared(tmp_path: Path) -> None:
    server = MemberServer("m", "a short answer")
    await server.start()
    expert = {"model": "m", "runtime": "external", "base_url": server.url}
    registry = registry_of(
        access=AccessSpec(keys=(key_of(limits={"tokens_per_minute": 10000}),)),
        experts=[{"name": name, **expert} for name in ("coder", "painter", "generalist")],
    )
    (tmp_path / "experts.yaml").write_bytes(orjson.dumps(registry.model_dump(mode="json", exclude_none=True)))
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    files = set[str]()

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and _in_request.get():
            files.add(frame.f_code.co_filename)

    app = create_app(partial(open_services, settings, read=words_server.read))
    async with app.router.lifespan_context(app):
        body = {"model": "auto", "stream": False, "messages": [{"role": "user", "content": "code"}]}
        before, entered = sys.getprofile(), _in_request.set(True)
        sys.setprofile(called)
        try:
            response = await Gateway(app, {}, ListLog([]), cast(Any, None)).post(
                "/v1/chat/completions",
                orjson.dumps(body),
                headers={"content-type": "application/json", "x-api-key": "alice"},
            )
        finally:
            sys.setprofile(before)
            _in_request.reset(entered)
    await server.kill()
    names = {Path(file).relative_to(ROOT).as_posix() for file in files if file.startswith(str(ROOT))}
    assert response.status == 200
    assert {"gateway/chat.py", "coe/routing/composition.py", "coe/experts/http/expert.py"} <= names
    assert [path for path in UNDECLARED if not (ROOT / path).exists()] == []
    assert sorted(name for name in names if name.startswith(UNDECLARED)) == []
