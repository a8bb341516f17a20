"""Scored texts of several experts made one answer: read strictly, compared token by token, mixed as probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from ..router.ensemble import Floats, mixed_tokens
from .failure import Fault, UpstreamError

Tops = list[dict[str, float] | None]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Logprobs(_Strict):
    tokens: list[str]
    token_logprobs: list[float | None]
    text_offset: list[int] | None = None
    top_logprobs: Tops | None = None

    @property
    def whole(self) -> bool:
        """Whether there is one of each for every token."""
        others = (self.token_logprobs, self.text_offset, self.top_logprobs)
        return all(len(one) == len(self.tokens) for one in others if one)


class _Choice(_Strict):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: _Logprobs


@dataclass(frozen=True, slots=True)
class Scores:
    """A completion with echo, as far as it can be mixed; the choices stand in the order of their prompts."""

    id: object
    created: object
    choices: list[_Choice]


def read_scores(raw: bytes, expert: str, count: int) -> Scores:
    """One expert's answer to `count` texts, as the relay passed it on: an object with choices.

    Raises:
        UpstreamError: it does not hold each text's tokens with their log-probabilities.
    """
    data = orjson.loads(raw)
    try:
        # One by one: other threads wait while one is read.
        choices = [_Choice.model_validate(choice) for choice in data["choices"]]
    except ValidationError as error:
        raise _invalid(f"{expert} gives no log-probabilities of the texts.") from error
    scores = Scores(data.get("id"), data.get("created"), sorted(choices, key=lambda choice: choice.index))
    if [choice.index for choice in scores.choices] != list(range(count)):
        raise _invalid(f"{expert} did not answer every text once.")
    if not all(choice.logprobs.tokens and choice.logprobs.whole for choice in scores.choices):
        raise _invalid(f"{expert} does not give one log-probability for each token.")
    return scores


def mix(scores: Mapping[str, Scores], weights: Mapping[str, float], generated: bool) -> dict[str, object]:
    """The mixture's completion without model and usage. `generated`: each text has one token more, of the expert's own.

    Such a token is the first expert's, with the mixture's log-probability where every expert says its own, else null.

    Raises:
        UpstreamError: the experts read a text as different tokens.
    """
    shares = np.array([weights[name] for name in scores])
    first = next(iter(scores.values()))
    choices = [
        _mixed({name: one.choices[place] for name, one in scores.items()}, shares, generated)
        for place in range(len(first.choices))
    ]
    return {"id": first.id, "object": "text_completion", "created": first.created, "choices": choices}


def _mixed(texts: Mapping[str, _Choice], weights: Floats, generated: bool) -> dict[str, object]:
    """One text's choice."""
    found = [text.logprobs for text in texts.values()]
    first = next(iter(texts.values()))
    _compare(texts, generated)
    values = np.array([one.token_logprobs for one in found], dtype=float)  # None becomes nan
    unlike = [one.tokens[-1] for one in found].count(found[0].tokens[-1]) < len(found)
    own = [None if math.isnan(value) else value for value in mixed_tokens(weights, values).tolist()]
    if unlike:
        own[-1] = None
    tops = _tops([one.top_logprobs for one in found], weights)
    if tops is not None:
        last = tops[-1] or {}
        own[-1] = last.get(found[0].tokens[-1]) if unlike else own[-1]
        for top, token, value in zip(tops, found[0].tokens, own, strict=True):
            if top is not None and value is not None:
                top[token] = value  # to the last bit, since clients compare the two
    return {
        "index": first.index,
        "text": first.text,
        "logprobs": {
            "text_offset": found[0].text_offset,
            "token_logprobs": own,
            "tokens": found[0].tokens,
            "top_logprobs": tops,
        },
        "finish_reason": first.finish_reason,
    }


def _compare(texts: Mapping[str, _Choice], generated: bool) -> None:
    """That the experts scored the same tokens, and left the same ones without a score."""
    (name, one), *others = [(name, text.logprobs) for name, text in texts.items()]
    end = len(one.tokens) - generated
    for other, text in others:
        if len(text.tokens) != len(one.tokens) or text.tokens[:end] != one.tokens[:end]:
            reason = "read a text as different tokens; only experts of one base can be mixed."
            raise _invalid(f"{name} and {other} {reason}")
        if [value is None for value in text.token_logprobs] != [value is None for value in one.token_logprobs]:
            raise _invalid(f"{name} and {other} do not score the same tokens, so they cannot be mixed.")


def _tops(given: Sequence[Tops | None], weights: Floats) -> Tops | None:
    """Other tokens in each token's place: those that all experts list, since only their mixture is known."""
    lists = [one for one in given if one]
    if len(lists) < len(given):
        return None
    places: list[list[str] | None] = []
    for tops in zip(*lists, strict=True):
        known = [top for top in tops if top is not None]
        places.append(list(set(known[0]).intersection(*known[1:])) if len(known) == len(tops) else None)
    listed = [
        [(top or {})[token] for top, same in zip(one, places, strict=True) for token in same or ()] for one in lists
    ]
    values = iter(mixed_tokens(weights, np.array(listed)).tolist())
    return [None if same is None else {token: next(values) for token in same} for same in places]


def _invalid(message: str) -> UpstreamError:
    return UpstreamError(Fault.INVALID, "upstream_invalid_response", message)
