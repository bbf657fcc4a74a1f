"""What a request may use: the estimate of its tokens and dollars, and the allowance that reserves and charges them.

Experts have different tokenizers, so the count is approximate. Text counts a quarter of its characters; tools, tool
calls and other JSON for the model a quarter of the JSON. Images, files and audio count what providers charge. `Pricing`
computes the most that a key reserves: one call to an expert, or all calls of a recipe. `LimitedAllowance` reserves it
before the call and charges the use after it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coe import json_text
from coe.core import NO_RECIPE, PASS_THROUGH_APIS, TEXT_APIS, Api, Chat
from coe.errors import InvalidRequest
from coe.experts.api_formats import CHAT_LENGTH_FIELDS, LENGTH_FIELDS, MAX_TOKEN_COUNT
from coe.experts.http.expert import FormBody
from coe.recipes.agreement import GRADE_TOKENS, PROMPT_TOKENS
from coe.recipes.writing import ENVELOPE_TOKENS
from coe.registry import AUTO, Prices, RecipeSpec
from coe.routing.decision import single_expert_reason
from coe.usage import SentCall
from gateway.access.limits import Account, Amounts, Reservation
from gateway.dialects.chat import ANSWER_COUNTS, prompts_of

CHARACTERS_PER_TOKEN = 4
"""Characters of text per token, approximately."""
DEFAULT_OUTPUT_TOKENS = 512
"""Tokens of an answer whose length the request does not limit."""
_COUNTS = (*LENGTH_FIELDS, *ANSWER_COUNTS)
TOKENS_PER_FILE = 1600
"""Tokens of a large image as Anthropic counts it, or of about one page of a document."""
CHARACTERS_PER_PAGE = 100_000
"""Characters of a document's base64 that count as one page."""
MAX_REFERENCE_CHARACTERS = 2000
"""Longest link, or name of a stored file."""
AUDIO_CHARACTERS_PER_TOKEN = 2000
"""Characters of an audio file's base64 per token: OpenAI counts ten tokens a second, which are 16 kB of MP3."""

AUDIO_BYTES_PER_TOKEN = 1500
"""Bytes of an audio file per token; base64 adds a third."""

_READ_FIELDS = (
    *("messages", "input", "prompt", "suffix", "system", "instructions", "tools", "functions", "mcp_servers"),
    *("response_format", "output_config", "output_format", "text", "prediction"),
)
"""Fields of a request that the model reads."""
_LENGTH_NAMES: Mapping[Api, tuple[str, ...]] = {"responses": ("max_output_tokens",)}
"""The limits of an answer's length that an API has; the others have those of Chat Completions."""
_CONTENT_FIELDS = ("content", "output", "text")
"""Fields of a message, item or part that hold text or parts."""
_IGNORED_FIELDS = frozenset(("role", "name", "type", "id", "status", "signature", "cache_control"))
"""Fields of a message, item or part that no model reads."""
_FILE_SOURCES = ("base64", "url", "file")
_IMAGE_TYPES = frozenset(("image", "image_url", "input_image", "computer_screenshot", "image_generation_call"))
_AUDIO_TYPES = frozenset(("input_audio", "audio", "audio_url"))
_FILE_TYPES = frozenset(("file", "input_file", "document", "video_url", "input_video", "video"))
_FILE_TYPES |= _IMAGE_TYPES | _AUDIO_TYPES


def input_tokens(chat: Chat) -> float:
    """Tokens of the whole input. Raises InvalidRequest for a body that is nested too deeply to be sent on."""
    fields = chat.fields
    if isinstance(fields, FormBody):
        return fields.size / AUDIO_BYTES_PER_TOKEN
    try:
        if chat.api in PASS_THROUGH_APIS:
            return _json_tokens(dict(fields))
        return sum([_part_tokens(fields[name]) for name in _READ_FIELDS if name in fields])
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error


