"""The page on errors, from the error tree, the table to HTTP and the causes of experts' failures."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.reference.markdown import code, one_line, sentence, table
from scripts.reference.sources import CAUSES, Failure, failures, process_errors

TITLE = "Errors"
ABOUT = "Every error code with its status, meaning and remedy, and every cause of an expert's failure."

_PAGE = """\
# Errors

Errors of the gateway, with their codes and remedies. A failed request has OpenAI's error body; the Messages API has
Anthropic's.

```json
{{
  "error": {{
    "message": "the model 'gpt-5' does not exist here; known: auto, coder, generalist",
    "type": "invalid_request_error",
    "param": "model",
    "code": "model_not_found"
  }}
}}
```

`code` names the error, `param` the field at fault. Responses with status 429 or 503 may carry `retry-after`, in
seconds. After the first byte of a stream, an error is an event of the stream.

## Codes

{codes}

## Causes

`x-coe-cause`, the routing record, the logs and the metrics name the cause for which an expert did not answer.
`coe check --live` requests a few tokens from every expert and reports the cause with its remedy.

{causes}

## Errors of commands and processes

A `coe` command prints the message of these errors and exits with 1. Each message names the place, what is wrong and
the remedy.

{process}
"""
_REMEDIES: Mapping[str, str] = {
    "ambiguous_model": "Name one embedding expert as `model`, since vectors of different models cannot be compared.",
    "artifact_not_found": "List the versions with `coe versions`.",
    "artifact_refused": "Read the message; train or plan again for the current experts.yaml.",
    "answer_memory_full": "Request a stream, raise `limits.body_memory_mb`, or limit the key's `concurrent_requests`.",
    "body_memory_full": "Raise `limits.body_memory_mb`, or limit the key's `concurrent_requests`.",
    "body_too_large": "Send a smaller body, or raise `limits.max_body_mb`.",
    "cross_origin_request": "Add the page's origin to `access.allowed_origins` if that is intended.",
    "deadline_exceeded": "Allow more time in `x-coe-timeout` or `policy.timeout`.",
    "document_not_found": "List the documents with `coe index list --documents`.",
    "documents_unavailable": "Check the store; run `coe index rebuild` after a change of the encoder.",
    "draining": "Send the request again; another gateway or the next start serves it.",
    "duplicate_id": "Send each document id once.",
    "expert_asleep": "Retry after `retry-after`, or raise `residency.wait_timeout`.",
    "expert_busy": "Retry after `retry-after`, or ask the provider for a higher limit.",
    "expert_error": "Read the cause in `x-coe-cause` and the log of the expert's server.",
    "expert_invalid_response": "Check that `base_url` is an OpenAI-compatible API and that `apis` is right.",
    "expert_not_local": "Request `auto` or a local expert; declare `local: true` for a server of your own.",
    "expert_not_permitted": "Add a declared expert to the key's `access.keys.experts`.",
    "expert_rejected": "Correct the request; the message and `param` are the expert's.",
    "expert_timeout": "Check the load of the expert's server, or raise the timeouts in `policy`.",
    "expert_unavailable": "Run `coe check --live` and follow the remedy of the [cause](#causes).",
    "feedback_unknown_request": "Check the request id, and send feedback while the routing log keeps the record.",
    "headers_too_large": "Send fewer or shorter headers.",
    "insufficient_scope": "Use a key with the scope that the message names.",
    "internal_error": "Read the log of the gateway; this is a bug.",
    "invalid_api_key": "Send a declared key as `authorization: Bearer KEY`; `coe key` makes one.",
    "invalid_form": "Send a `multipart/form-data` body; the message names its fault.",
    "invalid_http": "Send HTTP/1.1 with CRLF line ends and one of `content-length` and `transfer-encoding`.",
    "invalid_host": "Send exactly one `Host` header.",
    "invalid_json": "Send a JSON object in UTF-8.",
    "invalid_request": "Correct the field that `param` names.",
    "item_not_found": "Send the item itself; see [stored responses](../guides/clients.md#stored-responses).",
    "job_unavailable": "Retry after `retry-after`; the gateway's log has the job's output.",
    "key_not_found": "List the keys with `GET /v1/keys` or on the page.",
    "key_refused": "Read the message: take another name, fewer rights, or change experts.yaml.",
    "keys_unavailable": "Check `access.counters` or the disk, and repeat the change.",
    "log_unavailable": "Check Redis or the disk, and send the feedback again.",
    "model_not_found": "Use `auto` or a name that `GET /v1/models` lists.",
    "no_capable_expert": "Declare `capabilities`, `apis` or a `context_length` that cover the request.",
    "not_installed": "Install the package that the message names where the gateway runs.",
    "overloaded": "Retry after `retry-after`; add workers, replicas or permits.",
    "previous_response_not_found": "Send the conversation in `input`, or raise `stored_responses.lifetime`.",
    "rate_limit_exceeded": "Retry after `retry-after`, or raise the limits of the key.",
    "record_not_found": "Check the request id; the log keeps records for `log.keep_days`.",
    "request_exceeds_limit": "Lower `max_tokens`, or raise the limit that the message names.",
    "request_timeout": "Send the body faster.",
    "response_not_found": "Store answers (`stored_responses`), raise their `lifetime`, and use the same API key.",
    "responses_unavailable": "Check Redis or the disk, or send the conversation in `input`.",
    "thread_unsupported_request": "Send the conversation without `thread`, or pin an expert that speaks Messages.",
    "too_many_values": "Send fewer JSON values, or raise `limits.max_json_values`.",
    "unsupported_api": "Leave out what the message names, or declare an expert that speaks the API.",
    "unsupported_media_type": "Send `content-type: application/json`.",
    "untrusted_host": "Add the host name to `access.allowed_hosts`.",
}
_MEANINGS: Mapping[str, str] = {
    "ambiguous_model": "Several experts can embed the texts.",
    "expert_not_local": "Only local experts may receive the request, and it demands another or there is none.",
    "expert_not_permitted": "The list of the API key permits no expert that is declared.",
    "internal_error": "The gateway failed.",
    "invalid_form": "The body is not a multipart form.",
    "invalid_json": "The body is not a JSON object.",
    "item_not_found": "No item of this id is stored for the tenant or API key.",
    "no_capable_expert": "No expert fits the request, or the pinned expert does not.",
    "previous_response_not_found": "No answer of this id is stored for the tenant or API key.",
    "request_exceeds_limit": "The request may use more than a limit of the key ever allows.",
    "too_many_values": "The body holds more JSON values than allowed.",
    "unsupported_api": "The expert does not support a part of the request's API.",
}
"""Error codes without a class of their own, and the code of the base class."""


def page() -> str:
    """The page, in Markdown. Raises KeyError for a code without a remedy or a meaning."""
    rows = [(code(one.code), one.status, _meaning(one), _REMEDIES[one.code]) for one in failures()]
    causes = [(code(cause), sentence(meaning), sentence(remedy)) for cause, (meaning, remedy) in CAUSES.items()]
    process = [(code(name), _first(meaning)) for name, meaning in process_errors()]
    return _PAGE.format(
        codes=table(("code", "status", "meaning", "remedy"), rows),
        causes=table(("cause", "meaning", "remedy"), causes),
        process=table(("error", "meaning"), process),
    )


def surplus() -> set[str]:
    """Codes that are described here and that no error has."""
    known = {one.code for one in failures()}
    return (set(_REMEDIES) | set(_MEANINGS)) - known


def _meaning(failure: Failure) -> str:
    return _MEANINGS.get(failure.code) or _first(failure.meaning)


def _first(text: str) -> str:
    """The first sentence of a docstring."""
    return one_line(text.partition("\n\n")[0]).partition(". ")[0].rstrip(".") + "."
