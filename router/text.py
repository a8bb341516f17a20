"""Routing text: what of a request the classifier reads, as a bounded, normalised copy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import TypeGuard

MAX_CHARACTERS = 8_000
EARLIER_TURNS = 3
EARLIER_CHARACTERS = 400

# A huge text is cut before it is normalised; four times the limit leaves room for characters that then vanish.
_RAW_CHARACTERS = 4 * MAX_CHARACTERS

# Characters that Unicode says to ignore in display but whose category is not Cf (DerivedCoreProperties.txt,
# Default_Ignorable_Code_Point): grapheme joiner, Hangul and Khmer fillers, variation selectors.
_IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0000-\U000e0fff]")
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})
_ASCII_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TEXT_PARTS = ("text", "input_text")
_SPACES = re.compile(r"[^\S\n]+")

_WORD = re.compile(r"\w+")
_POINTS_BACK = re.compile(
    r"^(and|but|or|also|what about|how about|now|same|again|shorter|longer|another|more)\b"
    r"|\b(it|its|this|that|these|those|them|the same|above|previous)\b",
    re.IGNORECASE,
)


def normalise(text: str) -> str:
    """NFKC without control, format, surrogate and other invisible characters; runs of blanks become one."""
    if text.isascii():
        return _SPACES.sub(" ", _ASCII_CONTROLS.sub("", text)).strip()
    composed = unicodedata.normalize("NFKC", "".join(filter(_is_no_surrogate, text)))
    seen = "".join(
        character
        for character in _IGNORABLE.sub("", composed)
        if character in "\n\t" or unicodedata.category(character) not in _DROPPED_CATEGORIES
    )
    return _SPACES.sub(" ", seen).strip()


def cut(text: str, head: int, tail: int) -> str:
    """At most `head + tail` characters: the beginning and the end, where instructions and questions stand."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}{text[len(text) - tail :]}"


def bounded(text: str) -> str:
    """The normalised copy of one text, at most MAX_CHARACTERS long."""
    raw = cut(text, _RAW_CHARACTERS // 2, _RAW_CHARACTERS // 2)
    return cut(normalise(raw), MAX_CHARACTERS // 2, MAX_CHARACTERS // 2)


def routing_text(messages: Sequence[object]) -> str:
    """The last user turn of a chat; earlier user turns stand in front of one too short to tell ("and in python?").

    Messages of another shape than the chat API's are passed over; without a user turn the text is empty.
    """
    turns: list[str] = []
    for message in reversed(messages):
        if text := _user_text(message):
            turns.insert(0, cut(text, EARLIER_CHARACTERS // 2, EARLIER_CHARACTERS // 2) if turns else text)
            if len(turns) > EARLIER_TURNS or not is_too_short(text):
                break
    return bounded("\n".join(turns))


def routing_text_of_body(body: Mapping[str, object]) -> str:
    """The routing text of a request body: chat/completions, messages, responses or completions, told by its keys.

    Token ids cannot be read and give an empty text.
    """
    if (messages := body.get("messages")) is not None:
        return routing_text(messages) if isinstance(messages, list) else ""
    if (given := body.get("input")) is not None:
        return routing_text(given) if isinstance(given, list) else _plain(given)
    return _plain(body.get("prompt"))


def routing_texts_of_body(body: Mapping[str, object]) -> Iterator[str]:
    """The routing text of every user turn, the last first: what the turns of a conversation were routed by.

    The first is `routing_text_of_body`.
    """
    yield routing_text_of_body(body)
    listed = body.get("messages", body.get("input"))
    messages = listed if isinstance(listed, list) else []
    turns = [number for number, message in enumerate(messages) if _is_users(message)]
    for number in reversed(turns[:-1]):
        yield routing_text(messages[: number + 1])


def is_too_short(text: str) -> bool:
    """Whether a turn cannot be read without the ones before it: three words or fewer, or short and pointing back."""
    words = len(_WORD.findall(text[:200]))
    if len(text) > 80 or words > 10:
        return False
    return (words <= 3 and len(text) <= 24) or _POINTS_BACK.search(text) is not None


def _plain(prompt: object) -> str:
    if isinstance(prompt, list):
        parts = [part[:_RAW_CHARACTERS] for part in prompt[:_RAW_CHARACTERS] if isinstance(part, str)]
        prompt = _shared(parts) or "\n".join(parts)
    return bounded(prompt) if isinstance(prompt, str) else ""


def _shared(prompts: Sequence[str]) -> str:
    """What several prompts begin with, if it is half of the shortest or more; else nothing.

    A question put once with each of its answers, to score them, is routed as the question.
    """
    shared = commonprefix(prompts) if len(prompts) > 1 else ""  # noqa: RUF071 - texts, not paths
    return shared if 2 * len(shared) >= min(map(len, prompts), default=0) else ""


def _user_text(message: object) -> str:
    """The bounded text of a user message; empty for other roles and for content without text."""
    if not _is_users(message):
        return ""
    content = message.get("content")
    if isinstance(content, str):
        return bounded(content)
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS)
    return bounded("\n".join(part for part in parts if isinstance(part, str)))


def _is_users(message: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(message, Mapping) and message.get("role") == "user"


def _is_no_surrogate(character: str) -> bool:
    return not "\ud800" <= character <= "\udfff"
