"""Forms that select one model at the gateway and another at the expert's server: refused, or sent in one meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO

import pytest
from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from coe.experts.http.expert import FormBody

Form = list[tuple[str, str]]
"""Name and value of each part; the value of a file is empty."""
DECLARED = b'Content-Disposition: form-data; name="%b"'
MODEL = DECLARED % b"model"
OWN = b"--b\r\n%b\r\n\r\ncheap\r\n" % MODEL
ATTACKS = {
    "two names": b'Content-Disposition: form-data; name="x"; name="model"',
    "a name in another parameter": b'Content-Disposition: form-data; a=";name=x"; name="model"',
    "a quoted name": b'Content-Disposition: form-data; name="x;name=model"',
    "an escaped name": b'Content-Disposition: form-data; name="x\\"; name=model"',
    "an encoded name": b"Content-Disposition: form-data; name=\"x\"; name*=utf-8''model",
    "a name in parts": b'Content-Disposition: form-data; name*0="mo"; name*1="del"; name="x"',
    "another type": b'Content-Disposition: attachment; form-data; name="model"',
    "two files": b'Content-Disposition: form-data; name="x"; filename="a"; filename="b"; name="model"',
    "a file that is none": b'Content-Disposition: form-data; x=";filename=1"; name="model"',
    "an empty name of a file": b'Content-Disposition: form-data; name="model"; filename=',
    "a file before its name": b'Content-Disposition: form-data; filename="a\\"; name="model"',
    "a file as the model": MODEL + b'; filename="x"',
    "two headers": DECLARED % b"x" + b"\r\n" + MODEL,
    "two headers of other cases": DECLARED % b"x" + b"\r\n" + MODEL.upper(),
    "a bare line feed": b"X: y\n" + MODEL + b"\r\n" + DECLARED % b"x",
    "a bare carriage return": b"X: y\r" + MODEL + b"\r\n" + DECLARED % b"x",
    "a folded line": DECLARED % b"x" + b';\r\n name="model"',
    "a space before the colon": b"Content-Disposition : form-data; name=model\r\n" + DECLARED % b"x",
    "a zero byte": b'Content-Disposition: form-data; name="x\0"; name="model"',
    "an encoding": DECLARED % b"x" + b"\r\nContent-Transfer-Encoding: quoted-printable",
    "parts within a part": DECLARED % b"x" + b"\r\nContent-Type: multipart/mixed; boundary=c",
    "a character set": DECLARED % b"_charset_",
    "a list": DECLARED % b"model[]",
    "an index": DECLARED % b"model[0]",
    "a second model": MODEL,
    "a second model in capitals": DECLARED % b"MODEL",
    "no head": b"",
}


@pytest.mark.parametrize("head", ATTACKS.values(), ids=ATTACKS)
def test_a_part_that_servers_may_read_as_another_model_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(a part of it|it has|its model)"):
        FormBody(OWN + b"--b\r\n" + head + b"\r\n\r\nexpensive\r\n--b--\r\n")


def test_a_model_of_any_length_is_the_model() -> None:
    form = FormBody(b"--b\r\n%b\r\n\r\n%b\r\n--b--\r\n" % (MODEL, b"m" * 100_000))
    assert form == {"model": "m" * 100_000}


HEADS = [
    *ATTACKS.values(),
    DECLARED % b"language",
    b"content-disposition:form-data;name=prompt",
    DECLARED % b"file" + b'; filename="a.wav"\r\nContent-Type: audio/wav',
    DECLARED % b"file" + b'; filename="a\\"\r\nContent-Type: audio/wav',
    DECLARED % b"file" + b'; filename=";name=model"',
    DECLARED % b"file" + b"; filename=a.wav; filename*=utf-8''a.wav\r\nContent-Type: audio/wav",
    DECLARED % b"list[]" + b"\r\nContent-Length: 5\r\nContent-Type: text/plain; charset=utf-16",
]
VALUES = [
    b"",
    b"cheap",
    b"a\n--b\r\n" + MODEL + b"\r\n\r\nexpensive",
    b"\r\n--bx\r\n" + MODEL,
    b"utf-16",
    b"\xff\r\n\r\n",
]
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"--",
    b"b",
    b'"',
    b"\\",
    b";",
    b":",
    b" ",
    b"\t",
    b"\0",
    b"=",
    b"name",
    b"model",
    b"--b",
]
forms = st.lists(st.tuples(st.sampled_from(HEADS), st.sampled_from(VALUES)), max_size=3)
changes = st.lists(st.tuples(st.integers(0, 2**9), st.integers(0, 3), st.sampled_from(PIECES)), max_size=2)


@given(forms, changes)
@example([(HEADS[-4], b"x")], [])
@example([(HEADS[-1], VALUES[2])], [])
def test_servers_read_the_gateways_model_and_the_same_other_fields_in_every_form_that_is_accepted(
    parts: list[tuple[bytes, bytes]], cuts: list[tuple[int, int, bytes]]
) -> None:
    body = OWN + b"".join(b"--b\r\n%b\r\n\r\n%b\r\n" % part for part in parts) + b"--b--\r\n"
    for at, removed, added in cuts:
        body = body[:at] + added + body[at + removed :]
    try:
        form = FormBody(body)
    except ValueError:
        return
    sent = form.with_model("the gateway's")
    for read in (_starlette, _werkzeug, _aiohttp):
        fields = read(sent, form.content_type)
        bare = [(name.partition("[")[0], value) for name, value in fields]
        assert [value for name, value in bare if name.casefold() == "model"] == ["the gateway's"]
        assert sorted(name for name, _ in bare) == sorted(["model", *form.names])


def _starlette(body: bytes, media_type: str) -> Form:
    """As FastAPI reads a form, and so vLLM."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async def read() -> Form:
        parsed = await MultiPartParser(Headers({"content-type": media_type}), chunks()).parse()
        fields = [(name, value if isinstance(value, str) else "") for name, value in parsed.multi_items()]
        await parsed.close()
        return fields

    return asyncio.run(read())


def _werkzeug(body: bytes, media_type: str) -> Form:
    """As Flask reads a form."""
    kind, options = parse_options_header(media_type)
    _, fields, files = FormDataParser(lambda *_, **__: BytesIO()).parse(BytesIO(body), kind, len(body), options)
    return [*fields.items(multi=True), *((name, "") for name, _ in files.items(multi=True))]


def _aiohttp(body: bytes, media_type: str) -> Form:
    async def read() -> Form:
        loop = asyncio.get_running_loop()
        stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        stream.feed_data(body)
        stream.feed_eof()
        reader, fields = MultipartReader({"Content-Type": media_type}, stream), []
        while (part := await reader.next()) is not None:
            assert isinstance(part, BodyPartReader)
            value = await part.read()
            fields.append((part.name or "", "" if part.filename is not None else value.decode("utf-8", "replace")))
        return fields

    return asyncio.run(read())
