"""Lua scripts of the document store, each of which runs atomically.

Keys, all with the prefix `coe:{documents}:` (one hash slot). `index` is a hash of the current version and its encoder;
`rebuilding` is the lock of a rebuild. Each version has `parts` (set of TENANT/COLLECTION), `next` (last chunk number),
and for each part: `docs` (id -> [digest, source, title, chunk numbers]), `chunks` (number -> [id, text, source,
title]), `terms` (number -> its terms), `vectors` (a vector set of numbers) and `words:TERM` (packed postings,
`terms.POSTING`)."""

from __future__ import annotations

MAX_COMMON_POSTINGS_BYTES = 20_000 * 6
"""Postings size above which a term is too common to search for, unless it is the rarest of the question."""
MAX_TERMS = 8
"""Terms of a question that are searched for, rarest first."""

CREATE = """
if redis.call('HEXISTS', KEYS[1], 'version') == 0 then
  redis.call('HSET', KEYS[1], 'version', ARGV[1], 'digest', ARGV[2], 'dimensions', ARGV[3])
end
"""

_CHECK_VERSION = """
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then return redis.error_reply('REBUILDING') end
if ARGV[2] == '' or not holder then
  if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return redis.error_reply('VERSION_CHANGED') end
end
local part = ARGV[3]
"""

_DELETE_FUNCTION = f"""
local function delete_document(part, name)
  local known = redis.call('HGET', part .. 'docs', name)
  if not known then return 0 end
  for _, number in ipairs(cjson.decode(known)[4]) do
    local packed = struct.pack('<I4', number)
    local words = redis.call('HGET', part .. 'terms', number) or ''
    for word in string.gmatch(words, '%S+') do
      local key = part .. 'words:' .. word
      if redis.call('STRLEN', key) <= {MAX_COMMON_POSTINGS_BYTES} then -- longer ones keep rows of deleted chunks
        local rows, at = redis.call('GET', key), 1
        while true do
          local found = string.find(rows, packed, at, true)
          if not found then break end
          if (found - 1) % 6 == 0 then
            rows = string.sub(rows, 1, found - 1) .. string.sub(rows, found + 6)
            if rows == '' then redis.call('DEL', key) else redis.call('SET', key, rows) end
            break
          end
          at = found + 1
        end
      end
    end
    redis.call('VREM', part .. 'vectors', number)
    redis.call('HDEL', part .. 'chunks', number)
    redis.call('HDEL', part .. 'terms', number)
  end
  redis.call('HDEL', part .. 'docs', name)
  return 1
end
"""

UPSERT = f"""
{_DELETE_FUNCTION}
{_CHECK_VERSION}
local base, name, head = ARGV[4], ARGV[6], cjson.decode(ARGV[7])
delete_document(part, name)
redis.call('SADD', base .. 'parts', ARGV[5])
local numbers = {{}}
for at = 8, #ARGV, 3 do
  local number = redis.call('INCR', base .. 'next')
  redis.call('VADD', part .. 'vectors', 'FP32', ARGV[at], number)
  redis.call('HSET', part .. 'chunks', number, ARGV[at + 1])
  local packed, words = struct.pack('<I4', number), {{}}
  for word, weight in string.gmatch(ARGV[at + 2], '(%S+) (%d+)') do
    redis.call('APPEND', part .. 'words:' .. word, packed .. struct.pack('<I2', tonumber(weight)))
    words[#words + 1] = word
  end
  redis.call('HSET', part .. 'terms', number, table.concat(words, ' '))
  numbers[#numbers + 1] = number
end
head[4] = numbers
redis.call('HSET', part .. 'docs', name, cjson.encode(head))
"""
"""ARGV: version, lock holder, part's prefix, version's prefix, part, document id, [digest, source, title]; then for
each chunk its vector, its record, and its terms with weights."""

DELETE = f"""
{_DELETE_FUNCTION}
{_CHECK_VERSION}
local count = 0
for at = 4, #ARGV do count = count + delete_document(part, ARGV[at]) end
return count
"""
"""ARGV: version, lock holder, part's prefix; then document ids. Returns the number of documents deleted."""

POSTINGS = f"""
local lengths, words = {{}}, {{}}
for _, word in ipairs(ARGV) do
  local length = 0
  for _, part in ipairs(KEYS) do length = length + redis.call('STRLEN', part .. 'words:' .. word) end
  if length > 0 then
    lengths[word] = length
    words[#words + 1] = word
  end
end
table.sort(words, function(a, b) return lengths[a] < lengths[b] end)
local found = {{}}
for rank, word in ipairs(words) do
  if rank > {MAX_TERMS} or (rank > 1 and lengths[word] > {MAX_COMMON_POSTINGS_BYTES}) then break end
  for _, part in ipairs(KEYS) do
    local rows = redis.call('GET', part .. 'words:' .. word)
    if rows then
      found[#found + 1] = word
      found[#found + 1] = rows
    end
  end
end
return found
"""
"""KEYS: prefixes of parts; ARGV: terms. Returns term and postings alternately, rarest terms first."""

VECTORS = """
local found = {}
for at, number in ipairs(ARGV) do
  found[at] = ''
  for _, part in ipairs(KEYS) do
    local raw = redis.call('VEMB', part .. 'vectors', number, 'RAW')
    if raw then
      found[at] = raw[2]
      break
    end
  end
end
return found
"""
"""KEYS: prefixes of parts; ARGV: chunk numbers. Returns each vector as stored, empty for a deleted chunk."""

SET_VERSION = """
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return redis.error_reply('VERSION_CHANGED') end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'digest', ARGV[2], 'dimensions', ARGV[3])
redis.call('DEL', KEYS[2])
"""
RELEASE_LOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
