"""Splits a user message into the request, the material it is about, and what a client or an agent's harness added.

Structure decides, not the names of products: tag-delimited blocks, fenced and named files, tool results, lines about
the environment, documents of instructions, quoted conversations, and the labels of ReAct prompts. Only courtesies are
recognized by their words (`courtesies`). Every search is bounded or linear, so a hostile message takes milliseconds at
most.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from coe.routing.courtesies import without_courtesies
from coe.routing.phrases import has_topic, is_instruction, is_translation, names_language, words_of

CutKind = Literal[
    "block", "file", "quote", "tool result", "environment", "courtesy", "document", "history", "scaffold", "material"
]
"""The kind of a part that does not count as the request."""

PLAIN_CHARACTERS = 160
"""A message of one line up to this length has no parts, unless it contains a tag or a colon."""
READ_HEAD_CHARACTERS, READ_TAIL_CHARACTERS = 12_000, 6_000
"""Characters outside blocks that are searched for structure, at the head and the tail of a message."""
MAX_MESSAGE_CHARACTERS = READ_HEAD_CHARACTERS + READ_TAIL_CHARACTERS
MAX_BLOCKS = 100
MAX_BLOCK_CHARACTERS = 2_000_000
MAX_UNCLOSED_TAGS = 4
"""Tags without an end after which the search for blocks stops. Each one is searched in MAX_BLOCK_CHARACTERS."""
MIN_MATERIAL_CHARACTERS = 200
MIN_DOCUMENT_CHARACTERS = 600
MAX_INSTRUCTION_CHARACTERS = 300
MIN_ENVIRONMENT_LINE = 4
MAX_FILE_NAME_LINE = 300
MAX_CLOSING_CHARACTERS = 1500
"""Length of a document's last paragraph up to which it may be the request."""

_MARK = re.compile(r"[\n<:]")
_OPEN = re.compile(r"<([A-Za-z][\w.:-]{0,63})(?:\s[^<>]{0,300})?>")
_CLOSE_AT_END = re.compile(r"</([A-Za-z][\w.:-]{0,63})>\s*\Z")
_TAG_WORD = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+")


_CONTEXT_TAGS = words_of("""
    system reminder reminders environment env instructions rules memory memories settings info information metadata
    workspace editor session git status project layout tools tool capabilities notice hook budget usage permissions
    skills agents collaboration mode details history stdout stderr preferences
    """)
"""Words in the names of blocks about the session. Such blocks never contain the request."""
_MATERIAL_TAGS = words_of("""
    file files document documents attached attachment attachments context selection snippet diff source sources article
    result results output outputs log logs data content contents email transcript passage excerpt contract paste pasted
    """)
"""Words in the names of blocks that the request may be about."""
_REQUEST_TAGS = words_of("""
    task query request question message prompt feedback goal objective issue problem instruction description input args
    arguments ask
    """)
"""Last words in the names of blocks that hold the request itself."""

