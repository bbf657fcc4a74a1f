"""`/v1/config`: experts.yaml read, checked and replaced, by administrators whose key has all rights.

Such a key is needed because experts.yaml decides where prompts and the experts' keys are sent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.errors import ConfigError, ConfigInvalid, ConfigRefused, InvalidRequest
from coe.experts import endpoints_of
from coe.registry import Registry, yaml_source
from coe.runtime.api_keys import with_admin_key
from coe.runtime.declaration_edit import (
    MAX_TEXT_BYTES,
    Candidate,
    check_candidate,
    diff_of,
    read_text,
    replace_declaration,
    secret_problems,
    tag_of,
    unwritable,
)
from gateway.endpoints.admin.serial import PROBLEM_LIST, Serial, parsed_problems
from gateway.endpoints.operation import (
    BOOLEAN,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    json_response,
    object_schema,
    operation,
)
from gateway.parts import Parts
from gateway.request.body import RequestModel, read_body, validated

MAX_BODY_BYTES = 7 * MAX_TEXT_BYTES
"""JSON may write a character as six bytes."""
_log = logging.getLogger("gateway")


class ConfigText(RequestModel):
    """A whole new experts.yaml."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_BYTES)]


_FILE = object_schema(
    {
        "object": {"const": "config"},
        "file": TEXT,
        "etag": TEXT,
        "text": TEXT,
        "in_force": BOOLEAN | {"description": "The gateway serves with this text."},
        "read_only": TEXT | {"description": "Why the file cannot be changed here; empty if it can."},
        "reload_error": TEXT_OR_NULL,
    }
)
_CHECK = object_schema(
    {
        "object": {"const": "config.check"},
        "ok": BOOLEAN,
        "problems": PROBLEM_LIST,
        "consequences": TEXTS | {"description": "Consequences for the plan in use."},
        "diff": TEXT | {"description": "Unified diff from the text in force."},
    }
)
_SAVED = object_schema({"object": {"const": "config.saved"}, "etag": TEXT})
_REFUSED = {
    409: "The file is read-only, not in force, was changed by others or holds a secret, or the new text has a problem."
}
_BUSY = {429: "Too many requests read experts.yaml."}


class Config:
    """Reads and parses the file for one request at a time, in a thread."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._settings, self._reload = parts.current, parts.settings, parts.reload
        self._serial = Serial()

    @operation("GET /v1/config", "readConfig", "The text.", _FILE, scope="unrestricted", problems=_REFUSED | _BUSY)
    async def get(self, _: Request) -> Response:
        """Read experts.yaml, with its ETag. A file that holds a literal secret is not shown."""
        content = await self._serial.run(self._readable)
        found = {
            "object": "config",
            "file": self._settings.config.name,
            "etag": tag_of(content),
            "text": content.decode(),
            "in_force": self._in_force(content),
            "read_only": unwritable(self._settings.config),
            "reload_error": self._current.reload_error,
        }
        response = json_response(found)
        response.headers["etag"] = f'"{tag_of(content)}"'
        response.headers["cache-control"] = "no-store"
        return response

    @operation(
        "POST /v1/config/check", "checkConfig", "The problems, or the diff.", _CHECK, body=ConfigText,
        scope="unrestricted", problems=_REFUSED | _BUSY,
    )  # fmt: skip
    async def check(self, request: Request) -> Response:
        """Check a new experts.yaml as `coe check` and a reload do; nothing is written."""
        body = validated(ConfigText, await read_body(request, limit=MAX_BODY_BYTES))
        found, diff = await self._serial.run(self._compared, body.text)
        answer = {
            "object": "config.check",
            "ok": not found.problems,
            "problems": parsed_problems(found.problems),
            "consequences": found.consequences,
            "diff": diff,
        }
        return json_response(answer)

    @operation(
        "PUT /v1/config", "replaceConfig", "It is written, and every worker reloads it.", _SAVED, body=ConfigText,
        scope="unrestricted", request_headers=("IfMatch",), problems=_REFUSED | _BUSY,
    )  # fmt: skip
    async def put(self, request: Request) -> Response:
        """Replace experts.yaml, if the header `if-match` has its ETag and the new text has no problem."""
        by = self._current.serving.access.identify_unrestricted(request.scope["headers"]).name
        body = validated(ConfigText, await read_body(request, limit=MAX_BODY_BYTES))
        sent = request.headers.get("if-match")
        if sent is None:
            raise InvalidRequest("send the ETag of the text that you edited in the header if-match", param="if-match")
        expected = sent.strip().removeprefix("W/").strip('"')
        tag = await asyncio.shield(self._save(body.text, expected, by=by))
        return json_response({"object": "config.saved", "etag": tag})

    async def _save(self, text: str, expected: str, *, by: str) -> str:
        """Replace the file, log it and reload, also for a client that has left; return the new ETag."""
        tag = await self._serial.run(self._replace, text, expected)
        _log.warning("%s changed by the API key %s", self._settings.config.name, by)
        if self._reload is not None:
            self._reload.request()
        return tag

    def _readable(self) -> bytes:
        """The file's content, which holds no secret. Raises ConfigRefused."""
        content = read_text(self._settings.config)
        try:
            text = content.decode()
            found = tuple(secret_problems(text, yaml_source.parse(text, self._settings.config.name)))
        except (ConfigError, UnicodeDecodeError) as error:
            raise ConfigRefused(f"the file is not YAML, so it cannot be shown: {error}") from None
        if found:
            raise ConfigRefused(found[0])
        return content

    def _compared(self, text: str) -> tuple[Candidate, str]:
        """The checked text, and its diff from the file."""
        current = self._readable().decode()
        return self._checked(text, current), diff_of(current, text, self._settings.config.name)

    def _checked(self, text: str, current: str) -> Candidate:
        return check_candidate(text, current, self._settings, check=self._check_reloadable)

    def _replace(self, text: str, expected: str) -> str:
        if problem := unwritable(self._settings.config):
            raise ConfigRefused(problem)
        content = self._readable()
        if not self._in_force(content):
            raise ConfigRefused(
                "the file is not the one in force: "
                + (self._current.reload_error or "it was changed and is not loaded yet; load it again")
            )
        if problems := self._checked(text, content.decode()).problems:
            raise ConfigInvalid(problems[0], param="text")
        return replace_declaration(self._settings, text, expected=expected)

    def _check_reloadable(self, registry: Registry) -> None:
        registry = with_admin_key(registry, self._settings)
        served = self._settings.served()
        for spec in registry.experts:
            endpoints_of(spec, served)
        if self._reload is not None:
            self._reload.check(registry)

    def _in_force(self, content: bytes) -> bool:
        return self._reload is None or self._reload.serves(content)
