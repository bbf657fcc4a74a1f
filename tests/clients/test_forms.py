"""Forms as clients write them, which the gateway accepts with their fields and files."""

from __future__ import annotations

import aiohttp
import httpx
import openai
import pytest
import requests

from coe.experts.http.expert import FormBody

pytestmark = pytest.mark.anyio

AUDIO = b"RIFF\r\n--b\r\n"
NAMES = ["a.wav", 'ü "a".wav', "C:\\a.wav"]
_DECLARED = b"Content-Disposition: form-data; name="
OTHERS = {
    "curl": (_DECLARED + b'"model"', _DECLARED + b'"file"; filename="q%22b.wav"\r\nContent-Type: audio/wav'),
    "curl before 7.81": (
        _DECLARED + b'"model"',
        _DECLARED + b'"file"; filename="q\\"b.wav"\r\nContent-Type: audio/wav',
    ),
    "undici": (_DECLARED + b'"model"', _DECLARED + b'"file"; filename="\xc3\xbc %22a\\"\r\nContent-Type: audio/wav'),
    ".NET": (
        b"Content-Type: text/plain; charset=utf-8\r\n" + _DECLARED + b"model",
        b"Content-Type: audio/wav\r\n" + _DECLARED + b"file; filename=a.wav; filename*=utf-8''a.wav",
    ),
    "OkHttp": (
        _DECLARED + b'"model"\r\nContent-Length: 1',
        _DECLARED + b'"file"; filename="a.wav"\r\nContent-Type: audio/wav\r\nContent-Length: 11',
    ),
    "Ruby": (
        _DECLARED + b'"model"\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Transfer-Encoding: 8bit',
        _DECLARED + b'"file"; filename="a.wav"\r\nContent-Length: 11\r\nContent-Type: audio/wav\r\n'
        b"Content-Transfer-Encoding: binary",
    ),
}


def is_read(body: bytes) -> None:
    form = FormBody(body)
    assert form == {"model": "m"}
    assert form.names == ["file"]
    sent = form.with_model("m")
    assert sent.count(b"Content-Type: audio/wav\r\n\r\n" + AUDIO) == 1
    assert FormBody(sent) == form


@pytest.mark.parametrize("name", NAMES)
async def test_forms_of_python_clients(name: str) -> None:
    files = {"file": (name, AUDIO, "audio/wav")}
    is_read(httpx.Request("POST", "http://h", data={"model": "m"}, files=files).read())
    prepared = requests.Request("POST", "http://h", data={"model": "m"}, files=files).prepare().body
    assert isinstance(prepared, bytes)
    is_read(prepared)
    for quotes in (True, False):
        form = aiohttp.FormData(quote_fields=quotes)
        form.add_field("model", "m")
        form.add_field("file", AUDIO, filename=name, content_type="audio/wav")
        is_read(await form().as_bytes())


def test_forms_of_openais_client() -> None:
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.read())
        return httpx.Response(200, json={"text": "a", "created": 1})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    client = openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http)
    client.audio.transcriptions.create(
        model="m",
        file=("a.wav", AUDIO),
        timestamp_granularities=["word", "segment"],
        chunking_strategy={"type": "server_vad", "threshold": 0.5},
        extra_body={"vad_filter": True},
    )
    client.images.edit(model="m", image=[("a.png", b"x"), ("b.png", b"y")], prompt="p", n=2)
    transcription, edit = map(FormBody, sent)
    assert transcription == edit == {"model": "m"}
    granularities, strategy = ["timestamp_granularities"] * 2, ["chunking_strategy"] * 2
    assert sorted(transcription.names) == sorted([*granularities, *strategy, "vad_filter", "file"])
    assert sorted(edit.names) == ["image", "image", "n", "prompt"]
    assert transcription.with_model("m").count(b'name="chunking_strategy[threshold]"\r\n\r\n0.5\r\n') == 1


@pytest.mark.parametrize("heads", OTHERS.values(), ids=OTHERS)
def test_forms_of_other_clients(heads: tuple[bytes, bytes]) -> None:
    is_read(b"--x\r\n%b\r\n\r\nm\r\n--x\r\n%b\r\n\r\n%b\r\n--x--\r\n" % (*heads, AUDIO))
