"""Splits a user message into the request, the material that it is about, and the frame that a client put around both.

Blocks between tags of known names go first, whatever their length. Of the rest, `reading` decides for each sentence.
Every search is bounded or linear, so a hostile message takes a few milliseconds.

Detects that a coding agent sends a request, by its tools, its system prompt, and the paths and diffs in its turns.

The same words mean another thing in an agent: "add German translations" is about a program. The router learns what
agents are asked from prompts that end with the line CODING_AGENT, in all categories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, takewhile
from sys import getsizeof
from typing import Literal

from coe.core import Chat, frozen
from coe.routing.units import (
    CLASSES,
    WORDS,
    Scores,
    Unit,
    class_probabilities,
    has_topic,
    has_topical_word,
    is_question,
    units_of,
)

CODING_AGENT = "[coding agent]"
"""Last line of the routed text of a coding agent's request."""
MAX_TOOLS = 256
"""Tools of a field of a request whose names are read."""
MAX_SYSTEM_CHARACTERS = 6000
MAX_TURNS, MAX_TURN_CHARACTERS = 8, 2000
"""The newest messages in which paths and diffs are searched, and characters of each."""
MIN_SIGNS = 3

_WORDS = re.compile(
    r"\b(?:codebase|repositor(?:y|ies)|source code|git|commit|pull request|lint|unit tests?|shell command|working "
    r"directory|apply[ _]patch|search/replace|refactor|compiler?|software engineer\w*+|pair programm\w*+"
    r"|coding (?:agent|assistant)|terminal|command[ -]line)\b",
    re.IGNORECASE,
)
_FILE_TYPE = re.compile(r"\.(?:py|tsx?|jsx?|go|rs|java|cs?|cpp|hp?p?|rb|php|kt|swift|sh|sql|css|vue|toml|ya?ml)\b")
_DIFF_MARKS = ("\n@@ -", "\n<<<<<<< ", "\n+++ ", "\ndiff --git")
MAX_PATH_CHARACTERS = 80


def is_coding_agent(chat: Chat) -> bool:
    """True if the request comes from an agent that works on code."""
    signs = len({name.lower() for name in tool_names(chat) if name} & WORDS["agent_tools"])
    if signs >= MIN_SIGNS:
        return True
    system = "\n".join(one.text for one in chat.messages[:2] if one.role in ("system", "developer"))
    signs += _count_words(system[:MAX_SYSTEM_CHARACTERS])
    if not signs or signs >= MIN_SIGNS:
        return signs >= MIN_SIGNS
    turns = (one.text[:MAX_TURN_CHARACTERS] for one in chat.messages[-MAX_TURNS:])
    return signs + len(set(chain.from_iterable(map(_code_signs, turns)))) >= MIN_SIGNS


def _code_signs(text: str) -> Iterator[str]:
    """The paths of source files in a text, and the marks of a diff."""
    for found in _FILE_TYPE.finditer(text):
        path = text[max(0, found.start() - MAX_PATH_CHARACTERS) : found.end()].split()[-1]
        if len(path) > len(found[0]) + 1:
            yield path
    yield from (mark for mark in _DIFF_MARKS if mark in f"\n{text}")


@lru_cache(maxsize=256)  # a system prompt comes with every request of its application, and takes a millisecond
def _count_words(system: str) -> int:
    return len({word.lower() for word in _WORDS.findall(system)})


def tool_names(chat: Chat) -> Iterator[str | None]:
    """Yield the names of the tools that a request declares, in any API's form; the type of a provider's own tool.

    None is what cannot be read: a name that is no text, the tools of a group or server, and those after MAX_TOOLS.
    """
    for declared in filter(None, map(chat.fields.get, ("tools", "functions"))):
        tools = declared if isinstance(declared, list) else [declared]
        for tool in tools[:MAX_TOOLS]:
            fields = tool if isinstance(tool, dict) else {}
            parts = [part for part in (fields, *fields.values()) if isinstance(part, dict)]
            names = [part["name"] for part in parts if part.get("name")] or [fields.get("type")]
            if "tools" in fields or str(fields.get("type")).startswith("mcp"):
                names.append(None)
            yield from (name if isinstance(name, str) else None for name in names)
        if len(tools) > MAX_TOOLS:
            yield None


CutKind = Literal["block", "tool result", "document", "material", "frame"]
"""The kind of a part that does not count as the request."""

