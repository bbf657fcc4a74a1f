"""Logs to standard error: text or one JSON object a line, and optionally an access line for each request.

No line holds a prompt or an API key. An exception's message may quote a request, so it is left out unless the error is
about the process itself; its class and traceback are always logged.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

from coe.errors import CoEError, RequestError
from coe.settings import Settings
from coe.terminal import PrintableFormatter, printable
from gateway.request.trace import Trace

_access = logging.getLogger("gateway.access")
_gateway = logging.getLogger("gateway")

_OWN_ERRORS = (CoEError, OSError, ImportError)
"""Errors whose messages are about files, addresses and declarations. RequestErrors are not: an expert's message may
quote the request."""
MAX_CAUSES = 8
"""Errors of a chain of causes that are logged."""
MAX_FRAMES = 32
"""Innermost frames of each that are logged."""
MAX_MESSAGE_CHARACTERS = 2000
"""Characters of an error's message that are logged."""


def logging_config(settings: Settings) -> dict[str, Any]:
    """Configuration for `logging.config.dictConfig`: everything to standard error."""
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"chosen": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "chosen", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "gateway.access": {"level": "INFO"},
            "coe.experts": {"level": "INFO"},
        },
    }


def log_uncaught() -> None:
    """Logs exceptions that end the process or one of its threads."""

    def log_error(error_type: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(error_type, KeyboardInterrupt):
            sys.__excepthook__(error_type, error, trace)
        else:
            _gateway.critical("uncaught error", exc_info=(error_type, error, trace))

    sys.excepthook = log_error
    threading.excepthook = lambda args: log_error(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)


def describe_error(error: BaseException) -> str:
    """An error's class, and its message if that cannot quote a request."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    about_us = isinstance(error, _OWN_ERRORS) and not isinstance(error, RequestError)
    return f"{name}: {error}"[:MAX_MESSAGE_CHARACTERS] if about_us else name


def log_request(trace: Trace) -> None:
    """Writes one access line for a finished request."""
    decision, usage = trace.decision, trace.usage
    fields: dict[str, Any] = {"request_id": trace.request_id, "api": trace.api}
    fields |= {"key": trace.caller.key, "tenant": trace.caller.tenant}
    for name in ("expert", "category", "reason", "fallback_from", "cause"):
        fields[name] = getattr(decision, name, None) or None
    fields |= {"outcome": trace.outcome, "status": trace.status, "ms": round(trace.elapsed_ms(), 3)}
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        fields[name] = getattr(usage, name, None)
    _access.info("request", extra={"fields": fields})


class TextFormatter(PrintableFormatter):
    """Time, level, logger and message, followed by the fields of a request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = _message(record)
        found = getattr(record, "fields", {})
        fields = [f"{name}={value}" for name, value in found.items() if value is not None]
        return " ".join([super().formatMessage(record), *fields])

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _format_error(ei[1])


class JsonFormatter(logging.Formatter):
    """Formats a log record as one JSON object: time (RFC 3339), level, logger, message, request fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _format_error(record.exc_info[1])
        return printable(orjson.dumps(line, default=str).decode())


def _message(record: logging.LogRecord) -> str:
    """The message; of the event loop only the first line, as the rest repeats an exception's message."""
    message = record.getMessage()
    return message.partition("\n")[0] if record.name.startswith("asyncio") else message


def _format_error(error: BaseException | None) -> str:
    """Tracebacks, the cause first, without messages that may quote a request."""
    values: list[str] = []
    for _ in range(MAX_CAUSES):
        if error is None:
            break
        frames = traceback.format_tb(error.__traceback__, limit=-MAX_FRAMES)
        values[:0] = [*frames, f"{describe_error(error)}\n"]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(values).rstrip()
