"""An upstream server that streams COUNT events, one every GAP seconds, each with its send time. Argument: port.

A request's `max_tokens` is COUNT, its `top_p` GAP. Events are almost free, so that only
the path to the client is measured.
"""

from __future__ import annotations

import asyncio
import sys
import time

import orjson
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def event() -> bytes:
    """One piece of an answer, as large as vLLM's."""
    reported = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": f"{time.perf_counter():.6f} "}, "finish_reason": None}
    return b"data: %b\n\n" % orjson.dumps(reported | {"choices": [choice]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            fields = orjson.loads(await reader.readexactly(length)) if length else {}
            if not fields.get("stream"):
                writer.write(PLAIN)
                continue
            writer.write(HEAD)
            for _ in range(fields["max_tokens"]):
                writer.write(chunk(event()))
                await asyncio.sleep(fields["top_p"])
            writer.write(chunk(END) + b"0\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**26, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
