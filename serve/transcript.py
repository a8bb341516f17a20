"""A greedy stream's token ids as they pass, so that another engine can go on where one broke off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .failure import Fault, UpstreamError
from .requests import Api
from .snapshot import Target

# Prompt ids come back as JSON in one event; a longer prompt is not asked for them.
_MAX_PROMPT = 32_768
# What a body may hold for its answer to be continued as a plain completion. The rest (tools, a schema, several choices,
# log-probabilities, stop strings, penalties) has a state in the engine that token ids do not carry over.
_KNOWN = frozenset(
    {
        "model", "messages", "prompt", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens",
        "user", "metadata", "chat_template_kwargs", "add_generation_prompt",
    }
)  # fmt: skip
_COPIED = frozenset({"top_p", "top_k", "min_p", "seed", "ignore_eos", "stop_token_ids", "cache_salt", "priority"})
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "logprobs": (None, False), "stop": (None, [], ""),
    "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "repetition_penalty": (None, 1), "tools": (None, []),
    "tool_choice": (None, "none"), "parallel_tool_calls": (None, True, False), "suffix": (None, ""),
    "response_format": (None, {"type": "text"}), "logit_bias": (None, {}), "top_logprobs": (None, 0),
}  # fmt: skip


def continuable(api: Api, body: Mapping[str, object], target: Target, tokens: int) -> bool:
    """Whether the answer to this upstream body, of about so many tokens, could be continued from its token ids."""
    if not target.continues or api not in (Api.CHAT, Api.COMPLETIONS) or tokens > _MAX_PROMPT:
        return False
    if body.get("stream") is not True or body.get("temperature") != 0:
        return False
    prompt = body.get("prompt")
    if isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt):
        return False
    return all(
        name in _KNOWN or name in _COPIED or (name in _NEUTRAL and value in _NEUTRAL[name])
        for name, value in body.items()
    )


@dataclass
class Transcript:
    """The ids and the text of the answer so far.

    `marks` are the places, as (tokens, characters), where an engine can begin again: after a chunk of one token that
    gave text the detokenizer holds nothing back (a character may take several tokens). `rewind` goes back to a mark
    and keeps what the client already has as `owed`: the new engine must say the same again before anything new counts.
    """

    body: Mapping[str, object]
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    marks: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    owed: str = ""
    owed_tokens: list[int] = field(default_factory=list)
    fit: bool = True

    @property
    def usable(self) -> bool:
        """Whether what came so far can be continued."""
        return self.fit and bool(self.prompt)

    @property
    def limit(self) -> int | None:
        """The most tokens that the answer may have; vLLM gives a completion 16 where the client says nothing."""
        given = (self.body.get(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((one for one in given if isinstance(one, int)), 16 if "prompt" in self.body else None)

    def start(self, prompt: object) -> None:
        """The prompt's ids, which come once."""
        if isinstance(prompt, list) and not self.prompt:
            self.prompt = prompt

    def note(self, ids: object, text: object, others: bool) -> None:
        """One chunk: its token ids and its text; `others` says that it held more than text."""
        said = text if isinstance(text, str) else ""
        if others or not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
            self.fit = self.fit and not (others or said)
            return
        self.tokens += ids
        self.text += said
        if len(ids) == 1 and said:
            self.marks.append((len(self.tokens), len(self.text)))

    def rewind(self) -> None:
        """Back to the last mark with text after it, unless nothing was added since the last rewind."""
        if self.owed and (len(self.tokens), len(self.text)) == self.marks[-1]:
            return
        while len(self.marks) > 1 and self.marks[-1][1] >= len(self.text):
            self.marks.pop()
        tokens, characters = self.marks[-1]
        self.owed, self.owed_tokens = self.text[characters:] + self.owed, self.tokens[tokens:] + self.owed_tokens
        self.text, self.tokens = self.text[:characters], self.tokens[:tokens]

    def accept(self, ids: list[int], text: str, finished: bool) -> str:
        """A continuation's chunk: what of its text is new to the client.

        Raises:
            UpstreamError: it says something else than the client already has.
        """
        expected = self.owed_tokens[: len(ids)]
        known, new = (text, "") if len(text) < len(self.owed) else (self.owed, text[len(self.owed) :])
        same = ids[: len(expected)] == expected and text.startswith(known) and self.owed.startswith(known)
        if not same or (finished and known != self.owed):
            raise UpstreamError(
                Fault.INVALID, "upstream_stream_truncated", "The answer broke off and could not be continued exactly."
            )
        self.owed_tokens = self.owed_tokens[len(ids) :]
        self.owed = self.owed[len(known) :]
        self.note(ids, text, others=False)
        return new

    def request(self, model: str, window: int | None) -> dict[str, object]:
        """The body of the completion that goes on. `window` bounds it where the client set no maximum."""
        left = (window or 0) - len(self.prompt) if self.limit is None else self.limit
        options = self.body.get("stream_options")
        return {
            **{name: value for name, value in self.body.items() if name in _COPIED},
            "model": model,
            "prompt": [*self.prompt, *self.tokens],
            "max_tokens": left - len(self.tokens),
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
            **({"stream_options": options} if options else {}),
        }

    def usage(self, given: object) -> object:
        """The continuation's usage as that of the whole answer."""
        if not isinstance(given, dict):
            return given
        prompt, completion = len(self.prompt), len(self.tokens)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**given, **counts}
