"""Heads that clients repeat: they are parsed once, and the caller is identified once for a state of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from coe.registry import AccessSpec, ApiKey
from gateway.access import Access
from gateway.access.access import KeyRing
from gateway.access.browsers import BrowserPolicy
from gateway.http.connection import Connection
from gateway.http.known_heads import MAX_HEADS, MAX_KNOWN_BYTES, KnownHeads
from tests.access.samples import key_of
from tests.fakes import Gateway, gateway_of, registry_of
from tests.gateway.raw_http import answers, echo, served, split
from tests.gateway.two_keys import BODY

pytestmark = pytest.mark.anyio

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The URLs of the heads that the parser reads."""
    urls: list[bytes] = []
    on_url = Connection.on_url

    def noting(connection: Connection, part: bytes) -> None:
        urls.append(part)
        on_url(connection, part)

    monkeypatch.setattr(Connection, "on_url", noting)
    return urls


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, *parts: bytes) -> tuple[bytes, Any]:
        """Send a request in these parts, and return the status line and the JSON of its response."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            for _ in range(5):  # until the server has read it
                await asyncio.sleep(0)
        return await self.answer()

    async def answer(self) -> tuple[bytes, Any]:
        """Return the next response."""
        async with asyncio.timeout(60):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, headers, _ = split(head)
            return status, orjson.loads(await self._reader.readexactly(int(headers[b"content-length"])))


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        yield Client(reader, writer)


def request(body: bytes, *lines: bytes) -> bytes:
    """A request with these lines after the usual ones."""
    return HEAD + b"".join(line + b"\r\n" for line in (*lines, b"content-length: %d" % len(body))) + b"\r\n" + body


# ------------------------------------------------------------------------------------------ the server


async def test_a_repeated_head_is_not_parsed_and_gives_the_same_request(parsed: list[bytes]) -> None:
    async with served(echo) as (_, port), connected(port) as client, connected(port) as other:
        first = (await client.send(request(b"hello", b"X-Twice: 1", b"x-twice: 2")))[1]
        longer = (await client.send(request(b"hello, world", b"X-Twice: 1", b"x-twice: 2")))[1]
        elsewhere = (await other.send(request(b"", b"X-Twice: 1", b"x-twice: 2")))[1]
        repeated = (await other.send(request(b"hello", b"X-Twice: 1", b"x-twice: 2")))[1]
    assert len(parsed) == 2  # a body without bytes is rare, and so is not known
    assert (first["body"], longer["body"], elsewhere["body"]) == ("hello", "hello, world", "")
    assert longer["headers"] == [*first["headers"][:-1], ["content-length", "12"]]
    assert {**longer, "headers": [], "body": ""} == {**first, "headers": [], "body": ""}
    assert repeated == {**first, "client": repeated["client"]}
    assert repeated["client"] == elsewhere["client"] != first["client"]


async def test_the_body_of_a_repeated_head_may_arrive_in_parts(parsed: list[bytes]) -> None:
    body = b"0123456789" * 20_000
    whole = request(body)
    async with served(echo) as (_, port), connected(port) as client:
        for at in (len(whole) - len(body), len(whole) - 5, len(whole) - len(body) + 7):
            assert (await client.send(whole[:at], whole[at:]))[1]["body"].encode() == body
        assert (await client.send(request(b"hi")))[1]["body"] == "hi"
    assert len(parsed) == 1


async def test_a_request_after_a_repeated_one_is_read_from_its_first_byte(parsed: list[bytes]) -> None:
    known, end = request(b"hello"), b"GET /last HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    begun = b"GET /begun HTTP/1.1\r\nhost: localhost\r\nx-rest: "
    async with served(echo) as (_, port):
        async with connected(port) as client:
            assert (await client.send(known))[1]["path"] == "/v1/chat/completions"
        pipelined = await answers(port, known + known + end)
        async with connected(port) as client:
            assert (await client.send(known[:-2], known[-2:] + known))[1]["body"] == "hello"
            assert (await client.answer())[1]["body"] == "hello"
            after = (await client.send(begun, known))[1]
    assert (after["path"], after["body"]) == ("/begun", "hello")
    assert pipelined.count(b'"body":"hello"') == 2
    assert b'"path":"/last"' in pipelined


@pytest.mark.parametrize(
    "line",
    [
        b"content-length: +5", b"content-length: 5, 5", b"content-length: 0x5", b"content-length: 5_0",
        b"content-length: \xef\xbc\x95", b"content-length: 5\r\ncontent-length: 6",
        b"content-length: 5\r\ntransfer-encoding: chunked, gzip", b"content-length: 5\r\n folded",
        b"content-length: 5\r\ntransfer-encoding: chunked", b"content-length: 99999999999999999999999",
    ],
)  # fmt: skip
async def test_a_head_whose_framing_is_doubtful_is_parsed_and_refused(line: bytes) -> None:
    async with served(echo) as (_, port), connected(port) as client:
        for _ in range(2):
            assert (await client.send(request(b"hello")))[0] == b"HTTP/1.1 200 OK"
        assert (await client.send(HEAD + line + b"\r\n\r\nhello"))[0] == b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize(
    "lines", [(b"expect: 100-continue",), (b"connection: close",), (b"upgrade: h2c", b"connection: upgrade")]
)
async def test_heads_that_ask_for_more_than_a_response_are_parsed_each_time(
    lines: tuple[bytes, ...], parsed: list[bytes]
) -> None:
    async with served(echo) as (_, port):
        for _ in range(2):
            async with connected(port) as client:
                assert (await client.send(request(b"hello", *lines)))[1]["body"] == "hello"
    assert len(parsed) >= 2


async def test_values_that_differ_in_each_request_do_not_make_a_head_unknown(parsed: list[bytes]) -> None:
    def lines(number: int) -> list[bytes]:
        values = (
            b"X-Request-ID:%d" % number,
            b"traceparent: 00-%d" % number,
            b"x-forwarded-for: ::1, 10.0.0.%d" % number,
        )
        return [values[0], b"x-other: 1", *values[1:]]

    def expected(number: int) -> list[list[str]]:
        found = [line.decode().split(":", 1) for line in lines(number)]
        return [[name.lower(), value.strip()] for name, value in found]

    async with served(echo) as (_, port), connected(port) as client:
        for number in (1, 20, 300):
            headers = (await client.send(request(b"a" * number, *lines(number))))[1]["headers"]
            assert headers[2:] == [*expected(number), ["content-length", str(number)]]
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "line",
    [b"x-request-id:", b"x-request-id: ", b"x-request-id: a ", b"x-request-id: a  b", b"x-request-id: a\tb",
     b"x-request-id: \xff", b"x-request-id\0", b"\0x-request-id\0", b"x-request-id: \0"],
)  # fmt: skip
async def test_a_value_of_other_characters_is_parsed(line: bytes, parsed: list[bytes]) -> None:
    """The server then answers it as if it knew no head."""
    async with served(echo) as (_, port):
        unknown = await answers(port, request(b"hello", line, b"connection: close"))
    known = request(b"hello", b"x-request-id: a")
    async with served(echo) as (_, port), connected(port) as client:
        for _ in range(2):
            assert (await client.send(known))[0] == b"HTTP/1.1 200 OK"
        before = len(parsed)
        status, found = await client.send(known.replace(b"x-request-id: a", line))
    assert unknown.startswith(status)
    assert (len(parsed) > before) or status == b"HTTP/1.1 400 Bad Request"
    if status.endswith(b"200 OK"):
        assert found["headers"][2:3] == orjson.loads(split(unknown)[2])["headers"][2:3]


def test_a_head_without_the_value_of_a_known_one_is_not_it() -> None:
    heads = KnownHeads()
    line = b"x-request-id: a"
    names = [(b"host", b"localhost"), (b"x-request-id", b"a"), (b"content-length", b"1")]
    heads.add(request(b"a", line), {"method": "POST", "headers": names})
    assert heads.read(request(b"b", b"x-request-id: b")) is not None
    for other in (b"\0x-request-id\0", b"x-request-id:", b"x-request-id: b\r\nx-request-id: c"):
        assert heads.read(request(b"b", other)) is None
    for value in (b"a ", b"a\r\nx-real-ip: b"):  # its headers are not those of the parser
        heads = KnownHeads()
        heads.add(request(b"a", b"x-request-id: " + value), {"method": "POST", "headers": names})
        assert heads.read(request(b"a", b"x-request-id: " + value)) is None


def test_the_number_and_the_length_of_known_heads_are_bounded() -> None:
    heads = KnownHeads()
    lines = [b"x-number: %d" % number for number in range(MAX_HEADS + 1)]
    for line in (*lines, b"x-long: " + b"a" * MAX_KNOWN_BYTES):
        names = [(b"host", b"localhost"), (b"content-length", b"1")]
        heads.add(request(b"a", line), {"method": "POST", "headers": names})
    known = [line for line in lines if heads.read(request(b"b", line)) is not None]
    assert known == lines[1:]
    assert heads.read(request(b"b", b"x-long: " + b"a" * MAX_KNOWN_BYTES)) is None


def test_a_head_that_is_known_replaces_no_other() -> None:
    heads = KnownHeads()
    names = [(b"host", b"localhost"), (b"content-length", b"1")]
    lines = [b"x-number: %d" % number for number in range(MAX_HEADS)]
    for line in (*lines, lines[-1]):
        heads.add(request(b"a", line), {"method": "POST", "headers": names})
    assert all(heads.read(request(b"b", line)) is not None for line in lines)


# ------------------------------------------------------------------------------------- the application


@asynccontextmanager
async def gateway_with(*keys: ApiKey) -> AsyncIterator[tuple[Gateway, Client]]:
    """A gateway with these keys, and a connection to its server."""
    registry = registry_of(access={"keys": [key.model_dump(mode="json") for key in keys]})
    async with gateway_of(registry) as gateway, served(gateway.app) as (_, port), connected(port) as client:
        yield gateway, client


def use(gateway: Gateway, *keys: ApiKey, **changes: Any) -> None:
    """Reload the gateway with these keys."""
    access = Access(AccessSpec(keys=keys), **changes)
    gateway.serving_state.replace(replace(gateway.serving_state.serving, access=access))


def chat(*lines: bytes, key: bytes = b"alice") -> bytes:
    return request(BODY, b"authorization: Bearer " + key, *lines)


async def test_the_caller_of_a_repeated_head_is_identified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"identify": 0, "check": 0}
    for owner, name in ((KeyRing, "identify"), (BrowserPolicy, "check")):
        original = getattr(owner, name)

        def counting(*arguments: Any, original: Any = original, name: str = name) -> Any:
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(owner, name, counting)
    async with gateway_with(key_of("alice"), key_of("bob")) as (gateway, client):
        for _ in range(5):
            assert (await client.send(chat()))[0] == b"HTTP/1.1 200 OK"
        assert counts == {"identify": 2, "check": 2}  # the first request has no known head
        assert (await client.send(chat(key=b"bob")))[0] == b"HTTP/1.1 200 OK"
        assert (await client.send(chat(b"x-session-id: one")))[0] == b"HTTP/1.1 200 OK"
        assert counts == {"identify": 4, "check": 4}
    assert [record.tenant for record in gateway.records] == ["alice"] * 5 + ["bob", "alice"]


async def test_a_revoked_key_is_refused_on_a_connection_that_used_it() -> None:
    async with gateway_with(key_of("alice")) as (gateway, client):
        for _ in range(3):
            assert (await client.send(chat()))[0] == b"HTTP/1.1 200 OK"
        use(gateway, key_of("bob"))
        for _ in range(2):
            assert (await client.send(chat()))[0] == b"HTTP/1.1 401 Unauthorized"
        use(gateway, key_of("alice", tenant="other"))
        assert (await client.send(chat()))[0] == b"HTTP/1.1 200 OK"
        use(gateway, key_of("alice", scopes={"feedback"}))
        assert (await client.send(chat()))[0] == b"HTTP/1.1 403 Forbidden"
    assert [record.tenant for record in gateway.records if record.outcome == "ok"] == ["alice"] * 3 + ["other"]


async def test_a_key_expires_while_its_head_is_known() -> None:
    now = EXPIRES.timestamp() - 1
    async with gateway_with(key_of("alice", expires=EXPIRES)) as (gateway, client):
        use(gateway, key_of("alice", expires=EXPIRES), clock=lambda: now)
        for _ in range(3):
            assert (await client.send(chat()))[0] == b"HTTP/1.1 200 OK"
        now += 1
        status, error = await client.send(chat())
    assert status == b"HTTP/1.1 401 Unauthorized"
    assert "expired on 2030-01-01" in error["error"]["message"]


async def test_a_host_that_a_reload_excludes_is_refused() -> None:
    async with gateway_with(key_of("alice")) as (gateway, client):
        use(gateway, key_of("alice"), host="0.0.0.0")  # every host name
        head = chat().replace(b"localhost", b"gateway.example")
        for _ in range(3):
            assert (await client.send(head))[0] == b"HTTP/1.1 200 OK"
        use(gateway, key_of("alice"))
        assert (await client.send(head))[0] == b"HTTP/1.1 421 Misdirected Request"


async def test_a_head_without_a_key_is_refused_each_time() -> None:
    async with gateway_with(key_of("alice")) as (_, client):
        for _ in range(3):
            assert (await client.send(request(BODY)))[0] == b"HTTP/1.1 401 Unauthorized"
        assert (await client.send(chat()))[0] == b"HTTP/1.1 200 OK"


async def test_a_reload_forgets_the_heads_and_the_keys_in_them() -> None:
    async with gateway_of() as gateway:
        heads = gateway.app.state.heads
        heads.add(chat(), {"method": "POST", "headers": [(b"content-length", b"%d" % len(BODY))]})
        assert heads.read(chat()) is not None
        use(gateway, key_of("alice"))
        assert heads.read(chat()) is None


async def test_session_and_trace_of_a_repeated_head_are_those_of_the_request() -> None:
    sessions = ["a" * 200, "one", "two", "a" * 200, "three"]  # the first is too long for a session
    async with gateway_of() as gateway, served(gateway.app) as (_, port), connected(port) as client:
        for session in sessions:
            lines = f"x-session-id: {session}", f"traceparent: 00-{session}"
            assert (await client.send(request(BODY, *(line.encode() for line in lines))))[0] == b"HTTP/1.1 200 OK"
        asked = [call.headers["traceparent"] for expert in gateway.experts.values() for call in expert.calls]
    assert [record.session for record in gateway.records] == [None, "one", "two", None, "three"]
    assert sorted(asked) == sorted(f"00-{session}" for session in sessions)
