"""A deterministic language model with byte tokens, and its answers in vLLM's wire format."""

from __future__ import annotations

import codecs
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

FIRST_WORD = 256  # ids below are single bytes
END_OF_PROMPT, END = 998, 999
_WORDS = (" alpha", " beta", " gamma", " delta", ". Then", ", so", " x=1", "\n\n", ' "q"', " {", "}", " data:", " é")
_LEADS = {0xC3: (0xA9, 0xBC), 0xE2: (0x82,), 0x82: (0xAC,)}  # é, ü and € as two and three byte tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that the model continues, and where its own part begins."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, body: dict[str, object]) -> Prompt:
        """The prompt of a chat or completion request; a list of ids is taken as it is, as vLLM does."""
        given = body.get("prompt")
        if isinstance(given, list) and all(isinstance(one, int) for one in given):
            return cls(tuple(given))
        text = given if isinstance(given, str) else json.dumps(body.get("messages"))
        return cls((*text.encode(), END_OF_PROMPT))

    @property
    def begin(self) -> int:
        return self.ids.index(END_OF_PROMPT) + 1

    @property
    def length(self) -> int:
        """How many tokens the whole answer has: the prompt says `40 tokens`."""
        text = bytes(one for one in self.ids[: self.begin] if one < FIRST_WORD).decode(errors="replace")
        found = re.search(r"(\d+) tokens", text)
        return int(found[1]) if found else 4

    def continuation(self, chance: random.Random | None = None) -> Iterator[int]:
        """The answer's tokens from here on; a `chance` samples, none is greedy."""
        ids = list(self.ids)
        while len(ids) - self.begin < self.length or ids[-1] in _LEADS:
            ids.append(_next(ids, chance))
            yield ids[-1]


def _next(ids: Sequence[int], chance: random.Random | None) -> int:
    if ids[-1] in _LEADS:
        return _LEADS[ids[-1]][0]
    raw = ",".join(map(str, (len(ids), *ids[:40], *ids[-8:]))).encode()
    drawn = chance.getrandbits(32) if chance else int.from_bytes(hashlib.blake2b(raw, digest_size=4).digest())
    if drawn % 5 == 0:
        return (0xC3, 0xE2)[drawn // 5 % 2]
    return FIRST_WORD + drawn // 5 % len(_WORDS)


def piece(token: int) -> bytes:
    """A token's bytes; marks have none."""
    if token in (END_OF_PROMPT, END):
        return b""
    return bytes([token]) if token < FIRST_WORD else _WORDS[token - FIRST_WORD].encode()


def decode(ids: Sequence[int]) -> str:
    return b"".join(map(piece, ids)).decode(errors="replace")


def greedy(body: dict[str, object]) -> str:
    """The whole answer to a request at temperature 0: what every unbroken or continued stream must say."""
    prompt = Prompt.of(body)
    return decode(tuple(prompt.continuation())[: _limit(body)])


def _limit(body: dict[str, object]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if isinstance(value, int):
            return value
    return 16 if "prompt" in body else 10_000


@dataclass
class Generation:
    """One run of the model, as chunks. Tokens of a character in several tokens give their text with the last."""

    body: dict[str, object]
    chat: bool
    id: str
    seed: int = 0
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        prompt = Prompt.of(self.body)
        self.prompt = prompt
        chance = None if self.body.get("temperature") == 0 else random.Random(f"{self.seed} {self.id}")
        answer = tuple(prompt.continuation(chance))
        limit = _limit(self.body)
        self.tokens = list(answer[:limit])
        self.finish = "stop" if len(answer) <= limit else "length"

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = len(self.prompt.ids), len(self.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def chunks(self) -> list[dict[str, object]]:
        """vLLM's events: the role first in chat, then one or a few tokens each, the last with its finish_reason."""
        wants_ids = self.body.get("return_token_ids") is True
        found = []
        if self.chat:
            first = self._chunk({"delta": {"role": "assistant", "content": ""}}, None)
            found.append({**first, "prompt_token_ids": list(self.prompt.ids)} if wants_ids else first)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.prompt.ids[self.prompt.begin :]:
            decoder.decode(piece(token))
        groups = self._groups()
        for index, group in enumerate(groups):
            last = index == len(groups) - 1
            text = decoder.decode(b"".join(map(piece, group)), final=last)
            said: dict[str, object] = {"delta": {"content": text}} if self.chat else {"text": text}
            if wants_ids:
                said["token_ids"] = group
                if index == 0 and not self.chat:
                    said["prompt_token_ids"] = list(self.prompt.ids)
            found.append(self._chunk(said, self.finish if last else None))
        options = self.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            found.append({**self._chunk({}, None), "choices": [], "usage": self.usage})
        return found

    def _groups(self) -> list[list[int]]:
        """Mostly one token a chunk; some chunks hold two, as when the engine is ahead of its sender."""
        chance, left, groups = random.Random(self.seed), list(self.tokens), []
        while left:
            size = 2 if chance.random() < 0.2 else 1
            groups.append(left[:size])
            left = left[size:]
        return groups or [[]]

    def _chunk(self, said: dict[str, object], finish: str | None) -> dict[str, object]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": 1, "model": self.body["model"], "choices": [choice]}

    def whole(self) -> dict[str, object]:
        text = decode(self.tokens)
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.finish}
        kind = "chat.completion" if self.chat else "text_completion"
        base = {"id": self.id, "object": kind, "created": 1, "model": self.body["model"]}
        return {**base, "choices": [choice], "usage": self.usage}
