"""Latency and errors of one API key's requests while another key is hostile.

    .venv/bin/python -m benchmarks.hostile_tenant [ATTACK ...] [--rounds 3] [--seconds 10] [--home DIR] [--json FILE]

A gateway of one worker serves two keys. In each round one key sends 25 short chats a second on two connections, first
alone, then while the other key attacks from a process of lower priority. The latency of a chat is counted from when it
was due. Each attack has a gateway of its own:

- `schemas`: schemas of 8 kB whose patterns are expensive to compile, for a vote
- `timeouts`: requests for 2,000 tokens that end after 0.2 s, from a key with a limit of $0.50; the provider bills them
- `large_bodies`: bodies of 66 kB that name an unknown model, on 16 connections
- `large_bodies_of_both`: the same, and the chats of the other key have 66 kB too
- `stored_streams`: five Responses streams of 13 MB; the other key continues its stored responses
- `slow_streams`: 40 streams without end, for a gateway of 20 permits
- `endless_answers`: 40 JSON answers without end, of 4 MB a second each
- `refusals`: a pinned expert that fails, once a second, at two gateways behind nginx as deploy/nginx/coe.conf has it
- `objects`, `string`: 50 bodies of 20 MB: `[{},{},...]`, which costs most memory for its bytes, or one long string
- `over_limit`: the string, from a key whose requests_per_minute are used up

The goals are a p99 of at most twice that alone, and no error. Besides: the largest RSS of the gateway's worker in MB,
what the attacker was answered, and the cores that gateway and attacker used. Needs nginx.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
import psutil
import uvloop

from benchmarks.harness import (
    ANSWER,
    GATEWAY_PORT,
    ROOT,
    STARTER,
    UPSTREAM_PORT,
    head,
    require,
    running,
    trained,
    upstream,
    worker_of,
)
from benchmarks.large_body import cpu
from benchmarks.streaming_upstream import HEAD, chunk, event
from coe.registry import load
from tests.gateway.nginx import balancing

EXPERT_PORT = 18099
EXPERT = f"http://127.0.0.1:{EXPERT_PORT}/"
PACE, CONNECTIONS = 0.04, 2
"""Seconds between two chats, and connections that send them in turn."""
ANSWER_TIMEOUT = 10.0
PIECE = 2**18
TOKENS, PRICE = 2000, 20.0
"""Of a request of `timeouts`: `max_tokens`, and dollars per million of them."""
KEY, HOSTILE_KEY, ADMIN_KEY = "sk-everyday", "sk-hostile", "sk-admin"
MEMBERS = [f"member-{number}" for number in range(3)]
PLAIN = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
ENDLESS_START, ENDLESS_RATE = b'{"choices":[{"message":{"role":"assistant","content":"', 4e6


def request(fields: Any, key: str = HOSTILE_KEY, *, path: bytes = b"chat/completions", more: bytes = b"") -> bytes:
    body = fields if isinstance(fields, bytes) else orjson.dumps(fields)
    return head(len(body), key).replace(b"chat/completions", path)[:-2] + more + b"\r\n" + body


def chat(model: str, text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def schemas() -> Iterator[bytes]:
    many = {"allOf": [{"pattern": r"\pL{100}0"}] * 300}
    nested = {"properties": {f"p{number}": {"pattern": r"^(\w{20}){9}$"} for number in range(100)}}
    named = {"patternProperties": {rf"{number}[^x\s]{{90}}": {} for number in range(200)}}
    for schema in (many, nested, named):
        demanded = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        yield request(chat("council", response_format=demanded))


def repeated(start: bytes, text: bytes, end: bytes, size: int = 20_000_000) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([request(start + text * (size // len(text)) + end)])


def sent(fields: dict[str, Any], **more: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([request(fields, **more)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """`pause` is seconds between an answer and a connection's next request, `lead` those before anything is measured.
    `limits` are the gateway's, `key_limits` the hostile key's; `chat_bytes` is the size of the other key's chats."""

    requests: Callable[[], Iterator[bytes]]
    connections: int
    pause: float = 0.0
    lead: float = 0.0
    limits: Mapping[str, Any] = field(default_factory=dict)
    key_limits: Mapping[str, Any] = field(default_factory=dict)
    chat_bytes: int = 0
    stores: bool = False
    gateways: int = 1


