"""Which expert answers a request: asked for by name, or decided from the posterior; and what to say when none may."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from ..router.decision import UNREAD, Candidate, Decision, NoExpertError, Policy, decide, stay
from ..router.posterior import Posterior
from ..router.text import routing_texts_of_body
from .classify import Classifier, NoPosterior
from .errors import ApiError
from .requests import Request, wants_grammar
from .snapshot import Snapshot

AUTO = "auto"
_EARLIER_TURNS = 7
_UNKNOWN = Posterior((UNREAD,), (1.0,), threshold=2.0)


@dataclass(frozen=True, slots=True)
class Route:
    """A decision with the posterior it came from; None where the classifier was not asked or did not answer.

    `fallback` is the code of the reason for the latter.
    """

    decision: Decision
    posterior: Posterior | None
    router: str
    named: bool = False
    fallback: str = ""


async def choose(
    request: Request, permitted: frozenset[str] | None, snapshot: Snapshot, classifier: Classifier, policy: Policy
) -> Route:
    """Route one request. `permitted` is the key's allow-list.

    Raises:
        ApiError: the model is unknown or not permitted, or nobody may answer.
    """
    if permitted is not None:
        request = replace(request, needs=replace(request.needs, permitted=permitted))
    if request.model != AUTO:
        return Route(_named(request, snapshot), None, snapshot.router.version, named=True)
    texts = routing_texts_of_body(request.body)
    found = await classifier.posterior(snapshot.router, next(texts))
    try:
        if isinstance(found, NoPosterior):
            decision = _unread(found, snapshot, policy, request)
            return Route(decision, None, snapshot.router.version, fallback=found.code)
        decision = _decided(found, snapshot, policy, request)
        if policy.switch_margin > 0 and decision.lead <= policy.switch_margin:
            decision = await _conversed((found, decision), texts, request, snapshot, classifier, policy)
    except NoExpertError as error:
        raise _nobody(snapshot.candidates, request) from error
    return Route(decision, found, snapshot.router.version)


async def whole(
    route: Route, request: Request, permitted: frozenset[str] | None, snapshot: Snapshot, policy: Policy
) -> Route:
    """The route with the scores of all experts, where there were too many to look at each."""
    if route.named or len(route.decision.scores) == len(snapshot.candidates):
        return route
    needs = replace(request.needs, permitted=permitted)
    decision = await asyncio.to_thread(decide, route.posterior or _UNKNOWN, snapshot.candidates, policy, needs)
    return replace(route, decision=replace(route.decision, scores=decision.scores))


def _decided(
    found: Posterior, snapshot: Snapshot, policy: Policy, request: Request, keep: Collection[str] = ()
) -> Decision:
    return decide(found, snapshot.pool.of(found, policy, request.needs, keep), policy, request.needs)


async def _conversed(
    last: tuple[Posterior, Decision],
    earlier: Iterator[str],
    request: Request,
    snapshot: Snapshot,
    classifier: Classifier,
    policy: Policy,
) -> Decision:
    """The last turn's decision after those of the turns before, looked at back to one that is clear by itself.

    The conversation itself tells who had it: the edge remembers none, and any edge decides alike.
    """
    turns = [last]
    # Nobody may answer an earlier turn: then the conversation is taken to begin after it.
    with suppress(TimeoutError, NoExpertError):
        async with asyncio.timeout(classifier.budget):
            for text in islice(earlier, _EARLIER_TURNS):
                found = await classifier.posterior(snapshot.router, text)
                if isinstance(found, NoPosterior):
                    break
                turns.append((found, _decided(found, snapshot, policy, request)))
                if turns[-1][1].lead > policy.switch_margin:
                    break
    _, decision = turns.pop()
    for reading, alone in reversed(turns):
        before = decision.expert
        if all(score.expert != before for score in alone.scores):  # too many to look at each
            alone = _decided(reading, snapshot, policy, request, (before,))
        decision = stay(alone, before, policy.switch_margin)
    return decision


def _unread(why: NoPosterior, snapshot: Snapshot, policy: Policy, request: Request) -> Decision:
    """The decision without a posterior: the generalist's, or anybody's where no generalist is allowed."""
    decision = _decided(_UNKNOWN, snapshot, policy, request)
    return replace(decision, confidence=0.0, reason=f"{why.code}: {why.reason}; {decision.expert} answers")


def _named(request: Request, snapshot: Snapshot) -> Decision:
    """An expert asked for by name: its declared limits only guide routing, so the engine itself judges the request."""
    name = request.model
    expert = snapshot.known.get(name)
    permitted = request.needs.permitted
    if expert is None:
        raise ApiError("model_not_found", f"No model is named {shown(name)}; GET /v1/models lists them.", "model")
    if permitted is not None and name not in permitted:
        raise ApiError("model_not_allowed", f"This key may not use {name}.", "model")
    if "vision" in request.needs.capabilities - expert.capabilities:
        raise ApiError("unsupported_parameter", f"{name} does not read images.", "messages")
    if wants_grammar(request.body) and "json_schema" not in expert.capabilities:
        raise ApiError("unsupported_parameter", f"{name} offers no structured output.", "structured_outputs")
    if not expert.ready:
        raise ApiError("expert_loading", f"{name} is not ready yet.", "model")
    return Decision(name, UNREAD, 0.0, abstained=False, reason="asked for by name")


def _nobody(candidates: Sequence[Candidate], request: Request) -> ApiError:
    """The error that says what the client or the operator can do about it."""
    needs = request.needs
    allowed = [one for one in candidates if needs.permitted is None or one.name in needs.permitted]
    if candidates and not allowed:
        return ApiError("model_not_allowed", "This key may use none of the experts.", "model")
    able = [one for one in allowed if needs.capabilities <= one.capabilities]
    if allowed and not able:
        wanted = ", ".join(sorted(needs.capabilities))
        return ApiError("unsupported_parameter", f"No expert of this pool offers {wanted}.", _first_field(request))
    if able and all(one.context_window is not None and needs.tokens > one.context_window for one in able):
        return ApiError(
            "context_length_exceeded",
            f"The request needs about {needs.tokens} tokens, more than any expert's context window.",
            "messages" if "messages" in request.body else None,
        )
    return ApiError("no_healthy_expert", "No expert that may answer this request is ready.")


def _first_field(request: Request) -> str | None:
    fields = {"tools": "tools", "json_schema": "response_format", "vision": "messages"}
    return next((fields[name] for name in sorted(request.needs.capabilities) if name in fields), None)


def stand_in(route: Route, snapshot: Snapshot, larger: bool = False) -> str | None:
    """Who takes over from an expert that fails: the best allowed generalist, else the best allowed expert, or None.

    `larger`: only one whose context window is known to be larger, or not limited by its card.
    """
    if route.named:
        return None
    chosen = route.decision.expert
    allowed = [score.expert for score in route.decision.scores if score.excluded is None and score.expert != chosen]
    known = snapshot.known
    if larger:
        window = known[chosen].context_window or math.inf
        allowed = [name for name in allowed if (known[name].context_window or math.inf) > window]
    return min(allowed, key=lambda name: not known[name].generalist, default=None)


def shown(name: str) -> str:
    """A client's string, fit to be shown in a message: one line, ASCII, bounded."""
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")
