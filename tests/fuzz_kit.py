"""Material for generated bad input: bytes and values to put where they do not belong, and right requests to spoil."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from collegium.serve.requests import Api

PIECES = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\x00", b"\xff", b"\\ud800", b"\\u0000", b"1e400", b"-0", b"NaN",
    b"null", b"true", b'"model"', b'"messages"', b'"content"', b'"n"', b"\r\n", b"\n\n", b"data: ", b"event: ",
    b"[DONE]", b'"role"', b'"tool"', b"999999999999999999999", b"[" * 80, b'{"a":' * 80, b": ", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"0\r\n\r\n", b" HTTP/1.1", b"../..",
]  # fmt: skip


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """A few cuts, copies, flips and insertions."""
    raw = bytearray(seed)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0:
                del raw[at : at + rng.randrange(1, 20)]
            case 1:
                raw[at:at] = rng.choice(PIECES)
            case 2 if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            case 3:
                raw[at:at] = raw[at : at + rng.randrange(40)]
            case 4:
                other = rng.randrange(len(raw) + 1)
                raw[at:other] = rng.choice(PIECES)
    return bytes(raw)


def value(rng: random.Random, depth: int = 0) -> object:
    """Any JSON."""
    if depth < 3 and rng.random() < 0.4:
        items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        if rng.random() < 0.5:
            return items
        names = ("role", "content", "type", "text", "image_url", "url", "function", "source", "data", "usage", "index")
        return {rng.choice(names): item for item in items}
    anything: list[object] = [
        None, True, False, 0, -1, 1, 2**31, 2**63, 0.5, -1e308, "", "user", "text", "x" * 2000, "\u202e\u0000",
        "data:,",
    ]  # fmt: skip
    return rng.choice(anything)


def altered(data: dict[str, object], rng: random.Random) -> dict[str, object]:
    """The object with some of its values replaced, at any depth."""
    copy: dict[str, object] = json.loads(json.dumps(data))
    for _ in range(rng.randrange(1, 4)):
        place: object = copy
        while isinstance(place, dict | list) and place:
            keys: Sequence[object] = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(keys)
            inner = place[key]  # type: ignore[call-overload]
            if not isinstance(inner, dict | list) or rng.random() < 0.3:
                place[key] = value(rng)  # type: ignore[call-overload]
                break
            place = inner
    return copy


BODIES: dict[Api, dict[str, object]] = {
    Api.CHAT: {
        "model": "auto", "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"},
                                         {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ],
        "temperature": 0.5, "n": 2, "stop": ["x"], "tools": [{"type": "function"}], "stream": True, "max_tokens": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}, "logit_bias": {"1": 2},
    },
    Api.COMPLETIONS: {"model": "auto", "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 1, "best_of": 2},
    Api.RESPONSES: {"model": "auto", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
                    "instructions": "x", "text": {"format": {"type": "json_schema"}}, "max_output_tokens": 3},
    Api.MESSAGES: {"model": "auto", "max_tokens": 3, "system": [{"type": "text", "text": "x"}],
                   "messages": [{"role": "user", "content": [{"type": "tool_result", "content": [
                       {"type": "text", "text": "x"}]}]}], "stop_sequences": ["x"]},
}  # fmt: skip