LARGE = sent(chat("unknown", "word " * 13_200))
STREAM = sent({"model": "slow", "input": "hi", "stream": True, "unknown": "x" * 13_000_000}, path=b"responses")
BILLED = sent(chat("billing", max_tokens=TOKENS), more=b"x-coe-timeout: 0.2\r\n")
STRING = repeated(b'{"model":"auto","messages":[{"role":"user","content":"', b"long ", b'"}]}')
OBJECTS = repeated(b'{"model":"auto","messages":[', b"{},", b"{}]}")
FEW = {"concurrent_requests": 20, "queue_timeout": 2}
ATTACKS = {
    "schemas": Attack(requests=schemas, connections=2, pause=0.2),
    "timeouts": Attack(requests=BILLED, connections=4, pause=0.05, key_limits={"dollars_per_day": 0.5}),
    "large_bodies": Attack(requests=LARGE, connections=16),
    "large_bodies_of_both": Attack(requests=LARGE, connections=16, chat_bytes=66_000),
    "stored_streams": Attack(requests=STREAM, connections=5, pause=1.0, lead=3.0, stores=True),
    "slow_streams": Attack(requests=sent(chat("slow", stream=True)), connections=40, pause=0.5, lead=1.0, limits=FEW),
    "endless_answers": Attack(requests=sent(chat("endless")), connections=40, pause=0.5, lead=1.0),
    "refusals": Attack(requests=sent(chat("failing")), connections=1, pause=1.0, gateways=2),
    "objects": Attack(requests=OBJECTS, connections=50, pause=1.0),
    "string": Attack(requests=STRING, connections=50, pause=1.0),
    "over_limit": Attack(requests=STRING, connections=50, pause=1.0, key_limits={"requests_per_minute": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a phase: 750 chats alone in 3 rounds")
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        os.nice(10)
        uvloop.run(serve_expert() if options.process == "expert" else attack(options.process, int(options.attacks[0])))
        return
    require("nginx")
    trained(options.home)
    report = {}
    for name in options.attacks or ATTACKS:
        report[name] = uvloop.run(measured(name, options))
        print(json.dumps({name: report[name]}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def own_command(process: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.hostile_tenant", *words, "--process", process)


async def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # nginx's worker, which may be another user, buffers large bodies there
        stack.enter_context(upstream(folder))
        stack.enter_context(running(own_command("expert"), ready=EXPERT))
        (folder / "experts.yaml").write_bytes(orjson.dumps(declared(ATTACKS[name])))
        ports, processes = [GATEWAY_PORT + number for number in range(ATTACKS[name].gateways)], []
        for port in ports:
            shutil.copytree(options.home / "artifacts", folder / str(port) / "artifacts")
            command = ["-m", "coe.cli", "serve", "--config", str(folder / "experts.yaml"), "--port", str(port)]
            env = os.environ | {"COE_HOME": str(folder / str(port)), "COE_WORKERS": "1"}
            ready = f"http://127.0.0.1:{port}/health/ready"
            served = running([sys.executable, *command], ready=ready, env=env, output=subprocess.DEVNULL)
            processes.append(stack.enter_context(served))
        entry = ports[0]
        if len(ports) > 1:
            (folder / "nginx").mkdir()
            entry = int((await stack.enter_async_context(balancing(folder / "nginx", ports))).rpartition(":")[2])
        victim, alone, attacked = Victim(entry, ATTACKS[name], processes[0]), Phases(), Phases()
        await victim.send(2.0, Phases())  # warms up
        answers, attacker_seconds = Counter[str](), 0.0
        for _ in range(options.rounds):
            await victim.until_quiet()
            await victim.send(options.seconds, alone)
            command = own_command(name, str(entry))
            attacker = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
            assert attacker.stdout
            await attacker.stdout.readline()
            await victim.send(options.seconds, attacked)
            attacker.terminate()
            reported = json.loads((await attacker.communicate())[0])
            answers += Counter(reported["answers"])
            attacker_seconds += reported["cpu"]
        return {
            "alone": alone.figures(),
            "attacked": attacked.figures(),
            "p99_ratio": round(percentile(attacked.times, 99) / percentile(alone.times, 99), 2),
            "attacker": {"answers": dict(answers), "cores": round(attacker_seconds / attacked.seconds, 2)},
            **dollars(ports[0]),
        }


def declared(attack: Attack) -> dict[str, Any]:
    """The gateway's declaration: an expert for everyday chats, and those that the attacks use."""
    external = {"runtime": "external", "context_length": 10**8, "capabilities": ["json_schema"]}
    hostile = external | {"base_url": f"{EXPERT}v1", "prices": {"output": PRICE}}
    everyday = external | {"name": "everyday", "model": "m", "base_url": f"http://127.0.0.1:{UPSTREAM_PORT}/v1"}
    rights = {KEY: {}, HOSTILE_KEY: {"limits": attack.key_limits}, ADMIN_KEY: {"scopes": ["admin"]}}
    digests = {key: hashlib.sha256(key.encode()).hexdigest() for key in rights}
    names = ["billing", "slow", "endless", "failing", *MEMBERS]
    return {
        "version": 1,
        "categories": [one.model_dump(mode="json") for one in load(ROOT / "experts.yaml", environ={}).categories],
        "experts": [everyday, *({"name": name, "model": name, **hostile} for name in names)],
        "recipes": [{"name": "council", "vote": MEMBERS}],
        "assignment": {"general": "everyday"},
        "limits": attack.limits,
        "access": {"keys": [{"name": key[3:], "sha256": digests[key], **more} for key, more in rights.items()]},
    }


def dollars(port: int) -> dict[str, float]:
    """What the hostile key was charged, and what its provider billed."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"x-api-key": ADMIN_KEY})
    with urllib.request.urlopen(asked) as page, urllib.request.urlopen(EXPERT) as bill:
        charged = re.search(rb'coe_key_cost_dollars_total\{key="hostile"\} (\S+)', page.read())
        return {"charged": float(charged[1]) if charged else 0.0, "billed": json.load(bill)["billed"]}


def percentile(times: list[float], percent: int) -> float:
    return round(statistics.quantiles(times, n=100)[percent - 1], 1)


@dataclass(slots=True)
class Phases:
    """What was measured while the key was alone, or while it was attacked; times in ms."""

    rounds: list[list[float]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    continued: Counter[str] = field(default_factory=Counter)
    rss_mb: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def times(self) -> list[float]:
        return [time for times in self.rounds for time in times]

    def figures(self) -> dict[str, Any]:
        return {
            "p50": percentile(self.times, 50),
            "p99": percentile(self.times, 99),
            "p99_of_rounds": [percentile(times, 99) for times in self.rounds],
            "chats": len(self.times),
            "errors": {outcome: count for outcome, count in self.outcomes.items() if outcome != "200"},
            "continued_responses": dict(self.continued),
            "rss_mb": round(self.rss_mb),
            "gateway_cores": round(self.cpu / self.seconds, 2),
        }


class Victim:
    """The key that is not hostile. No prompt is sent twice."""

    def __init__(self, port: int, attack: Attack, gateway: psutil.Process) -> None:
        self._port, self._attack, self._gateway = port, attack, gateway
        texts = [json.loads(line)["prompt"] for line in STARTER.read_text(encoding="utf-8").splitlines() if line]
        Random(0).shuffle(texts)
        system = [{"role": "system", "content": "word " * (attack.chat_bytes // 5)}] if attack.chat_bytes else []
        fields = (chat("auto", f"{text}{' ' * more}") for more in itertools.count() for text in texts)
        self._requests = (request(one | {"messages": system + one["messages"]}, KEY) for one in fields)

    async def until_quiet(self) -> None:
        """Wait until the last attack is over, at most five minutes."""
        async with asyncio.timeout(300):
            while True:
                await self.send(0.5, tried := Phases())
                if max(tried.times) < 200 and tried.cpu < 0.2:
                    return

    async def send(self, seconds: float, phases: Phases) -> None:
        began, used = time.perf_counter(), cpu(self._gateway)
        phases.rounds.append([])
        beside = [asyncio.create_task(self._sample_memory(phases))]
        if self._attack.stores:
            beside.append(asyncio.create_task(self._continue_responses(phases)))
        await asyncio.gather(*(self._send_chats(number, seconds, phases) for number in range(CONNECTIONS)))
        for task in beside:
            task.cancel()
        phases.seconds += time.perf_counter() - began
        phases.cpu += cpu(self._gateway) - used

    async def _send_chats(self, first: int, seconds: float, phases: Phases) -> None:
        """Send the chats of one connection, each when it is due or else once the one before is answered."""
        start, connection = time.perf_counter(), Connection(self._port)
        for number in range(first, int(seconds / PACE), CONNECTIONS):
            due = start + number * PACE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            outcome, _ = await connection.exchange(next(self._requests), ANSWER_TIMEOUT)
            phases.outcomes[outcome] += 1
            phases.rounds[-1].append(1000 * (time.perf_counter() - due))
        connection.close()

    async def _sample_memory(self, phases: Phases) -> None:
        worker = worker_of(self._gateway)
        while worker.is_running():
            phases.rss_mb = max(phases.rss_mb, worker.memory_info().rss / 1e6)
            await asyncio.sleep(0.05)

    async def _continue_responses(self, phases: Phases) -> None:
        """Twice a second, send a request of the Responses API and one that continues it."""
        connection, fields = Connection(self._port), {"model": "everyday", "input": "hi"}
        while True:
            _, answer = await connection.exchange(request(fields, KEY, path=b"responses"), ANSWER_TIMEOUT)
            following = fields | {"previous_response_id": json.loads(answer or b"{}").get("id", "")}
            outcome, _ = await connection.exchange(request(following, KEY, path=b"responses"), ANSWER_TIMEOUT)
            phases.continued[outcome] += 1
            await asyncio.sleep(0.5)


class Connection:
    """A client's connection, opened again when the gateway has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()
        self._streams = None

    async def exchange(self, data: bytes, timeout: float | None = None) -> tuple[str, bytes]:
        """Send a request. Return the status or failure, and the body of an answer with a length."""
        try:
            async with asyncio.timeout(timeout):
                self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
                return await self._exchange(data, *self._streams)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return ("timeout" if isinstance(error, TimeoutError) else "closed"), b""

    async def _exchange(
        self, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, bytes]:
        started, at = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n")), 0
        try:
            while at < len(data) and not started.done():  # no longer sent once there is an answer
                writer.write(data[at : at + PIECE])
                at += PIECE
                await writer.drain()
            answer = (await started).lower()
        finally:
            started.cancel()
        body, last = b"", b" "
        if b"content-length: " in answer:
            body = await reader.readexactly(int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        else:
            while last and not last.endswith(b"0\r\n\r\n"):
                last = await reader.read(PIECE)
        if at < len(data) or b"connection: close" in answer:
            self.close()
        return answer[9:12].decode(), body


async def attack(name: str, port: int) -> None:
    """Attack until SIGTERM; then print how often which answer came, and the seconds of processor time."""
    answers, over, requests = Counter[str](), asyncio.Event(), list(ATTACKS[name].requests())

    async def repeat(number: int) -> None:
        connection = Connection(port)
        for turn in itertools.count(number):
            outcome, _ = await connection.exchange(requests[turn % len(requests)])
            answers[outcome] += 1
            await asyncio.sleep(0.2 if outcome == "closed" else ATTACKS[name].pause)

    used = time.process_time()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    clients = [asyncio.create_task(repeat(number)) for number in range(ATTACKS[name].connections)]
    await asyncio.sleep(ATTACKS[name].lead)
    print("ready", flush=True)
    await over.wait()
    for client in clients:
        client.cancel()
    print(json.dumps({"answers": answers, "cpu": time.process_time() - used}))


async def serve_expert() -> None:
    """The experts that the attacks use, by the name of the model; a GET returns what was billed."""
    billed = 0.0

    async def endless(writer: asyncio.StreamWriter, data: bytes, seconds: float) -> None:
        while True:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(seconds)

    async def respond(fields: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        nonlocal billed
        model, answer = fields.get("model"), ANSWER.encode()
        if model == "slow":
            writer.write(HEAD)
            await endless(writer, chunk(event()), 0.5)
        elif model == "endless":
            writer.write(PLAIN % (200, 10**12, ENDLESS_START))
            await endless(writer, b"x" * PIECE, PIECE / ENDLESS_RATE)
        elif model == "billing":  # all tokens, whether anybody waits for them or not
            billed += fields["max_tokens"] * PRICE / 1e6
            await asyncio.sleep(1.0)
        elif model is None:
            answer = orjson.dumps({"billed": billed})
        writer.write(PLAIN % (500 if model == "failing" else 200, len(answer), answer))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, RuntimeError, asyncio.IncompleteReadError):  # uvloop's, once a connection is closed
            while True:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(asked.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await respond(orjson.loads(await reader.readexactly(length)) if length else {}, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", EXPERT_PORT, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    main()