_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_FILE_NAME = re.compile(r"[\s#*`]*[\w./\\~@+-]{0,200}[./\\][\w./\\~@+-]{1,80}[*`:\s]*\Z")
_HEADING = re.compile(r"#{1,6}\s")
_HEADING_LINE = re.compile(r"(?:\A|(?<=\n))#{1,6}\s")
_TOOL_RESULT = re.compile(
    r"\W{0,3}(?:call id:[^\n]{0,100}\n\W{0,3})?"
    r"(?:observations?|(?:tool|function|command|execution|shell|code|search|terminal)[ _-]?(?:call[ _-]?)?"
    r"(?:results?|outputs?|responses?|logs?)|(?:result|output)s? of|stdout|stderr|errors?|exit (?:code|status))\b"
    r"[^\n]{0,120}?(?:[:\]]|\n|\Z)",
    re.IGNORECASE,
)
_ENVIRONMENT = re.compile(
    r"[\s\-*#]{0,8}(?:the\s)?(?:(?:current|today['’]?s?|primary|user['’]?s?|default|local|os|git|main)\s){0,3}"
    r"(?:date|time|date and time|datetime|date ?/ ?time|timestamp|time ?zone|working director(?:y|ies)|cwd|pwd|os"
    r"|version|operating system|platform|shell|branch|status|locale|home(?: directory)?|workspace(?: root| folder)?"
    r"|root|is (?:a |directory a )?git repo(?:sitory)?|hostname|model|knowledge cutoff|recent commits)\b"
    r"\s{0,3}(?::|=|is\b)",
    re.IGNORECASE,
)
_LISTING = re.compile(
    r"(?:[ MADRCU?!]{2}\s?[\w./-]+\Z|On branch \S+\Z|nothing to commit|Your branch is |[│├└─\s|]{0,40}[├└]|"
    r"[-dl][rwx-]{9}|[0-9a-f]{7,12} \w+(?:\(\w+\))?: )"
)
_MARKED_LINE = re.compile(rf">|{_FENCE.pattern}|{_LISTING.pattern}|(?i:{_ENVIRONMENT.pattern})")
"""A line that may be a fence, a quote, or about the environment."""
_SCAFFOLD = re.compile(
    r"^[ \t*]{0,8}(thought|action|action input|observation|final answer)[ \t*]{0,3}:", re.IGNORECASE | re.MULTILINE
)
_SCAFFOLD_LABELS = ("thought", "action", "observation", "final answer", "action input")
_ASKED = re.compile(
    r"^[ \t*#]{0,8}(?:question|(?:new |current |user |your )?(?:task|query|question|request|goal|input))[ \t*]{0,3}:",
    re.IGNORECASE | re.MULTILINE,
)
_SPEAKER = re.compile(r"^[ \t*#\[]{0,8}(user|human|assistant|ai|bot)[ \t*\]]{0,4}:", re.IGNORECASE | re.MULTILINE)
_INSTRUCTION_FILE = re.compile(r"[\w.-]{1,60}\.(?:md|mdc|rst)\b|\.\w{1,20}rules\b", re.IGNORECASE)
_LIST_ITEM = re.compile(r"\s|[-*|#<>]|\d{1,3}[.)]\s")
_COLON = re.compile(r"[^\n:]{3,200}+:(?=\s)")


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a message that does not count as the request: what it is, its name or label, and its length. The
    request may be about a part that `is_material`."""

    kind: CutKind
    name: str
    characters: int
    is_material: bool = False


@dataclass(slots=True)
class MessageParts:
    """The request of a message, the `material` it is about, and everything that is not the request.

    `request` is empty if the message holds none, such as a reminder or a tool result.
    """

    request: str
    material: list[str] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def cut(self, kind: CutKind, name: str, text: str, *, is_material: bool = False) -> None:
        """Note a part that is not the request."""
        self.cuts.append(Cut(kind, name[:64], len(text), is_material))
        if is_material:
            self.material.append(text)

    def keep(self, request: str, kind: CutKind, name: str, *, material: str = "") -> None:
        """Replace the request by a part of it, unless that part is empty."""
        if not (request := request.strip()):
            return
        self.cuts.append(Cut(kind, name, len(self.request) - len(request), bool(material)))
        if material:
            self.material.append(material)
        self.request = request


def split_message(text: str) -> MessageParts:
    """Split a user message into its parts."""
    parts = MessageParts(text)
    if len(text) <= PLAIN_CHARACTERS and not _MARK.search(text):
        _courtesies(parts)
        return parts
    has_blocks = "<" in text or len(text) > READ_HEAD_CHARACTERS
    parts.request = (_without_blocks(text, parts) if has_blocks else text).strip()
    if parts.cuts and _only_headings(parts.request):
        parts.request = ""
    for split in _SPLITS:
        if not parts.request:
            break
        split(parts)
    return parts


# ------------------------------------------------------------------------------------------------------------- blocks


def _without_blocks(text: str, parts: MessageParts) -> str:
    """The head and tail of a message, outside blocks."""
    end = _end_before_blocks(text, parts) if len(text) > MAX_MESSAGE_CHARACTERS else len(text)
    kept, position = _outside_blocks(text, 0, end, parts)
    if position >= end:
        return kept
    tail = max(position, end - READ_TAIL_CHARACTERS)
    return kept + "\n" + _outside_blocks(text, tail, end, parts)[0]


def _end_before_blocks(text: str, parts: MessageParts) -> int:
    """Return the position at which the blocks at the end of a long message begin."""
    end = len(text)
    for _ in range(MAX_BLOCKS):
        tail = max(0, end - 200)
        closing = _CLOSE_AT_END.search(text[tail:end])
        if closing is None or _kind_of(closing[1]) == "request":
            break
        begin = text.rfind(f"<{closing[1]}", max(0, end - MAX_BLOCK_CHARACTERS), tail + closing.start())
        if begin < 0 or not (kind := _kind_of(closing[1])):
            break
        parts.cut("block", closing[1], text[begin:end], is_material=kind == "material")
        end = begin
    return end


def _outside_blocks(text: str, begin: int, end: int, parts: MessageParts) -> tuple[str, int]:
    """The text outside blocks, at most READ_HEAD_CHARACTERS, and the position after it."""
    kept: list[str] = []
    budget, unclosed = READ_HEAD_CHARACTERS, set[str]()
    position = searched = begin
    for _ in range(MAX_BLOCKS):
        opening = _OPEN.search(text, searched, min(end, position + budget))
        if opening is None or len(unclosed) >= MAX_UNCLOSED_TAGS:
            break
        searched, name = opening.end(), opening[1]
        kind = _kind_of(name)
        if not kind or name in unclosed:
            continue
        closing = f"</{name}>"
        close = text.find(closing, searched, min(end, searched + MAX_BLOCK_CHARACTERS))
        if close < 0:
            unclosed.add(name)
            continue
        kept.append(text[position : opening.start()])
        budget -= opening.start() - position
        if kind == "request":
            kept.append(f"\n{text[searched : min(close, searched + budget)]}\n")
            budget -= min(budget, close - searched)
        else:
            parts.cut("block", name, text[searched:close], is_material=kind == "material")
        position = searched = close + len(closing)
    kept.append(text[position : min(end, position + budget)])
    return "".join(kept), position + budget


def _kind_of(name: str) -> Literal["context", "request", "material", ""]:
    """Kind of content in a block of this tag; empty for markup, which belongs to the text."""
    words = [word.lower() for word in _TAG_WORD.findall(name)]
    if not words:
        return ""
    if not _CONTEXT_TAGS.isdisjoint(words):
        return "context"
    if words[-1] in _REQUEST_TAGS:
        return "request"
    return "material" if len(words) > 1 or words[0] in _MATERIAL_TAGS else ""


def _only_headings(text: str) -> bool:
    """True if every line is a heading."""
    return all(not line.strip() or _HEADING.match(line) for line in text.split("\n", 8))


# -------------------------------------------------------------------------------------------------------------- lines


def _tool_result(parts: MessageParts) -> None:
    """A tool result that is sent as the user's message."""
    if found := _TOOL_RESULT.match(parts.request):
        parts.cut("tool result", found[0].strip(), parts.request)
        parts.request = ""


