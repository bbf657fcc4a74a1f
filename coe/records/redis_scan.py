"""Looking through a stream for what a LogQuery selects: the server leaves out most of what is not wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from coe.records.record import LogQuery, RoutingRecord
from coe.records.selection import named

# Records are lines of our own JSON, so what a field must be is found as bytes; the caller looks again at what is left.
# A line whose time cannot be read is left to the caller too.
SCAN = """
local since, until_ = tonumber(ARGV[5]), tonumber(ARGV[6])
local entries = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local found = {#entries, '', ''}
if #entries > 0 then found[2], found[3] = entries[1][1], entries[#entries][1] end
for _, entry in ipairs(entries) do
  local record = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'record' then record = entry[2][i + 1] end
  end
  local wanted = true
  if since or until_ then
    local time = tonumber(string.match(record, '"time":([%d.eE+-]+)') or '')
    wanted = not time or (not since or time >= since) and (not until_ or time <= until_)
  end
  for i = 7, #ARGV do
    if not wanted then break end
    wanted = string.find(record, ARGV[i], 1, true)
  end
  if wanted then
    found[#found + 1] = entry[1]
    found[#found + 1] = record
  end
end
return found
"""


@dataclass(frozen=True, slots=True)
class Looked:
    """One answer of the script: how many entries it went past, the first and the last of them, and what it let
    through."""

    count: int
    first: str
    last: str
    entries: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Walked:
    """What was found on the way from `first` to `last` (ids, empty where there was nothing), how many entries there
    were damaged, and whether the walk came to its end."""

    records: tuple[RoutingRecord, ...]
    first: str
    last: str
    damaged: int
    ended: bool


def conditions(query: LogQuery) -> list[str | bytes]:
    """The script's arguments from the fifth on."""
    since = repr(query.since) if query.since else ""
    until = repr(query.until) if query.until < math.inf else ""
    needles = [_needle(name, value) for name, value in named(query).items()]
    if query.request_id:
        needles.append(_needle("request_id", query.request_id)[:-1])  # without the closing quote
    return [since, until, *needles]


def _needle(name: str, value: str) -> bytes:
    """How a record says that."""
    return orjson.dumps({name: value.encode("utf-8", "replace").decode()})[1:-1]
