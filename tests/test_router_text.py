"""The routing text: which turns, how much of them, and that no text breaks it."""

from __future__ import annotations

import unicodedata

import pytest
from collegium.router.text import (
    EARLIER_TURNS,
    MAX_CHARACTERS,
    bounded,
    cut,
    is_too_short,
    normalise,
    routing_text,
    routing_text_of_body,
    routing_texts_of_body,
)
from hypothesis import given
from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=300)


def chat(*turns: object) -> list[object]:
    """User turns with an answer after each but the last."""
    messages: list[object] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "An answer about law."}]
    return messages[:-1]


def test_last_user_turn_stands_alone_when_it_tells_enough() -> None:
    messages = [
        {"role": "system", "content": "You are a lawyer."},
        *chat("Write a poem.", "Explain why the sky is blue"),
    ]
    assert routing_text(messages) == "Explain why the sky is blue"


@pytest.mark.parametrize("last", ["and in python?", "shorter", "why?", "what does that mean", "do it again please"])
def test_short_turn_brings_the_turn_before(last: str) -> None:
    assert routing_text(chat("How do I sort a list in Java?", last)) == f"How do I sort a list in Java?\n{last}"


def test_earlier_turns_are_few_and_in_order() -> None:
    assert routing_text(chat("a1", "b2", "c3", "d4", "e5")) == "\n".join(["b2", "c3", "d4", "e5"])
    assert EARLIER_TURNS == 3


def test_a_long_earlier_turn_does_not_bury_the_last() -> None:
    text = routing_text(chat("x" * 100_000, "and in python?"))
    assert len(text) < 500 and text.endswith("and in python?")


def test_answers_and_tool_results_are_not_read() -> None:
    last = {"role": "user", "content": [{"type": "tool_result", "content": "42"}]}
    messages = [*chat("How tall is the Eiffel tower really?"), {"role": "tool", "content": "330"}, last]
    assert routing_text(messages) == "How tall is the Eiffel tower really?"


def test_parts_of_type_text_are_joined() -> None:
    parts = [
        {"type": "text", "text": "What is in"},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "this picture of a cell?"},
    ]
    assert routing_text([{"role": "user", "content": parts}]) == "What is in\nthis picture of a cell?"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"role": "user", "content": "Solve x + 1 = 2"}]}, "Solve x + 1 = 2"),
        ({"prompt": "Once upon a time"}, "Once upon a time"),
        ({"prompt": ["one", "two"]}, "one\ntwo"),
        ({"prompt": ["Question: 2 + 2?\nAnswer: 4", "Question: 2 + 2?\nAnswer: five"]}, "Question: 2 + 2?\nAnswer:"),
        ({"prompt": ["2 + 2? 4", "2 + 2? A long answer"]}, "2 + 2?"),
        ({"prompt": ["Why? Because it is so.", "Why? It is not."]}, "Why? Because it is so.\nWhy? It is not."),
        ({"prompt": [1, 2, 3]}, ""),
        ({"prompt": [[1, 2], [3]]}, ""),
        ({"input": "What is a tort?", "instructions": "Speak of cooking."}, "What is a tort?"),
        (
            {
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is a tort?"}]}
                ]
            },
            "What is a tort?",
        ),
        ({"messages": []}, ""),
        ({"messages": "text"}, ""),
        ({"messages": [None, 3, {"role": "user"}, {"role": "user", "content": [None, {"type": "text"}]}]}, ""),
        ({}, ""),
    ],
)
def test_bodies_of_every_api(body: dict[str, object], text: str) -> None:
    assert routing_text_of_body(body) == text


@pytest.mark.parametrize("field", ["messages", "input"])
def test_each_turn_of_a_conversation_is_read_as_it_was_when_it_was_the_last(field: str) -> None:
    turns = ("Prove that two and two make four", "why?", "Write a poem about the sea", "shorter")
    messages = chat(*turns)
    whole = [{field: chat(*turns[:length])} for length in (4, 3, 2, 1)]
    assert list(routing_texts_of_body({field: messages})) == [routing_text_of_body(body) for body in whole]
    assert list(routing_texts_of_body({"prompt": "one text"})) == ["one text"]
    assert list(routing_texts_of_body({field: [{"role": "assistant", "content": "no user"}]})) == [""]


def test_normalised_copy_folds_what_looks_alike() -> None:
    assert normalise("ｓｏｌｖｅ ﬁve") == "solve five"
    assert normalise("in\u200bte\u00adgr\u2060al\ufe0f \u202eof\x00 x\u3164") == "integral of x"
    assert normalise("a \t b\r\nc") == "a b\nc"
    assert normalise("\ud800law\udfff") == "law"


def test_cut_keeps_head_and_tail() -> None:
    assert cut("abcdefgh", 3, 2) == "abcgh"
    assert cut("abcde", 3, 2) == "abcde"
    assert cut("abcdefgh", 3, 0) == "abc"


def test_huge_text_keeps_its_question() -> None:
    text = bounded("First. " + "é" * 10_000_000 + " Last?")
    assert text.startswith("First.") and text.endswith("Last?") and len(text) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    "text", ["What is 17% of 340?", "Explain the French revolution", "Write a haiku about autumn rain"]
)
def test_whole_requests_are_not_too_short(text: str) -> None:
    assert not is_too_short(text)


@given(ANY_TEXT)
def test_any_text_becomes_clean_and_stays_so(text: str) -> None:
    clean = bounded(text)
    clean.encode()  # no lone surrogate is left
    assert len(clean) <= MAX_CHARACTERS
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c != "\n" for c in clean)
    assert clean == clean.strip()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | ANY_TEXT,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["role", "content", "type", "text", "messages", "input", "prompt", "user"]), inner
            )
        ),
    )
)
def test_any_json_body_is_read_without_error(value: object) -> None:
    body = value if isinstance(value, dict) else {"messages": value, "prompt": value}
    assert isinstance(routing_text_of_body(body), str)
    assert isinstance(routing_text_of_body({"input": value}), str)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), ANY_TEXT), max_size=6))
def test_only_user_turns_count(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    users = [message for message in messages if message["role"] == "user"]
    assert routing_text(messages) == routing_text(users)