def _lines(parts: MessageParts) -> None:
    """Fenced text, the names of files above it, quotes, and lines about the environment."""
    lines = parts.request.split("\n")
    if not any(map(_MARKED_LINE.match, lines)):
        return
    kept: list[str] = []
    removed: dict[CutKind, list[str]] = {}
    fence = ""
    for line in lines:
        marker = _FENCE.match(line)
        if marker and fence in ("", marker[1]):
            if not fence and kept and len(kept[-1]) <= MAX_FILE_NAME_LINE and _FILE_NAME.match(kept[-1]):
                removed.setdefault("file", []).append(kept.pop())
            fence = "" if fence else marker[1]
            removed.setdefault("file", []).append(line)
        elif (kind := "file" if fence else _kind_of_line(line)) is None:
            kept.append(line)
        else:
            if kind == "environment" and kept and _HEADING.match(kept[-1]):
                kept.pop()
            removed.setdefault(kind, []).append(line)
    request = "\n".join(kept).strip()
    if not request and "environment" not in removed:
        return  # a message of code or quotes alone is about them
    parts.request = request
    for kind, cut in removed.items():
        parts.cut(kind, "", "\n".join(cut), is_material=kind != "environment")


def _kind_of_line(line: str) -> CutKind | None:
    if line.startswith(">"):
        return "quote"
    if len(line) < MIN_ENVIRONMENT_LINE:
        return None
    return "environment" if _ENVIRONMENT.match(line) or _LISTING.match(line) else None


# ---------------------------------------------------------------------------------------------------------- whole text


