"""Posterior ensembles: a scoring request of /v1/completions answered by the mixture of several experts.

Branch-Train-Merge (Li et al. 2022, arXiv 2208.03306): p(token | prefix) = sum over experts of
p(e | x) p(token | prefix, e). Here p(e | x) is the router's posterior, as in c-BTM (Gururangan et al. 2023, arXiv
2303.14177): one for the whole text, which the experts' own likelihoods do not move. Each log-probability of the answer
is the logarithm of that sum, exact where the experts read the text as the same tokens. A continuation's sum is then its
log-probability under the mixture; `router.ensemble.mixed`, which weighs whole choices, is another quantity.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import orjson
from starlette.types import Message

from ..router.decision import Needs, NoExpertError, Policy, decide
from ..router.ensemble import expert_posterior, top_k
from ..router.shortlist import Shortlist
from .answer import Answer, Exchange
from .auth import Headers, header
from .errors import ApiError
from .mixture import Scores, mix, read_scores
from .requests import Api, Request
from .routing import AUTO, Route
from .told import tell
from .usage import Usage

HEADER = "x-collegium-ensemble"
MOST = 8
LABEL = "ensemble"
"""Stands for the expert in the log and the metrics of a request that several answer."""

# Sends the request to a route's expert, with second attempts, and puts what comes into the answer.
Ask = Callable[[Route, Answer], Awaitable[None]]


def asked(headers: Headers) -> int | None:
    """How many experts the client wants mixed, or None where it does not say.

    Raises:
        ApiError: 400, that is no number of experts.
    """
    given = [value.decode("latin-1") for value in header(headers, HEADER.encode())]
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(r"[0-9]", given[0]) or not 1 <= int(given[0]) <= MOST:
        raise ApiError("invalid_value", f"{HEADER} must be one number of experts from 1 to {MOST}, as in 2.", HEADER)
    return int(given[0])


def check(request: Request) -> None:
    """Whether the request scores given texts, which is all that can be mixed.

    Raises:
        ApiError: 400 with the exact field.
    """
    if request.api is not Api.COMPLETIONS:
        raise ApiError("invalid_value", f"{HEADER} is for scoring by /v1/completions.", HEADER)
    if request.model != AUTO:
        raise ApiError("invalid_value", f"model must be {AUTO} with {HEADER}: the router chooses.", "model")
    body = request.body
    fits = {
        "stream": (not body.get("stream"), "false"),
        "echo": (body.get("echo") is True, "true: texts are scored, none is written"),
        "logprobs": (body.get("logprobs") is not None, "an integer from 0 to 20"),
        "max_tokens": (body.get("max_tokens") in (0, 1), "0, or 1 for clients that cannot ask for none"),
        "n": (body.get("n") in (None, 1), "1"),
        "best_of": (body.get("best_of") in (None, 1), "1"),
    }
    for field, (fit, wanted) in fits.items():
        if not fit:
            raise ApiError("invalid_value", f"With {HEADER} {field} must be {wanted}.", field)


def members(route: Route, pool: Shortlist, policy: Policy, needs: Needs, most: int) -> dict[str, float]:
    """p(e | x) of at most `most` experts, likeliest first, summing to 1; equals go by name.

    Each domain counts for the expert that would answer it were it certain; one that nobody may answer does not count.
    Where the classifier did not answer, the decided expert stands alone.
    """
    posterior = route.posterior
    if posterior is None:
        return {route.decision.expert: 1.0}
    owners: dict[str, str] = {}
    shares = []
    for label, share in posterior.as_dict().items():
        certain = replace(posterior, probabilities=tuple(float(one == label) for one in posterior.labels))
        with suppress(NoExpertError):
            owners[label] = decide(certain, pool.of(certain, policy, needs), policy, needs).expert
            shares.append(share)
    names = sorted(set(owners.values()))
    weights = top_k(expert_posterior(np.array([shares]), list(owners), names, owners, names[0]), most)[0]
    order = np.argsort(-weights, kind="stable")
    return {names[place]: float(weights[place]) for place in order if weights[place] > 0}


@dataclass(frozen=True, slots=True)
class _Part:
    """What one expert answered."""

    scores: Scores
    used: Usage


async def answer_mixed(request: Request, route: Route, weights: Mapping[str, float], answer: Answer, ask: Ask) -> None:
    """Ask every expert of `weights` at the same time and answer with the mixture.

    An expert that fails is left out, and the weights of the others are made to sum to 1 again.

    Raises:
        ApiError: no expert answered (the likeliest one's failure), or their tokens are not the same.
    """
    _tell(answer, route, weights, {})
    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(_part(request, route, name, answer, ask)) for name in weights}
    results = {name: task.result() for name, task in tasks.items()}
    failures = {name: result for name, result in results.items() if isinstance(result, ApiError)}
    parts = {name: result for name, result in results.items() if isinstance(result, _Part)}
    if not parts:
        raise next(iter(failures.values()))
    whole = sum(weights[name] for name in parts)
    left = {name: weights[name] / whole for name in parts}
    generated = request.body.get("max_tokens") == 1
    mixed = await asyncio.to_thread(mix, {name: part.scores for name, part in parts.items()}, left, generated)
    used = answer.exchange.used = _sum([part.used for part in parts.values()])
    if used.prompt is not None and used.completion is not None:
        counts = {"prompt_tokens": used.prompt, "completion_tokens": used.completion}
        mixed["usage"] = {**counts, "total_tokens": used.prompt + used.completion}
    _tell(answer, route, left, failures)
    await answer.json(200, orjson.dumps({**mixed, "model": _names(left)}))


async def _part(request: Request, route: Route, expert: str, whole: Answer, ask: Ask) -> _Part | ApiError:
    """One expert's scores, or why there are none; its sendings are entered with the whole answer's."""
    raw = bytearray()

    async def keep(message: Message) -> None:
        raw.extend(message.get("body", b""))

    own = whole.exchange
    exchange = Exchange(own.id, own.route, started=own.started, attempts=own.attempts)
    # As if asked for by name: no other expert stands in for it, which would be mixed twice.
    alone = replace(route, named=True, decision=replace(route.decision, expert=expert))
    try:
        await ask(alone, Answer(keep, exchange))
        scores = await asyncio.to_thread(read_scores, bytes(raw), expert, _count(request.body["prompt"]))
    except ApiError as failure:
        return failure
    return _Part(scores, exchange.used)


def _count(prompt: object) -> int:
    """How many texts a checked `prompt` holds: one list of token ids is one text."""
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _sum(parts: Sequence[Usage]) -> Usage:
    """What all experts together used; None where one of them did not count."""

    def total(counts: Sequence[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    return Usage(
        total([part.prompt for part in parts]),
        total([part.completion for part in parts]),
        sum(part.pieces for part in parts),
    )


def _names(weights: Mapping[str, float]) -> str:
    return ",".join(weights)


def _tell(answer: Answer, route: Route, weights: Mapping[str, float], failures: Mapping[str, ApiError]) -> None:
    """Put the experts, their weights and who is missing into the answer's headers."""
    shown = ",".join(f"{name}={weight:.4f}" for name, weight in weights.items())
    posterior = route.posterior
    reason = f"mixed: {shown}" if posterior and not posterior.novel else route.decision.reason
    for name, failure in failures.items():
        reason += f"; without {name}: {failure.code}: {failure.message.rstrip('.')}"
    tell(answer, replace(route, decision=replace(route.decision, expert=_names(weights), reason=reason)))
    answer.exchange.expert = LABEL
    answer.headers = [field for field in answer.headers if field[0] != HEADER.encode()]
    answer.headers.append((HEADER.encode(), shown.encode()))
