"""Operations that pass through to an expert that declares them in `apis`: rerank, score, tokenize, moderations, audio
and images.

A request goes to the expert that `model` names, or to the best one for the category `general`. It is admitted, metered
and recorded like a chat; nothing is classified, retrieved or cached.
"""

from __future__ import annotations

from dataclasses import replace

from coe.core import PassThroughApi
from coe.registry import AUTO
from gateway.dialects.pass_through import FORM_APIS, PASS_THROUGH
from gateway.endpoints.chat import azure_paths, line_operation
from gateway.endpoints.openapi import ROUTING_HEADERS
from gateway.endpoints.operation import JSON, Operation, Schema, Success, ref

FORM = "multipart/form-data"
ANY_TYPE = "*/*"
_TEXT_HEADERS = ("Timeout", "OnlyLocal", "Purpose", "Trace")
_SUMMARIES: dict[PassThroughApi, tuple[str, str]] = {
    "rerank": ("Rerank", "Scores of documents for a query, as of Jina, Cohere and vLLM"),
    "score": ("Score", "Similarity of pairs of texts, as of vLLM"),
    "tokenize": ("Tokens", "Tokens of a text or chat, as of vLLM"),
    "moderations": ("Moderation", "OpenAI's Moderations"),
    "audio/speech": ("Speech", "OpenAI's Speech: audio of a text"),
    "audio/transcriptions": ("Transcription", "OpenAI's Transcriptions of audio"),
    "audio/translations": ("Translation", "OpenAI's Translations of audio into English"),
    "images/generations": ("Image", "OpenAI's Image Generations"),
    "images/edits": ("ImageEdit", "OpenAI's Image Edits"),
    "images/variations": ("ImageVariation", "OpenAI's Image Variations"),
}
_OTHER_PATHS: dict[PassThroughApi, tuple[str, ...]] = {
    "rerank": ("/rerank", "/v2/rerank"),
    "score": ("/score",),
    "tokenize": ("/v1/tokenize",),
}
_ANSWERS: dict[PassThroughApi, str] = {"audio/speech": ANY_TYPE, "audio/transcriptions": ANY_TYPE}
"""Media types of answers that are not JSON alone."""


def _operation(api: PassThroughApi, name: str, summary: str) -> Operation:
    declared = line_operation(
        name,
        summary,
        PASS_THROUGH[api],
        request_headers=_TEXT_HEADERS,
        streams=False,
        also=_OTHER_PATHS.get(api, azure_paths(api)),
    )
    content: dict[str, Schema] = {_ANSWERS.get(api, JSON): {}}
    return replace(
        declared,
        responses={200: Success("The expert's response, unread.", content, ROUTING_HEADERS)},
        body="PassThroughRequest",
        other_bodies={FORM: "PassThroughForm"} if api in FORM_APIS else {},
    )


OPERATIONS = tuple(_operation(api, *named) for api, named in _SUMMARIES.items())
SCHEMAS: Schema = {
    "PassThroughRequest": {
        "type": "object",
        "properties": {"model": ref("PassThroughModel")},
        "additionalProperties": True,
        "description": "Other fields reach the expert, unless they select a model; `model` becomes its server's name.",
    },
    "PassThroughForm": {
        "allOf": [ref("PassThroughRequest")],
        "propertyNames": {"pattern": r"^(?!_charset_|[mM][oO][dD][eE][lL]\[)[A-Za-z0-9_.-]+(\[[A-Za-z0-9_.-]*\])*$"},
    },
    "PassThroughModel": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": AUTO,
        "description": "`auto`, or the name of an expert that declares this API.",
    },
}
