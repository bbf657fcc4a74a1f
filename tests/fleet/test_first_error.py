"""Finding the error in a server's log; the logs are shortened ones of vLLM 0.32."""

from __future__ import annotations

import pytest

from coe.fleet.server import first_error

KV = """\
(APIServer pid=1) WARNING 11-25 10:15:49 [system_utils.py:255] Errors like `OSError: [Errno 24] Too many`
(EngineCore pid=2) ERROR 11-25 10:16:08 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-25 10:16:08 [core.py:1510]     raise ValueError(
(EngineCore pid=2) ERROR 11-25 10:16:08 [core.py:1510] ValueError: To serve at least one request, 0.18 GiB is needed.
Traceback (most recent call last):
ValueError: To serve at least one request, 0.18 GiB is needed.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
LENGTH = """\
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len
    For further information visit https://errors.pydantic.dev
"""
FLAG = """\
usage: api_server.py [-h] [--headless]
api_server.py: error: unrecognized arguments: --max-modle-len
"""


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (KV, "ValueError: To serve at least one request, 0.18 GiB is needed."),
        (LENGTH, "Value error, User-specified max_model_len (100000) is greater than the derived max_model_len"),
        (FLAG, "unrecognized arguments: --max-modle-len"),
        ("all is well\n", ""),
    ],
)
def test_the_first_error_of_a_log_is_found(log: str, message: str) -> None:
    assert first_error(log) == message