def input_range(chat: Chat) -> tuple[float, float]:
    """The tokens of the whole input and the most that they can be: any number if a part is stored by a server. Raises
    InvalidRequest as `input_tokens` does."""
    items, tokens = chat.fields.get("input"), input_tokens(chat)
    kinds = [item.get("type") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    stored = "item_reference" in kinds or any(map(chat.fields.get, ("previous_response_id", "conversation", "thread")))
    return tokens, math.inf if stored else tokens


def output_tokens(chat: Chat) -> float:
    """The maximum that the request allows, for its `n` answers together."""
    if chat.api not in TEXT_APIS:
        return 0
    fields = chat.fields
    prompts = len(prompts_of(fields.get("prompt"), "prompt")) if chat.api == "completions" else 1
    if fields.keys().isdisjoint(_COUNTS):
        return min(DEFAULT_OUTPUT_TOKENS * prompts, MAX_TOKEN_COUNT)
    limits: list[float] = [value for name in LENGTH_FIELDS if (value := fields.get(name)) is not None]
    if all(fields.get(name) is None for name in _LENGTH_NAMES.get(chat.api, CHAT_LENGTH_FIELDS)):
        limits.append(DEFAULT_OUTPUT_TOKENS)  # a limit by the name of another API may be ignored
    longest = max(limits)
    answers: float = max([value for name in ANSWER_COUNTS if (value := fields.get(name)) is not None], default=1)
    return min(longest * answers * prompts, MAX_TOKEN_COUNT)


def _part_tokens(part: Any) -> float:
    """Tokens of a text, a token, a message, an item or a part of one, or of a list of these."""
    if isinstance(part, str):
        return len(part) / CHARACTERS_PER_TOKEN
    if isinstance(part, list):
        return sum(map(_part_tokens, part))
    if not isinstance(part, dict):
        return 0 if part is None else 1
    if len(part) == 2 and "role" in part and isinstance(text := part.get("content"), str):
        return len(text) / CHARACTERS_PER_TOKEN  # as most messages
    kind, source = part.get("type"), part.get("source")
    is_text = isinstance(source, dict) and source.get("type") not in _FILE_SOURCES
    content = sum([_part_tokens(part[name]) for name in _CONTENT_FIELDS if name in part])
    if isinstance(kind, str) and kind in _FILE_TYPES and not is_text:
        return content + _file_tokens(part, kind)
    others = {name: one for name, one in part.items() if name not in _IGNORED_FIELDS and name not in _CONTENT_FIELDS}
    return content + (_json_tokens(others) if others else 0)


def _file_tokens(part: dict[str, Any], kind: str) -> float:
    """Tokens of an image, a document, a video or audio."""
    inner = [value for one in part.values() if isinstance(one, dict) for value in one.values()]
    size = max([len(value) for value in (*part.values(), *inner) if isinstance(value, str)], default=0)
    if kind in _IMAGE_TYPES or size <= MAX_REFERENCE_CHARACTERS:
        return TOKENS_PER_FILE
    if kind in _AUDIO_TYPES:
        return size / AUDIO_CHARACTERS_PER_TOKEN
    return TOKENS_PER_FILE * math.ceil(size / CHARACTERS_PER_PAGE)


def _json_tokens(value: Any) -> float:
    """Tokens of a value as JSON."""
    return len(json_text.dumps(value).decode()) / CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call that a request may take. It reads the conversation, `drafts` answers and `instruction` tokens, and writes
    an answer, or `written` tokens."""

    prices: Prices
    drafts: int = 0
    instruction: float = 0.0
    written: float | None = None


def largest_use(calls: Iterable[PlannedCall], input_tokens: float, output_tokens: float) -> Amounts:
    """Return the use of all calls, with these numbers of tokens in the conversation and in an answer."""
    tokens = dollars = 0.0
    for call in calls:
        given = input_tokens + call.drafts * output_tokens + call.instruction
        written = output_tokens if call.written is None else call.written
        tokens, dollars = tokens + given + written, dollars + call.prices.cost(given, written)
    return Amounts(1, tokens, dollars)


def calls_of(recipe: RecipeSpec, prices: Mapping[str, Prices]) -> list[PlannedCall]:
    """Return all calls of a recipe: a later step of a chain or fuse also reads the answers of the step before, and a
    judge reads one answer."""
    calls: list[PlannedCall] = []
    for number, step in enumerate(recipe.steps):
        drafts = len(recipe.steps[number - 1]) if number and recipe.writes else 0
        instruction = ENVELOPE_TOKENS + len(recipe.written_instruction) / CHARACTERS_PER_TOKEN if drafts else 0.0
        calls += [PlannedCall(prices[member], drafts, instruction) for member in step]
    judges = recipe.called[len(recipe.members) :]
    return [*calls, *(PlannedCall(prices[name], 1, PROMPT_TOKENS, GRADE_TOKENS) for name in judges)]


@dataclass(frozen=True, slots=True)
class Pricing:
    """Prices of experts by name, and the calls that a request may take: by pinned name (an expert, a recipe or an arm),
    and those that a routed request may take. The first of these is one call at the highest prices."""

    experts: Mapping[str, Prices] = field(default_factory=dict)
    pinned: Mapping[str, Sequence[PlannedCall]] = field(default_factory=dict)
    routed: Sequence[Sequence[PlannedCall]] = ()

    @classmethod
    def of(
        cls,
        experts: Mapping[str, Prices],
        recipes: Mapping[str, RecipeSpec],
        routed: Collection[str],
        permitted: Collection[str] | None = None,
    ) -> Pricing:
        """Return the pricing for `recipes` by recipe and arm. `routed` are the arms that routing may select;
        `permitted` the experts and arms that the key may use, None for all."""
        pinned = {name: [PlannedCall(prices)] for name, prices in experts.items()}
        pinned |= {name: calls_of(recipe, experts) for name, recipe in recipes.items()}
        possible = [prices for name, prices in experts.items() if permitted is None or name in permitted]
        highest = Prices(
            input=max((one.input for one in possible), default=0.0),
            output=max((one.output for one in possible), default=0.0),
        )
        arms = [pinned[name] for name in routed if permitted is None or name in permitted]
        return cls(experts, pinned, [[PlannedCall(highest)], *arms])

    def amounts(self, chat: Chat, recipe: str, *, input_tokens: float, output_tokens: float) -> Amounts:
        """Return the most that a request uses, with these numbers of tokens in its conversation and in an answer."""
        calls = self.pinned.get(recipe if chat.model == AUTO and recipe else chat.model)
        if calls is not None:
            return largest_use(calls, input_tokens, output_tokens)
        highest = largest_use(self.routed[0], input_tokens, output_tokens)
        if len(self.routed) == 1 or recipe == NO_RECIPE or single_expert_reason(chat):
            return highest
        uses = [largest_use(one, input_tokens, output_tokens) for one in self.routed[1:]]
        return Amounts(*map(max, zip(highest, *uses, strict=True)))


ONE_REQUEST = Amounts(1, 0, 0)
_HEADER_NAMES = {
    f"{unit}_per_minute": tuple(f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset"))
    for unit in ("requests", "tokens")
}
"""The names of the headers about the limit, the remaining amount and the reset of each limit that has them."""


class Allowance:
    """Reserves the amounts that one request may use on entry, and charges the used ones on exit, as an async context.

    This base class has no limits and does nothing. Entering a limited allowance may raise LimitReached.
    """

    __slots__ = ()

    async def __aenter__(self) -> Allowance:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def reserve(self, chat: Chat, recipe: str = "", *, size: int = 0) -> None:
        """Reserves what the answer to this chat of `size` bytes may use; `recipe` is that of RequestOptions. Raises
        LimitReached, or InvalidRequest for more than a limit ever allows."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The remaining amounts, as OpenAI's x-ratelimit headers."""
        return []


UNLIMITED = Allowance()


class LimitedAllowance(Allowance):
    """Counts the request of a key with limits, and the tokens and cost of the calls that reached an expert: `sent`,
    which grows.

    It reserves in two steps. Before the body is read it reserves the request and the `minimum` that any request uses,
    so that a key without budget is refused early. `reserve` adds what the answer may use, once the body is parsed. At
    the end the reservation is replaced by the use, in one step.
    """

    __slots__ = ("_account", "_input", "_minimum", "_output", "_pricing", "_reservation", "_sent", "_size")

    def __init__(
        self, account: Account, pricing: Pricing, *, sent: Sequence[SentCall] = (), minimum: Amounts = ONE_REQUEST
    ) -> None:
        self._account = account
        self._pricing = pricing
        self._sent = sent
        self._minimum = minimum
        self._reservation: Reservation
        self._input = self._output = 0.0
        self._size = 0

    async def __aenter__(self) -> Allowance:
        self._reservation = await self._account.reserve(self._minimum)
        return self

    async def reserve(self, chat: Chat, recipe: str = "", *, size: int = 0) -> None:
        self._size = max(size, chat.characters)  # stored answers that the request continues are not part of its body
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        amounts = self._pricing.amounts(chat, recipe, input_tokens=self._input, output_tokens=self._output)
        for counter in self._account.counters:
            if amounts[counter.unit] > counter.limit:
                raise counter.limit_error(self._account.key, amounts[counter.unit], wait=0.0)
        self._account.extend(self._reservation, amounts)

    async def __aexit__(self, *_: object) -> None:
        """Charges every call that reached an expert. What the server has not counted, because the client left or the
        call failed, costs the estimate: all input with what CoE added to the body, and the most output, or a token per
        event."""
        tokens = cost = 0.0
        for call in self._sent:
            usage = call.usage
            given: float | None = usage.input_tokens
            if given is None:
                given = self._input + max(0, call.size - self._size) / CHARACTERS_PER_TOKEN
            written: float | None = usage.output_tokens
            if written is None:
                written = max(self._output, usage.events)
            tokens += given + written
            cost += self._pricing.experts[call.expert].cost(given, written, usage.cached_tokens or 0)
        self._account.settle(self._reservation, Amounts(1, tokens, cost))

    def headers(self) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        for counter, remaining, reset in self._account.state():
            if counter.name in _HEADER_NAMES:
                limit, left, again = _HEADER_NAMES[counter.name]
                found += (
                    (limit, b"%d" % counter.limit),
                    (left, b"%d" % max(0.0, remaining)),
                    (again, b"%.3gs" % reset if reset else b"0s"),
                )
        return found
