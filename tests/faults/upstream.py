"""An expert's server that fails in every way, at random: arguments PORT SEED. Speaks HTTP over bare sockets, so that it
can also break HTTP."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import sys
from collections.abc import Awaitable, Callable

CHUNK = b'data: {"model":"m","choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
PLAIN = json.dumps({"model": "m", "choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 2}}).encode()
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

Writer = asyncio.StreamWriter
Answer = Callable[[Writer, bool], Awaitable[bool]]
"""Answer one request, streamed or not. Returns whether the connection can be used again."""


def body(status: bytes, content: bytes, *more: bytes) -> bytes:
    head = (b"HTTP/1.1 " + status, b"content-type: application/json", b"content-length: %d" % len(content), *more)
    return b"\r\n".join((*head, b"", content))


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


async def good(writer: Writer, stream: bool) -> bool:
    if stream:
        writer.write(STREAM + chunked(*[CHUNK] * 5, LAST, DONE) + b"0\r\n\r\n")
    else:
        writer.write(body(b"200 OK", PLAIN))
    return True


async def busy(writer: Writer, _: bool) -> bool:
    writer.write(body(b"429 Too Many Requests", b'{"error":{"message":"later"}}', b"retry-after: 1"))
    return True


async def failing(writer: Writer, _: bool) -> bool:
    writer.write(body(b"503 Service Unavailable", b'{"error":{"message":"down"}}'))
    return True


async def resets(writer: Writer, _: bool) -> bool:
    writer.transport.abort()
    return False


async def dies_in_mid_answer(writer: Writer, stream: bool) -> bool:
    writer.write(STREAM + chunked(CHUNK, CHUNK[:20]) if stream else body(b"200 OK", PLAIN)[:-10])
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.transport.abort()
    return False


async def talks_garbage(writer: Writer, stream: bool) -> bool:
    if stream:
        writer.write(STREAM + chunked(CHUNK, b"data: {no json\n\nnonsense\x00\xff\n\n", b"\r\r\n: \n\n") + b"0\r\n\r\n")
    else:
        writer.write(body(b"200 OK", b'{"choices": [') + b"")
    return True


async def breaks_http(writer: Writer, _: bool) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\nzz\r\n")
    return False


async def freezes(writer: Writer, stream: bool) -> bool:
    if stream:
        writer.write(STREAM + chunked(CHUNK))
        await writer.drain()
    await asyncio.sleep(2)
    return False


ANSWERS: dict[Answer, float] = {
    good: 95,
    resets: 1,
    dies_in_mid_answer: 1,
    talks_garbage: 1,
    breaks_http: 1,
    failing: 0.5,
    busy: 0.1,
    freezes: 0.1,
}
"""Relative frequencies of the faults."""


async def serve(reader: asyncio.StreamReader, writer: Writer, rng: random.Random) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            request = await reader.readexactly(length)
            (answer,) = rng.choices(list(ANSWERS), list(ANSWERS.values()))
            if not await answer(writer, b'"stream":true' in request):
                break
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.transport.abort()


async def listen(port: int, rng: random.Random) -> asyncio.Server:
    """Listens at a port that a connection of another process may have taken since the last run."""
    while True:
        try:
            return await asyncio.start_server(lambda reader, writer: serve(reader, writer, rng), "127.0.0.1", port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            await asyncio.sleep(0.1)


async def main(port: int, seed: int) -> None:
    async with await listen(port, random.Random(seed)) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
