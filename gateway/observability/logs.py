"""What the gateway says about itself: text or one JSON object a line, and a line for each request where asked for.

Neither holds a prompt or a key. An exception's own words may quote a request, so they are left out unless they come
from an error about the process itself; its class and the lines of code it passed through always stand.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from coe.errors import CoEError, RequestError
from coe.settings import Settings
from coe.terminal import PrintableFormatter, printable
from gateway.request.trace import Trace

Built = TypeVar("Built")

_access = logging.getLogger("gateway.access")
_gateway = logging.getLogger("gateway")

_ABOUT_US = (CoEError, OSError, ImportError)
"""Errors whose words are about files, addresses and declarations. RequestErrors are not: an expert may quote."""
MAX_CHAIN = 8
"""Errors told of a chain of causes."""
MAX_FRAMES = 32
"""Frames told of each of them, the innermost."""
MAX_WORDS = 2000
"""Characters told of an error's own words."""
ACCESS_FIELDS = (
    "request_id", "api", "key", "tenant", "expert", "category", "reason", "fallback_from", "cause", "outcome", "status",
    "ms", "input_tokens", "output_tokens",
)  # fmt: skip


def logging_config(settings: Settings) -> dict[str, Any]:
    """For `logging.config.dictConfig`: everything to standard error, the server's own words (Granian) among it."""
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"chosen": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "chosen", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "_granian": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "gateway.access": {"level": "INFO"},
            "coe.experts": {"level": "INFO"},
        },
    }


def log_uncaught() -> None:
    """What ends the process or a thread of it goes through the log as well."""

    def say(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            _gateway.critical("uncaught error", exc_info=(kind, error, trace))

    sys.excepthook = say
    threading.excepthook = lambda args: say(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)


def logged(build: Callable[[], Built]) -> Built:
    """What `build` makes. An error in it ends the process, and is in the log."""
    try:
        return build()
    except Exception:
        _gateway.critical("a worker cannot start", exc_info=True)
        raise SystemExit(1) from None


def described(error: BaseException) -> str:
    """An error's class, with its words where these cannot quote a request."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    about_us = isinstance(error, _ABOUT_US) and not isinstance(error, RequestError)
    return f"{name}: {error}"[:MAX_WORDS] if about_us else name


def log_request(trace: Trace) -> None:
    """The access log: one line for a finished request."""
    decision, usage = trace.decision, trace.usage
    told = (
        trace.request_id,
        trace.api,
        trace.caller.key,
        trace.caller.tenant,
        decision.expert if decision else None,
        decision.category if decision else None,
        decision.reason if decision else None,
        (decision.fallback_from or None) if decision else None,
        (decision.cause or None) if decision else None,
        trace.outcome,
        trace.status,
        round(trace.elapsed_ms(), 3),
        usage.input_tokens if usage else None,
        usage.output_tokens if usage else None,
    )
    _access.info("request", extra=dict(zip(ACCESS_FIELDS, told, strict=True)))


class TextFormatter(PrintableFormatter):
    """Time, level, logger, message; the fields of a request behind it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = _message(record)
        fields = [f"{name}={value}" for name, value in _fields(record).items() if value is not None]
        return " ".join([super().formatMessage(record), *fields])

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _told(ei[1])


class JsonFormatter(logging.Formatter):
    """time (RFC 3339), level, logger, message, the fields of a request, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _told(record.exc_info[1])
        return printable(orjson.dumps(line, default=str).decode())


def _message(record: logging.LogRecord) -> str:
    """The server's and the event loop's without what follows the first line, where they repeat an exception's words."""
    message = record.getMessage()
    return message.partition("\n")[0] if record.name.startswith(("_granian", "asyncio")) else message


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name in ACCESS_FIELDS if (value := record.__dict__.get(name, ...)) is not ...}


def _told(error: BaseException | None) -> str:
    """Tracebacks, the cause first, without words that may quote a request."""
    told: list[str] = []
    for _ in range(MAX_CHAIN):
        if error is None:
            break
        frames = traceback.format_tb(error.__traceback__, limit=-MAX_FRAMES)
        told[:0] = [*frames, f"{described(error)}\n"]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(told).rstrip()
