"""Estimates what a request uses: its tokens, and the most tokens and money that its calls may take.

Experts have different tokenizers, so the count is approximate. Text counts a quarter of its characters; tools, tool
calls and other JSON for the model a quarter of the JSON. Images, files and audio count what providers charge. `Pricing`
computes the most that a key reserves: one call to an expert, or all calls of a recipe. This upper bound is linear in
the tokens of the conversation and of one answer, so a few coefficients per recipe suffice (`WorstCase`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from coe.core import NO_RECIPE, PASS_THROUGH_APIS, TEXT_APIS, Api, Chat
from coe.errors import InvalidRequest
from coe.experts.api_formats import CHAT_LENGTH_FIELDS, LENGTH_FIELDS, MAX_TOKEN_COUNT
from coe.experts.http.form import FormBody
from coe.recipes.judge import GRADE_TOKENS, PROMPT_TOKENS
from coe.recipes.writing.request import ENVELOPE_TOKENS
from coe.registry import AUTO, Prices, RecipeSpec
from coe.routing.eligibility import single_expert_reason
from gateway.access.limits import Amounts
from gateway.dialects.chat import ANSWER_COUNTS, TEXT_PARTS, prompts_of

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

_PROMPT_NAMES: Mapping[Api, str] = {"completions": "prompt", "embeddings": "input"}
_PROMPT_FIELDS: Mapping[Api, tuple[str, ...]] = {
    "chat": ("tools", "functions", "response_format", "prediction"),
    "responses": ("tools", "text"),
    "messages": ("tools", "output_config", "output_format", "mcp_servers"),
}
"""Fields besides the conversation that the model reads."""
_LENGTH_NAMES: Mapping[Api, tuple[str, ...]] = {"responses": ("max_output_tokens",)}
"""The limits of an answer's length that an API has; the others have those of Chat Completions."""
_ITEM_NAMES: Mapping[Api, str] = {"chat": "messages", "responses": "input", "messages": "messages"}
_IGNORED_FIELDS = frozenset(("role", "content", "name", "type", "id", "status", "signature", "cache_control"))
"""Fields of a message or item that are counted elsewhere, or that no model reads."""
_FILE_SOURCES = ("base64", "url", "file")
_IMAGE_TYPES = frozenset(("image", "image_url", "input_image", "computer_screenshot", "image_generation_call"))
_FILE_TYPES = frozenset(("file", "input_file", "document", "video_url", "input_video", "video"))
_AUDIO_TYPES = frozenset(("input_audio", "audio", "audio_url"))


def input_tokens(chat: Chat) -> float:
    """Tokens of the whole input. Raises InvalidRequest for a body that is nested too deeply to be sent on."""
    if chat.api in PASS_THROUGH_APIS:
        return _passed_tokens(chat.fields)
    prompts = _prompts(chat)
    if prompts:  # `chat.characters` are those of the longest, which the context bounds
        suffix = chat.fields.get("suffix")
        texts = sum(len(one) / CHARACTERS_PER_TOKEN if isinstance(one, str) else len(one) for one in prompts)
        return texts + (len(suffix) / CHARACTERS_PER_TOKEN if isinstance(suffix, str) else 0)
    fields = chat.fields
    other_fields = sum([_json_tokens(fields[name]) for name in _PROMPT_FIELDS.get(chat.api, ()) if fields.get(name)])
    items = fields.get(_ITEM_NAMES.get(chat.api, ""))
    return (
        chat.characters / CHARACTERS_PER_TOKEN
        + other_fields
        + (sum(map(_item_tokens, items)) if isinstance(items, list) else 0.0)
    )


def output_tokens(chat: Chat) -> float:
    """The maximum that the request allows, for its `n` answers together."""
    if chat.api not in TEXT_APIS:
        return 0
    fields = chat.fields
    prompts = len(_prompts(chat)) or 1
    if fields.keys().isdisjoint(_COUNTS):
        return min(DEFAULT_OUTPUT_TOKENS * prompts, MAX_TOKEN_COUNT)
    limits: list[float] = [value for name in LENGTH_FIELDS if (value := fields.get(name)) is not None]
    if all(fields.get(name) is None for name in _LENGTH_NAMES.get(chat.api, CHAT_LENGTH_FIELDS)):
        limits.append(DEFAULT_OUTPUT_TOKENS)  # a limit by the name of another API may be ignored
    longest = max(limits)
    answers: float = max([value for name in ANSWER_COUNTS if (value := fields.get(name)) is not None], default=1)
    return min(longest * answers * prompts, MAX_TOKEN_COUNT)


def _passed_tokens(fields: Mapping[str, Any]) -> float:
    """Tokens of a request that passes through: of a form, those of its files as audio."""
    return fields.size / AUDIO_BYTES_PER_TOKEN if isinstance(fields, FormBody) else _json_tokens(dict(fields))


def _prompts(chat: Chat) -> list[str | list[Any]]:
    """The texts, or lists of tokens, of one request; empty for a conversation."""
    name = _PROMPT_NAMES.get(chat.api)
    return prompts_of(chat.fields.get(name), name) if name else []


def _item_tokens(item: Any) -> float:
    """Tokens of one message or item, without its text."""
    if not isinstance(item, dict):
        return 0
    if item.get("type") in _IMAGE_TYPES:
        return TOKENS_PER_FILE
    content = item.get("content", item.get("output"))
    if isinstance(content, dict):
        content = [content]
    found = sum(map(_block_tokens, _content_blocks(content))) if isinstance(content, list) else 0.0
    if item.keys() <= _IGNORED_FIELDS:
        return found
    more = {name: value for name, value in item.items() if name not in _IGNORED_FIELDS and name != "output"}
    return found + _json_tokens(more)