MAX_PLAIN_CHARACTERS = 1000
"""A longer message is read whole."""
READ_HEAD_CHARACTERS, READ_TAIL_CHARACTERS = 8_000, 4_000
"""Characters outside blocks that are searched for the request, at the head and the tail of a message."""
MAX_MESSAGE_CHARACTERS = READ_HEAD_CHARACTERS + READ_TAIL_CHARACTERS
MAX_TAGS = 300
"""Opening tags of a message that are looked at, outside the blocks found."""
MAX_BLOCK_CHARACTERS = 2_000_000
SEARCHED_CHARACTERS = 50_000
"""Characters in which the next block is searched; without one there, as many at the end of the message."""
MAX_UNCLOSED_TAGS = 4
"""Tags without an end after which the search for blocks stops. Each one is searched in MAX_BLOCK_CHARACTERS."""
MAX_BESIDE_QUESTION, MIN_BESIDE_QUESTION = 500, 60
"""Characters beside the question that count as the request in a message with a frame. Of more, as many count as the
question has, but at least the minimum."""
STATEMENT_WEIGHT = 0.6
"""Weight of a unit that is no question, when the question is searched."""
REQUEST, FRAME = CLASSES.index("request"), CLASSES.index("frame")
MAX_REMEMBERED_BYTES = 4_000_000
MIN_REQUEST_PROBABILITY = 0.1
"""A message has a request if that of one of its units is at least this, even if no unit is more likely a request."""

_STRUCTURED = re.compile(r"[\n<:\"“]")
"""One of these is in most templates, and not in most prose."""
_SENTENCE_END = re.compile(r"[.!?…。！？,;][\"'”)\]]{0,3}\s+")
_OPEN = re.compile(r"<([A-Za-z][\w.:-]{0,63}+)(?:\s[^<>]{0,300}+)?+>")
_TAG_WORD = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+")
_TOOL_RESULT = re.compile(
    r"\W{0,3}(?:call id:[^\n]{0,100}\n\W{0,3})?"
    r"(?:observations?|(?:tool|function|command|execution|shell|code|search|terminal)[ _-]?(?:call[ _-]?)?"
    r"(?:results?|outputs?|responses?|logs?)|(?:result|output)s? of|stdout|stderr|errors?|exit (?:code|status))\b"
    r"[^\n]{0,120}?(?:[:\]]|\n|\Z)",
    re.IGNORECASE,
)
_DOCUMENT = re.compile(
    r"[^\n]{0,80}?\b((?:AGENTS|CLAUDE|GEMINI|CONVENTIONS|README)\.md)\b[^\n]{0,200}\n.*\n#", re.DOTALL
)
"""A document of instructions with headings. Only the paragraph after it can be the request."""
_LIST_OR_HEADING = re.compile(r"\s|[-*|#<>]|\d{1,3}[.)]\s")


@frozen
class OmittedPart:
    """A part of a user message that does not count as the request.

    `kind` is what it is, `name` its tag or label, `characters` its length, and `message` the index of the message. With
    `shortened`, the request may be about it: its head is in the routed text if the request has no topic.
    """

    kind: str
    name: str
    characters: int
    shortened: bool = False
    message: int = 0

    def __str__(self) -> str:
        what = f"{self.kind} {self.name}".strip()
        how = "shortened" if self.shortened else "left out"
        return f"message {self.message}: {what} {how}, {self.characters} characters"


@dataclass(slots=True)
class MessageParts:
    """The request of a message, the `material` it is about, and everything that is not the request.

    `request` is empty if the message holds none, such as a reminder or a tool result.
    """

    request: str
    material: list[str] = field(default_factory=list)
    cuts: list[OmittedPart] = field(default_factory=list)

    def cut(self, kind: CutKind, name: str, text: str, *, is_material: bool = False) -> None:
        """Note a part that is not the request."""
        self.cuts.append(OmittedPart(kind, name[:64], len(text), is_material))
        if is_material:
            self.material.append(text)


def split_message(text: str) -> MessageParts:
    """Split a user message into its parts."""
    parts = MessageParts(text)
    if _is_plain(text):
        return parts
    parts.request = take_blocks(text, parts)
    if label := _TOOL_RESULT.match(parts.request):
        parts.cut("tool result", label[0].strip(), parts.request)
        parts.request = ""
    elif ".md" in parts.request and (document := _DOCUMENT.match(parts.request)):
        _, _, closing = parts.request.rpartition("\n\n")
        parts.cut("document", document[1], parts.request)
        parts.request = "" if _LIST_OR_HEADING.match(closing) else closing
    if parts.request:
        _split_units(parts)
    return parts


