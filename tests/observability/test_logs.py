"""The gateway's own log: one JSON object a line, or text; neither quotes a request."""

import io
import json
import logging
import logging.config
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coe.errors import ConfigError, ExpertRejected
from coe.settings import Settings
from gateway.observability.logs import log_request, log_uncaught, logging_config
from tests.fakes import gateway_of

Lines = Callable[[], list[Any]]


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def written(form: str) -> Iterator[Lines]:
    """The lines since the start of the test, parsed where they are JSON."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    config = logging_config(Settings.read({"COE_LOG_FORMAT": form}))
    config["handlers"]["stderr"]["stream"] = stream
    logging.config.dictConfig(config)
    try:
        yield lambda: [json.loads(line) if form == "json" else line for line in stream.getvalue().splitlines()]
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize("name", ["gateway", "coe.records"])
def test_every_logger_writes_a_line_of_the_same_form(written: Lines, form: str, name: str) -> None:
    logging.getLogger(name).warning("the log\nis %s", "full", extra={"fields": {"request_id": "req_1"}})
    if form == "json":
        (line,) = written()
        assert line.pop("time").endswith("+00:00")
        assert line == {"level": "warning", "logger": name, "message": "the log\nis full", "request_id": "req_1"}
    else:
        assert written()[0].endswith(f"WARNING {name}: the log")
        assert written()[1] == "  is full request_id=req_1"


def test_messages_of_the_event_loop_are_logged_without_the_traceback_in_them(written: Lines, form: str) -> None:
    logging.getLogger("asyncio").error("Application callable raised an exception\nKeyError: 'a prompt'")
    assert len(written()) == 1
    assert "Application callable raised an exception" in str(written())
    assert "a prompt" not in str(written())


@pytest.mark.anyio
async def test_a_bug_in_an_endpoint_is_in_the_log(written: Lines, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.endpoints.models._model", lambda *_: 1 / 0)
    async with gateway_of() as gateway:
        with pytest.raises(ZeroDivisionError):
            await gateway.post("/v1/models", method="GET")
    text = json.dumps(written())
    assert "an endpoint failed" in text
    assert "builtins.ZeroDivisionError" in text


def test_an_exception_shows_where_it_happened_and_not_the_words_it_may_quote(written: Lines, form: str) -> None:
    try:
        try:
            {}["a prompt"]
        except KeyError as error:
            raise ExpertRejected("expert says: a prompt", expert="e", status=400) from error
    except ExpertRejected:
        logging.getLogger("gateway").exception("a request failed")
    lines = written()
    reported = lines[0]["exception"] if form == "json" else "\n".join(lines)
    assert "a prompt" not in reported.replace('{}["a prompt"]', "").replace(
        'ExpertRejected("expert says: a prompt"', ""
    )
    assert reported.index("builtins.KeyError\n") < reported.index("coe.errors.ExpertRejected")
    assert "test_logs.py" in reported


def test_uncaught_errors_are_logged(written: Lines, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    log_uncaught()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    sys.excepthook(ConfigError, ConfigError("wrong"), None)
    text = json.dumps(written())
    assert "ZeroDivisionError" in text
    assert "ConfigError: wrong" in text


@pytest.mark.anyio
async def test_the_access_log_has_a_line_for_a_request_and_no_text_of_it(written: Lines, form: str) -> None:
    async with gateway_of(observers=(log_request,)) as gateway:
        answer = await gateway.chat("code canary")
        await gateway.chat("code canary", model="canary")
    assert "canary" not in json.dumps(written())
    first, second = written()
    identity = answer.headers["x-request-id"]
    if form == "json":
        assert first["ms"] > 0
        known = {"request_id": identity, "api": "chat", "expert": "coder", "category": "code", "reason": "routed"}
        known |= {"outcome": "ok", "status": 200, "input_tokens": 3, "output_tokens": 5, "key": None, "tenant": None}
        assert known.items() <= first.items()
        assert (second["outcome"], second["status"], second["expert"]) == ("model_not_found", 404, None)
    else:
        assert f"gateway.access: request request_id={identity} api=chat expert=coder" in first
        assert "outcome=model_not_found status=404" in second