def _content_blocks(content: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The blocks of a message, with those inside a tool's results in their place."""
    for block in content:
        if not isinstance(block, dict):
            continue
        if block.get("type") != "tool_result":
            yield block
        elif isinstance(inner := block.get("content"), list):
            yield from (one for one in inner if isinstance(one, dict))


def _block_tokens(block: dict[str, Any]) -> float:
    """Tokens of one part of a message that is not text."""
    kind = block.get("type")
    if kind in TEXT_PARTS:
        return 0
    source = block.get("source")
    if kind in _IMAGE_TYPES:
        return TOKENS_PER_FILE
    if kind in _AUDIO_TYPES:
        size = _longest_text(block)
        return size / AUDIO_CHARACTERS_PER_TOKEN if size > MAX_REFERENCE_CHARACTERS else TOKENS_PER_FILE
    if kind in _FILE_TYPES and not (isinstance(source, dict) and source.get("type") not in _FILE_SOURCES):
        return TOKENS_PER_FILE * max(1, math.ceil(_longest_text(block) / CHARACTERS_PER_PAGE))
    return _json_tokens({name: value for name, value in block.items() if name not in ("signature", "cache_control")})


def _longest_text(block: dict[str, Any]) -> int:
    """Characters of what is probably the data: the longest text in a block or in an object of it."""
    inner = [value for part in block.values() if isinstance(part, dict) for value in part.values()]
    return max([len(value) for value in (*block.values(), *inner) if isinstance(value, str)], default=0)


def _json_tokens(value: Any) -> float:
    """Tokens of a value as JSON."""
    try:
        return len(orjson.dumps(value).decode()) / CHARACTERS_PER_TOKEN if value else 0
    except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error


class WorstCase(NamedTuple):
    """The most that a request may use: `conversation` times its input tokens, plus `answer` times the tokens of an
    answer, plus `fixed` tokens. The fields `*_price` are the same coefficients for US dollars per million tokens."""

    conversation: float = 1.0
    answer: float = 1.0
    fixed: float = 0.0
    conversation_price: float = 0.0
    answer_price: float = 0.0
    fixed_price: float = 0.0

    def amounts(self, input_tokens: float, output_tokens: float) -> Amounts:
        """Return the use of one request with these numbers of tokens in its conversation and in its answer."""
        dollars = input_tokens * self.conversation_price + output_tokens * self.answer_price + self.fixed_price
        tokens = input_tokens * self.conversation + output_tokens * self.answer + self.fixed
        return Amounts(1, tokens, dollars / 1e6)


ONE_CALL = WorstCase()


def worst_of_recipe(recipe: RecipeSpec, prices: Mapping[str, Prices]) -> WorstCase:
    """The worst case of all calls of a recipe: a later step of a chain or fuse also reads the answers of the step
    before, and a judge reads one answer."""
    calls: list[WorstCase] = []
    for number, step in enumerate(recipe.steps):
        drafts = len(recipe.steps[number - 1]) if number and recipe.writes else 0
        instruction = ENVELOPE_TOKENS + len(recipe.written_instruction) / CHARACTERS_PER_TOKEN if drafts else 0.0
        for one in (prices[member] for member in step):
            answer = one.output + drafts * one.input
            calls.append(WorstCase(1.0, 1.0 + drafts, instruction, one.input, answer, instruction * one.input))
    for one in (prices[name] for name in recipe.called[len(recipe.members) :]):
        graded = PROMPT_TOKENS * one.input + GRADE_TOKENS * one.output
        calls.append(WorstCase(1.0, 1.0, PROMPT_TOKENS + GRADE_TOKENS, one.input, one.input, graded))
    return WorstCase(*map(sum, zip(*calls, strict=True)))


@dataclass(frozen=True, slots=True)
class Pricing:
    """Prices of experts by name, and the worst case of a request.

    `worst_of` holds those by pinned name: an expert, a recipe or an arm. `highest` is that of a routed request to
    single experts, `routed` of a request that routing may give to a recipe; None if no recipe is routed.
    """

    experts: Mapping[str, Prices] = field(default_factory=dict)
    worst_of: Mapping[str, WorstCase] = field(default_factory=dict)
    highest: WorstCase = ONE_CALL
    routed: WorstCase | None = None

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
        worst = {
            name: WorstCase(conversation_price=prices.input, answer_price=prices.output)
            for name, prices in experts.items()
        } | {name: worst_of_recipe(recipe, experts) for name, recipe in recipes.items()}

        def largest(names: Iterable[str]) -> WorstCase:
            possible = [worst[name] for name in names if permitted is None or name in permitted]
            return WorstCase(*map(max, zip(*(possible or [ONE_CALL]), strict=True)))

        return cls(experts, worst, largest(experts), largest([*experts, *routed]) if routed else None)

    def amounts(self, chat: Chat, recipe: str, *, input_tokens: float, output_tokens: float) -> Amounts:
        """Return the most that a request uses, with these numbers of tokens in its conversation and in an answer."""
        worst = self.worst_of.get(recipe if chat.model == AUTO and recipe else chat.model)
        if worst is None:
            alone = self.routed is None or recipe == NO_RECIPE or single_expert_reason(chat)
            worst = self.highest if alone or self.routed is None else self.routed
        return worst.amounts(input_tokens, output_tokens)
