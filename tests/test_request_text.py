"""The routed text of a chat: the user's request without what clients and agents add."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.boilerplate import chat_of
from benchmarks.boilerplate_wrappers import CONTRACT, LEAFLET, WRAPPERS, Messages, user
from coe.routing.message_parts import CODING_AGENT, MAX_MESSAGE_CHARACTERS, split_message
from coe.routing.request_text import MAX_LEFT_OUT, read_request, routing_text
from coe.routing.units import opens_topic

HAIKU = "Write a haiku about rain."
LONG = "Compare the tax treatment of two ways to sell a small family business, with the risks of each of them."


def text_of(message: str) -> str:
    return routing_text(chat_of([user(message)]))


@pytest.mark.parametrize("prompt", [LONG, "What are the side effects of metformin?", "How do bats find their prey?"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_request_is_found_in_what_a_client_wraps_around_it(name: str, prompt: str) -> None:
    text = routing_text(chat_of(WRAPPERS[name](prompt))).removesuffix(f"\n{CODING_AGENT}")
    assert prompt in text
    assert len(text) < len(prompt) + 60


@pytest.mark.parametrize(
    "frame",
    [
        "Use the context below. Context: None\n\nQuestion: {}\n\nAnswer:",
        "Below is an instruction that describes a task.\n\n### Instruction:\n{}\n\n### Response:\n",
        "You are an expert. Answer accurately.\n\n{}\n\nReturn a JSON object with the keys answer and confidence.",
        "Hi there! Hope all is well with you. {} Thanks in advance!\nBest regards,\nMaria Lopez",
        "User: fix my build\nAssistant: done\nUser: {}",
        "Q: Who wrote Don Quixote?\nA: Cervantes\n\nQ: {}\nA:",
        f"Use the following passages.\n\nContext:\n{LEAFLET}\n\nQuestion: {{}}\nHelpful answer:",
        f"<context>\n{LEAFLET}\n</context>\n\n{{}}",
        "<instructions>\nBe brief.\n</instructions>\n<question>\n{}\n</question>",
        "<environment_details>\nLinux\n</environment_details>\n<user_query>\n{}\n</user_query>",
        '{{"task": "answer the question", "question": "{}"}}',
    ],
)
def test_the_question_is_read_in_templates(frame: str) -> None:
    for question in ("What causes a volcano to erupt?", "Which treaty ended the Thirty Years' War?"):
        text = text_of(frame.format(question))
        assert question in text
        assert "<" not in text
        assert len(text) < len(question) + 30


@pytest.mark.parametrize(
    "message",
    [
        "Hello!",
        "Thanks, that was exactly it.",
        "My knee hurts. What can I do?",
        "I have a question about my landlord. He wants the deposit.",
        "If the U.S. dollar falls, who wins?",
        "Which one is right?\nA. Paris\nB. Lyon",
        "The value of i + i^2 + ... + i^2023 is",
        "Can you eat raw potatoes?",
        "Hello, World program in C++",
        "I feel terrible today. What should I take for a fever?",
        "My landlord kept the deposit.\nHe says the carpet was dirty.\n\nCan he keep the deposit for a dirty carpet?",
        "```\nprint(1)\n```",
        "continue",
        "<system-reminder> without an end, and a request",
        "SQL: get the second highest salary",
    ],
)
def test_what_a_user_wrote_is_routed_as_it_is(message: str) -> None:
    assert text_of(message) == message


def test_a_request_without_a_topic_is_routed_with_the_head_of_its_material() -> None:
    routed = read_request(chat_of([user(f"<document>\n{LEAFLET}\n</document>\nSummarise the text")]))
    assert routed.text.startswith("Summarise the text\n\nDo not take these tablets")
    assert [(part.name, part.shortened) for part in routed.left_out] == [("document", True)]
    assert str(routed.left_out[0]) == f"message 0: block document shortened, {len(LEAFLET) + 2} characters"


NUDGES = [
    "continue",
    "go on, please",
    "ok",
    "yes, do it",
    "weiter",
    "继续",
    "You have not finished the task yet. Please continue until it is completed, then call the finish tool.",
    "<system-reminder>\nThe todo list is empty.\n</system-reminder>",
    "Reminder: the todo list was not updated recently. Update it if you are still working on the task.",
    "[Tool result for search]: nothing was found in the archive of the harbour",
    "Error:\nThe answer could not be parsed: a block was not found in it. Now let's retry with another regex.",
    "EXECUTION RESULT of [run]:\n3 tests failed",
]


@pytest.mark.parametrize("nudge", NUDGES)
def test_a_nudge_or_a_tool_result_counts_as_the_task(nudge: str) -> None:
    turns: Messages = [user(HAIKU)]
    for _ in range(3):
        turns += [{"role": "assistant", "content": "a step"}, user(nudge)]
    routed = read_request(chat_of(turns))
    assert routed.text == HAIKU
    assert list(dict.fromkeys(part.message for part in routed.left_out)) == [6, 4, 2]


def test_the_task_of_an_agent_is_found_behind_hundreds_of_steps() -> None:
    steps = [message for _ in range(400) for message in ({"role": "assistant", "content": "a"}, user("Observation: x"))]
    assert routing_text(chat_of([user(f"New task:\n{HAIKU}"), *steps])) == HAIKU


def test_the_head_of_the_system_prompt_counts_if_a_short_request_needs_it() -> None:
    def text(request: str) -> str:
        return routing_text(
            chat_of([{"role": "system", "content": f"You advise tenants. {'x' * 300} CFO"}, user(request)])
        )

    assert text("fix it") == f"fix it\nYou advise tenants. {'x' * 180}"
    assert "tenants" in text("clean up the second part")
    assert text(HAIKU) == HAIKU


@pytest.mark.parametrize(
    ("fields", "system", "is_agent"),
    [
        ({"tools": [{"type": "function", "function": {"name": name}} for name in ("Bash", "Read", "Edit")]}, "", True),
        ({"tools": [{"name": name, "input_schema": {}} for name in ("Grep", "Read", "Bash")]}, "", True),
        ({"tools": [{"type": "function", "function": {"name": "get_weather"}}]}, "You help travellers.", False),
        ({}, "You are a pair programmer. Work in the repository, run unit tests, never commit.", True),
        ({}, "You are a helpful assistant for a bank.", False),
        ({"tools": "Bash Read Edit"}, "", False),
    ],
)
def test_the_request_of_a_coding_agent_is_marked(fields: dict[str, Any], system: str, is_agent: bool) -> None:
    chat = replace(chat_of([{"role": "system", "content": system}, user("why is CI red?")]), fields=fields)
    assert (CODING_AGENT in routing_text(chat)) is is_agent


@pytest.mark.parametrize(
    "message",
    [
        "<a_b " * 200_000,
        "<a_b>" * 200_000,
        "".join(f"<a_b{index}>" for index in range(100_000)),
        "<a_b>" * 100_000 + "</a_b>" * 100_000,
        "<a_b></a_b>" * 100_000,
        "<x_file" * 100_000 + "</x_file>" * 100_000,
        "```\n" * 200_000,
        ">\n" * 200_000,
        "# a\n" * 200_000,
        "user:\nassistant:\n" * 100_000,
        "thought:\naction:\nquestion:\n" * 100_000,
        ("current " * 30 + "\n") * 10_000,
        ("./" * 150 + "!\n```\n") * 5_000,
        "\n" * 500_000 + "what?",
        "a" * 500_000 + ": b",
        "\ud800" * 10_000,
        "\0" * 10_000,
        "# a" + " " * 11_000 + "b",
        "**a" + " " * 11_000 + "b",
        '"a": "' * 2_000,
        "".join(f"<t{index}>" for index in range(1_000)) + "".join(f"</t{index}>" for index in range(1_000)),
    ],
)
def test_hostile_messages_give_a_bounded_text(message: str) -> None:
    routed = read_request(chat_of([user(message)] * 60))
    assert len(routed.text) < 5000
    assert len(routed.left_out) <= MAX_LEFT_OUT
    parts = split_message(message)
    assert len(parts.request) <= MAX_MESSAGE_CHARACTERS + 10


def test_a_block_of_any_length_is_skipped_and_a_long_text_keeps_its_ends() -> None:
    block = f"<system-reminder>\n{'noise ' * 200_000}\n</system-reminder>"
    assert text_of(f"{block}\n{HAIKU}") == HAIKU
    assert text_of(f"{HAIKU}\n{block}") == HAIKU
    words = "first " + "middle " * 20_000 + "last"
    assert text_of(words).startswith("first")
    assert text_of(words).endswith("last")


@pytest.mark.parametrize(
    ("request_", "general", "opens"),
    [
        ("Write a haiku about rain and the sea", 0.01, True),
        ("When did Rome fall?", 0.02, True),
        ("写一首关于春天和雨的诗", 0.1, True),
        ("请再简短一点", 0.1, False),
        ("a friendlier tone would be nice", 0.4, False),
        ("make it funnier", 0.02, False),
        ("why?", 0.3, False),
        ("no, the other one please", 0.2, False),
        ("", 0.0, False),
    ],
)
def test_a_request_opens_a_topic_by_its_words_and_the_probability_of_general(
    request_: str, general: float, opens: bool
) -> None:
    assert opens_topic(request_, general) is opens


def test_the_newest_requests_are_those_since_the_last_answer() -> None:
    answer = {"role": "assistant", "content": "Done."}
    first = [user(HAIKU), answer]
    assert read_request(chat_of([user(HAIKU)])).newest == ""
    assert read_request(chat_of([*first, user("Solve 3x = 6.")])).newest == "Solve 3x = 6."
    assert read_request(chat_of([*first, user("Factor 12."), user("3x = 6.")])).newest == "3x = 6.\nFactor 12."
    assert read_request(chat_of([*first, user("go on")])).newest == ""
    assert CONTRACT[:50] in read_request(chat_of([*first, user(f"Summarise this:\n\n{CONTRACT}")])).newest
    funnier = user("make it funnier")
    assert read_request(chat_of([*first, *[funnier, answer] * 6, funnier])).has_task
    assert not read_request(chat_of([user("hello"), answer, funnier])).has_task
    looped = read_request(chat_of([*first, {"role": "tool", "content": "x"}, user("Solve 3x = 6.")]))
    assert (looped.newest, looped.continues, looped.in_loop) == ("", True, True)
