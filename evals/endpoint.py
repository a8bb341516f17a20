"""A live OpenAI-compatible endpoint, asked with retries: answers, and log-probabilities of given continuations."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import httpx2
from pydantic import BaseModel, Field, ValidationError

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
LONGEST_WAIT = 30.0
MOST_LOGPROBS = 20
"""vLLM's own limit."""


class EndpointError(RuntimeError):
    """No usable answer; the message says why. `gone` where nothing answered at all."""

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Message(BaseModel):
    content: str | None = None


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]
    text_offset: list[int]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(BaseModel):
    index: int = 0
    message: _Message | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    model: str = ""
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Route(BaseModel):
    expert: str
    router: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its text or, for a scored continuation, `logprob` (nats) over `tokens` of its tokens."""

    text: str
    expert: str
    router: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    logprob: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """Log-probability of a text after another: `total` nats over `tokens` tokens."""

    total: float
    tokens: int


@dataclass(slots=True)
class Endpoint:
    """An async context manager around one HTTP client. `url` ends in /v1; `attempts` counts the first one.

    Scoring asks for no other token's log-probability, which spares an engine the search for the best of its whole
    vocabulary; a server that takes 0 for none at all is asked for one.
    """

    url: str
    key: str | None = None
    timeout: float = 120.0
    attempts: int = 4
    _client: httpx2.AsyncClient | None = field(default=None, repr=False)
    _others: int = field(default=0, repr=False)

    async def __aenter__(self) -> Endpoint:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(
            base_url=self.url.rstrip("/"), headers=headers, timeout=self.timeout, limits=limits, trust_env=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def chat(self, model: str, prompt: str, max_tokens: int, seed: int) -> Reply:
        """The answer to one user turn, greedy."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "seed": seed}
        completion, reply = await self._ask("/chat/completions", body)
        message = completion.choices[0].message
        return _with_text(reply, message.content if message else None)

    async def complete(self, model: str, prompt: str, max_tokens: int, seed: int) -> Reply:
        """The plain continuation of a text, greedy."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "seed": seed}
        completion, reply = await self._ask("/completions", body)
        return _with_text(reply, completion.choices[0].text)

    async def score(self, model: str, context: str, continuation: str) -> Reply:
        """Log-probability of `continuation` after `context`, by echo.

        A token that lies across the border counts as the continuation's. The first token of a text has none.
        """
        reply, (scored,) = await self.score_all(model, context, [continuation])
        return replace(reply, text=continuation, completion_tokens=0, logprob=scored.total, tokens=scored.tokens)

    async def score_all(
        self, model: str, context: str, continuations: Sequence[str]
    ) -> tuple[Reply, tuple[Continuation, ...]]:
        """Log-probabilities of each of `continuations` after `context`, as in `score`, by one request of all of them.

        So `auto` makes one decision for a question, from what its prompts share.
        """
        texts = [context + continuation for continuation in continuations]
        body = {"model": model, "prompt": texts, "max_tokens": 1, "temperature": 0, "echo": True}
        others = self._others
        completion, reply = await self._ask("/completions", {**body, "logprobs": others})
        if not others and completion.choices[0].logprobs is None:
            self._others = 1
            completion, reply = await self._ask("/completions", {**body, "logprobs": 1})
        choices = sorted(completion.choices, key=lambda choice: choice.index)
        if len(choices) != len(texts):
            raise EndpointError(f"{model} answered {len(choices)} of {len(texts)} prompts of one request")
        found = zip(choices, texts, strict=True)
        return reply, tuple(_continued(choice.logprobs, len(context), text, model) for choice, text in found)

    async def next_tokens(self, model: str, context: str) -> tuple[Reply, Mapping[str, float]]:
        """Log-probabilities of the most probable next tokens after `context`, by their text: one reading of it.

        Empty where the endpoint gives none.
        """
        body = {"model": model, "prompt": context, "max_tokens": 1, "temperature": 0, "logprobs": MOST_LOGPROBS}
        completion, reply = await self._ask("/completions", body)
        found = completion.choices[0].logprobs
        first = found.top_logprobs[0] if found and found.top_logprobs else None
        return reply, first or {}

    async def forced(self, model: str, context: str, token: int, text: str) -> Reply:
        """Log-probability of one next token: a bias makes sure that it is the one generated.

        The endpoint must give log-probabilities from before the bias, as vLLM does by default.
        """
        body = {"model": model, "prompt": context, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        completion, reply = await self._ask("/completions", {**body, "logit_bias": {str(token): 100}})
        found = completion.choices[0].logprobs
        value = found.token_logprobs[0] if found and found.token_logprobs else None
        if completion.choices[0].text != text or value is None or not math.isfinite(value):
            raise EndpointError(f"{model} does not generate {text!r} when token {token} is forced")
        return replace(reply, text=text, logprob=value, tokens=1)

    async def likeliest(self, model: str, context: str, tokens: Sequence[int]) -> Reply:
        """The most probable of some next tokens: an equal bias lifts them over all others and keeps their order."""
        body = {"model": model, "prompt": context, "max_tokens": 1, "temperature": 0}
        completion, reply = await self._ask(
            "/completions", {**body, "logit_bias": dict.fromkeys(map(str, tokens), 100)}
        )
        return _with_text(reply, completion.choices[0].text)

    async def route(self, prompts: Sequence[str]) -> tuple[str, str]:
        """(expert, router's version) that collegium's `auto` would choose for these prompts of one request."""
        response = await self._post("/route", {"model": "auto", "prompt": list(prompts)})
        try:
            route = _Route.model_validate_json(response.content)
        except ValidationError as error:
            raise EndpointError("/v1/route answered something else than a route") from error
        return route.expert, route.router

    async def _ask(self, path: str, body: Mapping[str, object]) -> tuple[_Completion, Reply]:
        begun = time.monotonic()
        response = await self._post(path, body)
        try:
            completion = _Completion.model_validate_json(response.content)
        except ValidationError as error:
            raise EndpointError(f"{body['model']} answered something else than a completion") from error
        usage = completion.usage or _Usage()
        return completion, Reply(
            text="",
            expert=response.headers.get("x-collegium-expert") or completion.model,
            router=response.headers.get("x-collegium-router", ""),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            seconds=time.monotonic() - begun,
        )

    async def _post(self, path: str, body: Mapping[str, object]) -> httpx2.Response:
        """Send until answered; what may pass (connections, 429, 5xx) is tried again with growing waits."""
        if self._client is None:
            raise EndpointError("the endpoint is used outside its context")
        problem = ""
        for attempt in range(self.attempts):
            wait = min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311 - jitter is no secret
            try:
                response = await self._client.post(path, json=body)
            except httpx2.HTTPError as error:
                problem, gone = f"{type(error).__name__} {error}".strip(), True
            else:
                if response.status_code == 200:
                    return response
                problem, gone = f"status {response.status_code}: {response.text[:200]}", False
                if response.status_code not in RETRIED:
                    break
                after = response.headers.get("retry-after", "")
                wait = min(LONGEST_WAIT, float(after)) if after.isdigit() else wait
            if attempt + 1 < self.attempts:
                await asyncio.sleep(wait)
        raise EndpointError(problem, gone)


def _with_text(reply: Reply, text: str | None) -> Reply:
    if text is None:
        raise EndpointError("the answer has no text")
    return Reply(text, reply.expert, reply.router, reply.prompt_tokens, reply.completion_tokens, reply.seconds)


def _continued(found: _Logprobs | None, start: int, text: str, model: str) -> Continuation:
    """What the echo of `text` says of its tokens from the character `start` on."""
    if found is None or len(found.token_logprobs) != len(found.text_offset):
        raise EndpointError(f"{model} gives no log-probabilities with echo; score by the generated answer instead")
    ends = [*found.text_offset[1:], math.inf]
    values = [
        value
        for value, begin, end in zip(found.token_logprobs, found.text_offset, ends, strict=True)
        if value is not None and end > start and begin < len(text)
    ]
    if not values or not all(map(math.isfinite, values)):
        raise EndpointError(f"{model} gives no finite log-probability for {text[start:][:40]!r}")
    return Continuation(math.fsum(values), len(values))
