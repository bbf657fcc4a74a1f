"""`/v1/config`: experts.yaml shown, and a changed text checked. The file itself is edited where it is."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.active_state import untrained_categories
from coe.artifacts.api_keys import with_admin_key
from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.artifacts.versions import consequences_of
from coe.errors import ArtifactError, ConfigError, ConfigRefused, DataError
from coe.experts import endpoints_of
from coe.fleet.engines import find_problems
from coe.registry import Registry, load_text, yaml_source
from coe.registry.yaml_source import without_values
from gateway.endpoints.handler import NO_STORE, json_of, json_response
from gateway.request.body import RequestModel
from gateway.services import Services

MAX_TEXT_BYTES = 128 * 1024
"""The check of a larger file would delay requests."""
MAX_BODY_BYTES = 7 * MAX_TEXT_BYTES
"""JSON may write a character as six bytes."""
MAX_DIFF_CHARACTERS = 64 * 1024
_API_KEY = re.compile(r"(\b(?:api_key|secret|webhook)[\"']?\s*:\s*[\"']?)(?!\$\{|os\.environ/)[^\s\"',}#]+")
"""A literal `api_key`, or webhook and secret of `alarms`. Other secrets are shown as they are written."""
_PROBLEM = re.compile(r"(?s)([^\n]*?):(\d+): (.*)")
T = TypeVar("T")


class ConfigText(RequestModel):
    """A whole experts.yaml."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_BYTES)]


class Config:
    """Reads and parses the file for one request at a time, in a thread."""

    def __init__(self, services: Services) -> None:
        self._services, self._settings, self._reload = services, services.settings, services.reload
        self._running = asyncio.Lock()

    async def get(self, _: Request) -> Response:
        """Read experts.yaml. The `api_key` of an expert is hidden, and so are webhook and secret of `alarms`."""
        content = await self._in_thread(self._content)
        body = {
            "object": "config",
            "file": self._settings.config.name,
            "text": shown_text(content),
            "reload_error": self._services.reload_error,
        }
        return json_response(body, headers=NO_STORE)

    async def check(self, request: Request) -> Response:
        """Check a text of experts.yaml as `coe check` and a reload do; nothing is written."""
        body = await json_of(request, ConfigText, limit=MAX_BODY_BYTES)
        return json_response({"object": "config.check", **await self._in_thread(self._checked, body.text)})

    async def _in_thread(self, work: Callable[..., T], *arguments: str) -> T:
        async with self._running:
            return await asyncio.to_thread(work, *arguments)

    def _content(self) -> bytes:
        """The file's content. Raises ConfigRefused."""
        path = self._settings.config
        try:
            with path.open("rb") as file:
                content = file.read(MAX_TEXT_BYTES + 1)
        except OSError as error:
            raise ConfigRefused(f"{path.name} cannot be read: {error.strerror or error}") from None
        if len(content) > MAX_TEXT_BYTES:
            raise ConfigRefused(f"{path.name} has more than {MAX_TEXT_BYTES >> 10} KiB; look at it where it is")
        return content

    def _checked(self, text: str) -> dict[str, object]:
        """Check a text. It cannot read the environment: only variables that the file uses have their values, and these
        are replaced by their names in the answer."""
        name, shown = self._settings.config.name, shown_text(self._content())
        used = yaml_source.variable_names(shown)
        environ = {one: value if one in used else f"${{{one}}}" for one, value in self._settings.environ.items()}
        problems, consequences = list[str](), list[str]()
        try:
            source, registry = yaml_source.parse(text, name), load_text(text, name, environ=environ)
            problems += self._machine_problems(source, registry)
            if not problems:
                self._check_reloadable(registry)
                consequences += (one.sentence for one in consequences_of(self._settings, registry))
        except (ConfigError, ArtifactError, DataError) as error:
            problems += error.problems if isinstance(error, ConfigError) else (str(error),)
        problems, consequences = ([without_values(one, text, environ) for one in it] for it in (problems, consequences))
        return {
            "ok": not problems,
            "problems": parsed_problems(problems),
            "consequences": consequences,
            "diff": diff_of(shown, text, name),
        }

    def _machine_problems(self, source: yaml_source.YamlSource, registry: Registry) -> Iterator[str]:
        """Yield missing requirements of local experts, and categories that the router in use cannot classify."""
        for index, key, what in find_problems(registry.hosted_experts, base_folder=self._settings.config.parent):
            yield f"{source.at(('experts', index, key))}: {registry.experts[index].name!r}: {what}"
        store = ArtifactStore(self._settings.artifacts, ROUTER)
        if (version := store.in_use()) is not None:
            for index, what in untrained_categories(registry, store.manifest(version).categories).items():
                yield f"{source.at(('categories', index))}: {what}"

    def _check_reloadable(self, registry: Registry) -> None:
        """Raises ConfigError for a declaration that the running gateway cannot take over."""
        registry = with_admin_key(registry, self._settings)
        served = self._settings.served()
        for spec in registry.experts:
            endpoints_of(spec, served)
        if self._reload is not None:
            self._reload.check(registry)


def parsed_problems(found: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of each `file:line: message`; `where` is the file."""
    matches = [(_PROBLEM.fullmatch(problem), problem) for problem in found]
    return [
        {"where": match[1], "line": int(match[2]), "message": match[3]}
        if match
        else {"where": "", "line": None, "message": problem}
        for match, problem in matches
    ]


def shown_text(content: bytes) -> str:
    """The text, with `***` in place of each literal secret."""
    return _API_KEY.sub(r"\1***", content.decode(errors="replace"))


def diff_of(old: str, new: str, name: str) -> str:
    """The unified diff, at most MAX_DIFF_CHARACTERS; empty for equal texts."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"{name} (checked)", lineterm="")
    diff = "\n".join(lines)
    return diff if len(diff) <= MAX_DIFF_CHARACTERS else diff[:MAX_DIFF_CHARACTERS] + "\n... (more is left out)"
