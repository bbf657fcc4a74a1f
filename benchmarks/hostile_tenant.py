"""Latency and errors of one API key's requests while another key is hostile.

    .venv/bin/python -m benchmarks.hostile_tenant [ATTACK ...] [--rounds 3] [--seconds 10] [--home DIR]

In each round one key sends 25 short chats a second on two connections, first alone, then while another key attacks from
a process of lower priority. The latency of a chat is counted from when it was due. Each attack has its own gateway:

- `timeouts`: requests for 2,000 tokens that end after 0.2 s, from a key with a limit of $0.50; the provider bills them
- `large_bodies`: bodies of 66 kB that name an unknown model, on 16 connections, at most 530 a second
- `large_bodies_of_both`: the same, and the chats of the other key have 66 kB too
- `stored_streams`: five Responses streams of 13.4 MB, 64 MiB together; the other key continues stored responses
- `slow_streams`: 40 streams without end, for a gateway of 20 permits
- `endless_answers`: 40 JSON answers without end, of 4 MB a second each
- `refusals`: a pinned expert that fails, once a second, at two gateways behind nginx as deploy/nginx/coe.conf has it
- `failures`: eight requests a second that make each of three experts, which both keys use, answer 500
- `objects`, `string`: 50 bodies of 20 MB: `[{},{},...]`, which costs most memory for its bytes, or one long string
- `over_limit`: the string, from a key whose requests_per_minute are used up

Goals: a p99 of at most twice that alone, and no error; with `failures`, 1 % of the answers at most. `rss_mb` is the
largest of the gateway's worker before and after, `cores` processor time a second. Needs Linux and nginx. On a machine
with other work, start it with `chrt --rr 10`: gateways and chats then have real-time priority, attacks and their
experts do not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop

from benchmarks import harness
from benchmarks.harness import processor_seconds
from coe.artifacts.api_keys import digest_of
from coe.registry import load
from gateway.access.issued_keys import KEYS_FILE
from tests.gateway.nginx import balancing

EXPERT_PORT = 18099
EXPERT = f"http://127.0.0.1:{EXPERT_PORT}/"
PACE, CONNECTIONS, ANSWER_TIMEOUT = 0.04, 2, 10.0  # seconds between two chats; seconds until one counts as an error
PIECE = 2**18
PRICE = 20.0  # dollars per million tokens of an answer
KEY, HOSTILE_KEY = "sk-everyday", "sk-hostile"
MEMBERS = ["member-1", "member-2", "member-3"]
FAILS = "this prompt makes the server fail"
PLAIN = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event() -> bytes:
    """One piece of an answer, as large as vLLM's."""
    fields = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": f"{time.perf_counter():.6f} "}, "finish_reason": None}
    return b"data: %b\n\n" % orjson.dumps(fields | {"choices": [choice]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The fields of a request's body; empty without one."""
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(headers.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    return dict(orjson.loads(await reader.readexactly(length))) if length else {}


ENDLESS = {  # by model: the start of an answer, data that follow it without end, and seconds between them
    "slow": (HEAD, chunk(event()), 0.5),
    "endless": (HEAD.replace(b"text/event-stream", b"application/json"), chunk(b"x" * PIECE), PIECE / 4e6),
}


def request(fields: Any, key: str = HOSTILE_KEY, *, path: bytes = b"chat/completions", more: bytes = b"") -> bytes:
    body = fields if isinstance(fields, bytes) else orjson.dumps(fields)
    return harness.head(len(body), key).replace(b"chat/completions", path)[:-2] + more + b"\r\n" + body


def chat(model: str, text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def string(start: bytes = b'[{"role":"user","content":"', text: bytes = b"long ", end: bytes = b'"}]') -> list[bytes]:
    return [request(b'{"model":"member-1","messages":' + start + text * (20_000_000 // len(text)) + end + b"}")]


@dataclass(frozen=True, slots=True)
class Attack:
    """`pause` is seconds between an answer and the next request of a connection. `limits` are the gateway's,
    `key_limits` the hostile key's. The other key's chats have `chat_bytes` more. With
    `shares_experts`, both keys use three experts at the attacks' server."""

    requests: Callable[[], list[bytes]]
    connections: int
    pause: float = 0.0
    limits: Mapping[str, Any] = field(default_factory=dict)
    key_limits: Mapping[str, Any] = field(default_factory=dict)
    chat_bytes: int = 0
    shares_experts: bool = False
    continues: bool = False
    gateways: int = 1


BILLED = request(chat("billing", max_tokens=2000), more=b"x-coe-timeout: 0.2\r\n")
UNKNOWN = request(chat("unknown", "word " * 13_200))
HELD = {"model": "slow", "input": "x" * (2**26 // 5 - 60), "stream": True}
FEW = {"concurrent_requests": 20, "queue_timeout": 2}
ATTACKS = {
    "timeouts": Attack(lambda: [BILLED], 4, pause=0.05, key_limits={"dollars_per_day": 0.5}),
    "large_bodies": Attack(lambda: [UNKNOWN], 16, pause=0.03),
    "large_bodies_of_both": Attack(lambda: [UNKNOWN], 16, pause=0.03, chat_bytes=66_000),
    "stored_streams": Attack(lambda: [request(HELD, path=b"responses")], 5, pause=1.0, continues=True),
    "slow_streams": Attack(lambda: [request(chat("slow", stream=True))], 40, pause=0.5, limits=FEW),
    "endless_answers": Attack(lambda: [request(chat("endless"))], 40, pause=0.5),
    "refusals": Attack(lambda: [request(chat("failing"))], 1, pause=1.0, gateways=2),
    "failures": Attack(lambda: [request(chat("auto", FAILS))], 2, pause=0.25, shares_experts=True),
    "objects": Attack(lambda: string(b"[", b"{},", b"{}]"), 50, pause=1.0),
    "string": Attack(string, 50, pause=1.0),
    "over_limit": Attack(string, 50, pause=1.0, key_limits={"requests_per_minute": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a phase: 750 chats alone in 3 rounds")
    parser.add_argument("--home", type=Path, default=harness.ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.nice(10)
        uvloop.run(serve_expert() if options.process == "expert" else attack(options.process, int(options.attacks[0])))
        return
    harness.require("nginx")
    for name in options.attacks or ATTACKS:
        print(json.dumps({name: uvloop.run(measured(name, options))}), flush=True)


async def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    one, port, gateways = ATTACKS[name], harness.GATEWAY_PORT, []
    process = (sys.executable, "-m", "benchmarks.hostile_tenant", "--process")
    async with AsyncExitStack() as stack:
        folder, *homes = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(one.gateways + 1))
        stack.enter_context(harness.upstream(folder))
        stack.enter_context(harness.running((*process, "expert"), ready=EXPERT))
        for number, home in enumerate(homes):
            served = harness.gateway(home, workers=1, home=options.home, port=port + number, declared=declared(one))
            gateways.append(stack.enter_context(served)[0])
        if one.gateways > 1:
            port = int((await stack.enter_async_context(balancing(homes[0], [port, port + 1]))).rpartition(":")[2])
        victim, alone, attacked, reports = Victim(port, one, gateways[0]), Measured(), Measured(), []
        await victim.send(options.seconds, Measured())  # warms up
        rss_mb = harness.peak_rss_mb(gateways[0])
        for _ in range(options.rounds):
            await victim.until_quiet()
            await victim.send(options.seconds, alone)
            words = (*process, name, str(port))
            attacker: Any = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            await attacker.stdout.readline()
            await victim.send(options.seconds, attacked)
            attacker.terminate()
            reports.append(json.loads((await attacker.communicate())[0]))
        figures = {"alone": alone.figures(), "attacked": attacked.figures()}
        return figures | {
            "p99_ratio": round(figures["attacked"]["p99"] / figures["alone"]["p99"], 2),
            "rss_mb": [rss_mb, harness.peak_rss_mb(gateways[0])],
            "attacker": reports,
            **dollars(homes[0] / "state"),
        }


def declared(attack: Attack) -> str:
    """The gateway's declaration: an expert for everyday chats, and those that the attacks use."""
    external = {"runtime": "external", "context_length": 10**8, "capabilities": ["json_schema"]}
    hostile = external | {"base_url": f"{EXPERT}v1", "prices": {"output": PRICE}}
    everyday = {"name": "everyday", "model": "m", "base_url": f"http://127.0.0.1:{harness.UPSTREAM_PORT}/v1"}
    names = ["billing", "failing", *ENDLESS, *MEMBERS]
    if attack.shares_experts:
        names, everyday["base_url"] = ["second", "third"], f"{EXPERT}v1"
    limits = {KEY: {"requests_per_minute": 10**6}, HOSTILE_KEY: attack.key_limits}
    declaration = {
        "version": 1,
        "categories": [
            one.model_dump(mode="json") for one in load(harness.ROOT / "experts.yaml", environ={}).categories
        ],
        "experts": [external | everyday, *({"name": name, "model": name, **hostile} for name in names)],
        "assignment": {"general": "everyday"},
        "limits": attack.limits,
        "access": {"keys": [{"name": key[3:], "sha256": digest_of(key), "limits": limits[key]} for key in limits]},
    }
    return json.dumps(declaration)


def dollars(state: Path) -> dict[str, float]:
    """The dollars that the hostile key was charged, and those that its provider billed."""
    with closing(sqlite3.connect(state / KEYS_FILE)) as usage, urllib.request.urlopen(EXPERT) as bill:
        ((charged,),) = usage.execute("SELECT total(used) FROM counters WHERE name LIKE 'hostile/dollars%'")
        return {"charged": round(charged, 2), "billed": round(json.load(bill)["billed"], 2)}


@dataclass(slots=True)
class Measured:
    """The measurements while the key was alone, or attacked; times in ms."""

    times: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    cores: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        cuts, cores = statistics.quantiles(self.times, n=100), statistics.mean(self.cores)
        return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1), "answers": self.answers, "cores": round(cores, 2)}


class Victim:
    """The key that is not hostile. Each phase has the same prompts, which differ in blanks at their end."""

    def __init__(self, port: int, attack: Attack, gateway: psutil.Process) -> None:
        self._port, self._attack, self._gateway, self._blanks = port, attack, gateway, ""
        lines = harness.STARTER.read_text("utf-8").splitlines()
        self._texts = sorted((json.loads(line)["prompt"] for line in lines), key=digest_of)  # shuffled
        self._system = {"role": "system", "content": "Be brief. " + "word " * (attack.chat_bytes // 5)}

    async def until_quiet(self) -> None:
        """Wait until the last attack is over, at most five minutes."""
        for _ in range(300):
            await self.send(1.0, tried := Measured())
            if tried.cores[0] < 0.3 and max(tried.times) < 200:
                return

    async def send(self, seconds: float, measured: Measured) -> None:
        """Send chats for so long."""
        self._blanks += " "
        began, used = time.perf_counter(), processor_seconds(self._gateway)
        await asyncio.gather(*(self._send_chats(first, seconds, measured) for first in range(CONNECTIONS)))
        measured.cores.append((processor_seconds(self._gateway) - used) / (time.perf_counter() - began))

    async def _send_chats(self, first: int, seconds: float, measured: Measured) -> None:
        """Send the chats of one connection, each when it is due or else once the one before is answered."""
        start, connection = time.perf_counter(), Connection(self._port)
        for number in range(first, int(seconds / PACE), CONNECTIONS):
            due, fields = start + number * PACE, chat("auto", self._texts[number] + self._blanks)
            data = request(fields | {"messages": [self._system, *fields["messages"]]}, KEY)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late = time.perf_counter() > start + 2 * seconds
            outcome = "not sent" if late else (await connection.exchange(data, ANSWER_TIMEOUT))[0]
            measured.answers[outcome] += 1
            measured.times.append(1000 * (time.perf_counter() - due))
            if self._attack.continues and number % 12 == 0:
                measured.answers[f"continued: {await self._continue_response(connection)}"] += 1
        connection.close()

    async def _continue_response(self, connection: Connection) -> str:
        """Send a request of the Responses API and one that continues it. Return the second one's status."""
        fields = {"model": "everyday", "input": "hi " * 99}
        _, answer = await connection.exchange(request(fields, KEY, path=b"responses"), ANSWER_TIMEOUT)
        following = fields | {"previous_response_id": json.loads(answer or b"{}").get("id", "")}
        return (await connection.exchange(request(following, KEY, path=b"responses"), ANSWER_TIMEOUT))[0]


class Connection:
    """A client's connection, opened again when the gateway has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()
        self._streams = None

    async def exchange(self, data: bytes, within: float | None = None) -> tuple[str, bytes]:
        """Send a request. Return the status or failure, and the body of an answer with a length."""
        body, last = b"", b" "
        try:
            async with asyncio.timeout(within):
                self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
                reader, writer = self._streams
                writer.write(data)
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                if length := re.search(rb"content-length: (\d+)", answer):
                    body = await reader.readexactly(int(length[1]))
                else:
                    while last and not last.endswith(b"0\r\n\r\n"):
                        last = await reader.read(PIECE)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return ("timeout" if isinstance(error, TimeoutError) else "closed"), b""
        if b"connection: close" in answer:
            self.close()
        return answer[9:12].decode(), body


async def attack(name: str, port: int) -> None:
    """Attack until SIGTERM; then print how often which answer came, and the processor time used."""
    answers, over, requests = Counter[str](), asyncio.Event(), ATTACKS[name].requests()

    async def repeat(first: int) -> None:
        connection = Connection(port)
        for turn in itertools.count(first):
            outcome, _ = await connection.exchange(requests[turn % len(requests)])
            answers[outcome] += 1
            await asyncio.sleep(0.2 if outcome == "closed" else ATTACKS[name].pause)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    clients = asyncio.gather(*(repeat(n) for n in range(ATTACKS[name].connections)), return_exceptions=True)
    await asyncio.wait((clients,), timeout=3.0)  # streams have begun, bodies have arrived
    began, used = time.perf_counter(), time.process_time()
    print("ready", flush=True)
    await over.wait()
    cores = (time.process_time() - used) / (time.perf_counter() - began)
    print(json.dumps({"answers": answers, "cores": round(cores, 2)}))


async def serve_expert() -> None:
    """The experts that the attacks use, by the name of the model; a GET returns what was billed."""
    billed = 0.0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal billed
        with suppress(OSError, RuntimeError, asyncio.IncompleteReadError):  # RuntimeError: uvloop's, of a closed one
            while True:
                fields = await read_request(reader)
                start, data, pause = ENDLESS.get(model := fields.get("model"), (b"", b"", 0.0))
                writer.write(start)
                while pause:
                    writer.write(data)
                    await writer.drain()
                    await asyncio.sleep(pause)
                if model == "billing":  # all tokens, whether anybody waits for them or not
                    billed += fields["max_tokens"] * PRICE / 1e6
                    await asyncio.sleep(1.0)
                answer = harness.ANSWER.encode() if fields else orjson.dumps({"billed": billed})
                fails = model == "failing" or FAILS in str(fields.get("messages"))
                writer.write(PLAIN % (500 if fails else 200, len(answer), answer))
        writer.close()

    await (await asyncio.start_server(serve, "127.0.0.1", EXPERT_PORT, backlog=4096)).serve_forever()


if __name__ == "__main__":
    main()