class SplitMessages:
    """Splits messages, and remembers the parts of the last ones. Callers only read the parts."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], tuple[MessageParts, int]] = {}
        """Parts and their size by length and hash of the message; the last used ones at the end."""
        self.size = 0
        """Bytes of the parts, about; at most MAX_REMEMBERED_BYTES."""

    def split(self, text: str, *, anew: bool = False) -> MessageParts:
        """Return what `split_message` does."""
        key = len(text), hash(text)
        parts, size = self._parts.pop(key, (None, 0))
        if parts is None or anew:
            self.size -= size
            parts = split_message(text)
            size = getsizeof(parts.request) + sum(map(getsizeof, parts.material)) + 300 * (len(parts.cuts) + 2)
            if size > MAX_REMEMBERED_BYTES // 100:  # one such message must not displace all others
                return parts
            self.size += size
        self._parts[key] = parts, size
        while self.size > MAX_REMEMBERED_BYTES:
            self.size -= self._parts.pop(next(iter(self._parts)))[1]
        return parts


SPLIT_MESSAGES = SplitMessages()
"""For the messages of all chats, since a conversation sends its earlier messages again at every turn."""


def _is_plain(text: str) -> bool:
    """True for prose that neither begins nor ends with a sentence of a frame, which saves most requests the reading."""
    if len(text) > MAX_PLAIN_CHARACTERS or _STRUCTURED.search(text):
        return False
    ends = _SENTENCE_END.split(text.rstrip())
    return has_topical_word(ends[0]) and (len(ends) == 1 or has_topical_word(ends[-1]))


def _split_units(parts: MessageParts) -> None:
    """Keep the units that are more likely the request than anything else, or else the likeliest one."""
    units = units_of(parts.request)
    if len(units) < 2:
        parts.request = units[0].text if units and units[0].tags else parts.request
        return
    probabilities = class_probabilities(units)
    places = [own.index(max(own)) for own in probabilities]
    if not any(places):  # all is the request
        if any(unit.tags for unit in units):
            parts.request = "\n".join(unit.text for unit in units)
        return
    topical = [place == FRAME and has_topical_word(unit.text) for unit, place in zip(units, places, strict=True)]
    has_frame = any(place == FRAME and not topic for place, topic in zip(places, topical, strict=True))
    by_class: tuple[list[str], list[str], list[str]] = ([], [], [])
    for unit, place, topic in zip(units, places, topical, strict=True):
        stays = topic and (unit.kind == "label" or not has_frame)  # such as the label "SQL:"
        by_class[REQUEST if stays else place].append(unit.text)
    request, material, frame = by_class
    if not material and not frame:
        return
    asked = _likeliest(units, probabilities)
    if not request and max(own[0] for own in probabilities) >= MIN_REQUEST_PROBABILITY:
        request = asked
    rest = "\n".join(text for text in request if text not in asked)
    kept = max(MIN_BESIDE_QUESTION, sum(map(len, asked)))
    if len(rest) > max(MAX_BESIDE_QUESTION, kept):  # most of it is material that looks like a request
        request = [*asked, rest[:kept]]
        material.append(rest[kept:])
    parts.request = "\n".join(request)
    if not has_topic(parts.request):  # what it is about may look like a frame
        material += [text for text in frame if has_topical_word(text)]
    if material:
        parts.cut("material", "", "\n".join(material), is_material=True)
    if frame:
        parts.cut("frame", "", "\n".join(frame))


def _likeliest(units: Sequence[Unit], probabilities: Sequence[Scores]) -> list[str]:
    """The unit that most likely asks, with the options after it."""
    best, weight = 0, -1.0
    for index, (unit, (request, material, _)) in enumerate(zip(units, probabilities, strict=True)):
        own = request * request / (request + material) * (1.0 if is_question(unit.text) else STATEMENT_WEIGHT)
        if own > weight and not unit.is_name and unit.kind not in ("option", "literal"):
            best, weight = index, own
    options = takewhile(lambda unit: unit.kind == "option", units[best + 1 :])
    return [units[best].text, *(unit.text for unit in options)]


# ------------------------------------------------------------------------------------------------------------- blocks


def take_blocks(text: str, parts: MessageParts) -> str:
    """Return the head and tail of what is outside blocks, which become cuts. A block of a request stays."""
    kept, position, searched, unclosed = list[str](), 0, 0, set[str]()
    for _ in range(MAX_TAGS):
        opening = _OPEN.search(text, searched, searched + SEARCHED_CHARACTERS)
        opening = opening or _OPEN.search(text, max(searched, len(text) - SEARCHED_CHARACTERS))
        if opening is None or len(unclosed) >= MAX_UNCLOSED_TAGS:
            break
        searched, name = opening.end(), opening[1]
        kind = _kind_of(name)
        if not kind or name in unclosed:
            continue
        closing = f"</{name}>"
        close = text.find(closing, searched, searched + MAX_BLOCK_CHARACTERS)
        if close < 0:
            unclosed.add(name)
            continue
        content = text[searched:close]
        kept.append(text[position : opening.start()])
        if kind == "request":
            kept.append(f"\n<{name}>{content}{closing}\n")
        else:
            parts.cut("block", name, content, is_material=kind == "material")
        position = searched = close + len(closing)
    rest = "".join([*kept, text[position:]])
    head, tail = rest[:READ_HEAD_CHARACTERS], rest[READ_HEAD_CHARACTERS:]
    return f"{head}\n{tail[-READ_TAIL_CHARACTERS:]}".strip() if tail else head.strip()


def _kind_of(name: str) -> Literal["context", "request", "material", ""]:
    """Kind of content in a block of this tag; empty for markup, which belongs to the text."""
    words = [word.lower() for word in _TAG_WORD.findall(name)]
    if not words:
        return ""
    if not WORDS["context_tags"].isdisjoint(words):
        return "context"
    if words[-1] in WORDS["request_tags"]:
        return "request"
    return "" if WORDS["material_tags"].isdisjoint(words) else "material"