def _scaffold(parts: MessageParts) -> None:
    """The labels of a ReAct prompt or agent's task."""
    text = parts.request
    if ":" not in text:  # it ends every label
        return
    lowered = text.lower() if "\n" in text else ""  # two labels are on two lines
    has_labels = sum([label in lowered for label in _SCAFFOLD_LABELS]) >= 2  # far faster than the expressions
    labels = {found[1].lower() for found in _SCAFFOLD.finditer(text)} if has_labels else set()
    if len(labels) < 2:
        if first := _ASKED.match(text):
            parts.keep(text[first.end() :], "scaffold", first[0].strip())
        return
    if asked := list(_ASKED.finditer(text)):
        following = _SCAFFOLD.search(text, asked[-1].end())
        end = following.start() if following else len(text)
        parts.keep(text[asked[-1].end() : end], "scaffold", ", ".join(sorted(labels)))


def _history(parts: MessageParts) -> None:
    """A conversation that is quoted in the message: the last user's turn counts, unless an instruction precedes it."""
    text = parts.request
    if "\n" not in text or ":" not in text:  # two speakers are on two lines
        return
    lowered = text.lower()
    if "user" not in lowered and "human" not in lowered:
        return
    turns = list(_SPEAKER.finditer(text))
    speakers = {found[1].lower() for found in turns}
    if not speakers & {"user", "human"} or not speakers & {"assistant", "ai", "bot"}:
        return
    before = text[: turns[0].start()].strip()
    if is_instruction(before) and has_topic(before):
        parts.keep(before, "history", "", material=text[turns[0].start() :])
        return
    last = max(index for index, found in enumerate(turns) if found[1].lower() in ("user", "human"))
    end = turns[last + 1].start() if last + 1 < len(turns) else len(text)
    parts.keep(text[turns[last].end() : end], "history", "")


def _courtesies(parts: MessageParts) -> None:
    """Greetings and small talk before the request, thanks after it."""
    if (request := without_courtesies(parts.request)) is not parts.request:
        parts.keep(request, "courtesy", "")


def _document(parts: MessageParts) -> None:
    """A Markdown document with the request before or after it; of an instruction file nothing else counts."""
    text = parts.request
    if len(text) < MIN_DOCUMENT_CHARACTERS or "\n#" not in text:
        return
    headings = [found.start() for found in _HEADING_LINE.finditer(text)]
    if len(headings) < 2:
        return
    named = _INSTRUCTION_FILE.search(text[:300])
    lead = text[: headings[0]].strip()
    if _INSTRUCTION_FILE.search(lead):
        lead = ""
    closing = text[text.rstrip().rfind("\n\n") + 2 :].strip()
    if len(closing) > MAX_CLOSING_CHARACTERS or _LIST_ITEM.match(closing):
        closing = ""
    request = "\n".join(part for part in (lead, closing) if part)
    if named and not request:
        parts.cut("document", named[0], text)
        parts.request = ""
    elif named or (is_instruction(lead or closing) and has_topic(lead or closing)):
        parts.keep(request, "document", named[0] if named else "", material="" if named else text)


def _material(parts: MessageParts) -> None:
    """An instruction in the head or at the end, and the long text that it is about; of any length to translate it."""
    text = parts.request
    head = _head_of(text)
    if (
        head
        and is_instruction(head)
        and (_has_long_material(text, head) or (is_translation(head) and names_language(head)))
    ):
        parts.keep(head, "material", "after the instruction", material=text[len(head) :].strip())
        return
    if len(text) < MIN_MATERIAL_CHARACTERS:
        return
    begin = text.rfind("\n\n") + 2
    if begin < 2 * MIN_MATERIAL_CHARACTERS:
        return
    closing = text[begin:].strip()
    if len(closing) <= MAX_INSTRUCTION_CHARACTERS and is_instruction(closing) and has_topic(closing):
        parts.keep(closing, "material", "before the instruction", material=text[:begin].strip())


def _has_long_material(text: str, head: str) -> bool:
    """True if the instruction `head` has a topic, and the rest of the text is long enough to be its material."""
    if len(text) < MIN_MATERIAL_CHARACTERS or len(text) - len(head) < MIN_MATERIAL_CHARACTERS // 2:
        return False
    return has_topic(head)


def _head_of(text: str) -> str:
    """The first line or, if shorter, what precedes its first colon; empty if it is too long for an instruction."""
    if colon := _COLON.match(text):
        return colon[0]
    line, _, rest = text.partition("\n")
    return line if rest.startswith("\n") and len(line) <= MAX_INSTRUCTION_CHARACTERS else ""


_SPLITS: tuple[Callable[[MessageParts], None], ...] = (
    _tool_result,
    _lines,
    _scaffold,
    _history,
    _courtesies,
    _document,
    _material,
)
