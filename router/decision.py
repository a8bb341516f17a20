"""Choose the expert: utility = sum over domains of p(domain | prompt) * skill - cost_weight * cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .posterior import Posterior

UNREAD = "unclassified"
"""The domain of prompts that nobody has read. Every expert is admitted to it."""
_TOLD = 20  # experts that an error names


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the decision needs to know of an expert.

    `skills` maps a domain to the probability, in [0, 1], that the expert answers a prompt of it right; `default_skill`
    stands for the domains it does not name. `admitted` lists the domains whose traffic the expert may get; a generalist
    is admitted everywhere. `cost` is relative: 1.0 is the generalist's. `context_window` is in tokens.
    """

    name: str
    skills: Mapping[str, float]
    default_skill: float = 0.5
    admitted: frozenset[str] = frozenset()
    generalist: bool = False
    cost: float = 1.0
    ready: bool = True
    context_window: int | None = None
    capabilities: frozenset[str] = frozenset()

    def skill(self, domain: str) -> float:
        return self.skills.get(domain, self.default_skill)

    def is_admitted(self, domain: str) -> bool:
        return self.generalist or domain in self.admitted or domain == UNREAD


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request demands of an expert.

    `tokens` counts prompt and completion; `permitted` is the key's allow-list, or None for all.
    """

    tokens: int = 0
    capabilities: frozenset[str] = frozenset()
    permitted: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """`cost_weight`: how much probability of a right answer one generalist's cost is worth. 0 ignores cost.

    `switch_margin`: by how much utility another expert must lead before a conversation goes over to it. With 0 each
    turn is decided by itself.
    """

    cost_weight: float = 0.0
    switch_margin: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("cost_weight", self.cost_weight), ("switch_margin", self.switch_margin)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be a finite number, 0 or more")


@dataclass(frozen=True, slots=True)
class Score:
    """One expert's standing for one prompt; `excluded` says why it was not allowed, or is None."""

    expert: str
    quality: float
    cost: float
    utility: float
    excluded: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Which expert, why, and who was second. `scores` are sorted: allowed first, best first."""

    expert: str
    domain: str
    confidence: float
    abstained: bool
    reason: str
    runner_up: str | None = None
    scores: tuple[Score, ...] = field(default=(), repr=False)

    @property
    def lead(self) -> float:
        """The first one's utility over the next best's; negative where an unsure posterior left a better one out."""
        others = [score.utility for score in self.scores[1:] if score.excluded is None]
        return self.scores[0].utility - max(others, default=float("-inf"))


class NoExpertError(LookupError):
    """No expert may answer. `scores` carry the reason for each."""

    def __init__(self, scores: tuple[Score, ...]) -> None:
        self.scores = scores
        listed = "; ".join(f"{score.expert}: {score.excluded}" for score in scores[:_TOLD]) or "the pool is empty"
        if len(scores) > _TOLD:
            listed += f"; and {len(scores) - _TOLD} more"
        super().__init__(f"no expert may answer this request ({listed})")


def decide(
    posterior: Posterior, experts: Sequence[Candidate], policy: Policy = Policy(), needs: Needs = Needs()
) -> Decision:
    """Choose the allowed expert with the highest utility.

    An abstaining posterior leaves the choice to the generalists, or to everyone where no generalist is allowed. Ties go
    to the cheaper expert, then to a generalist, then by name: the route never depends on the order of `experts`.

    Raises:
        NoExpertError: every expert is excluded.
    """
    limits = bars(posterior, [expert for expert in experts if expert.generalist])
    scores = {expert.name: _score(expert, posterior, limits, policy, needs) for expert in experts}
    allowed = [expert for expert in experts if scores[expert.name].excluded is None]
    if not allowed:
        raise NoExpertError(tuple(sorted(scores.values(), key=lambda score: score.expert)))
    field_of_choice = [expert for expert in allowed if expert.generalist] if posterior.abstained else allowed

    def rank(expert: Candidate) -> tuple[float, float, bool, str]:
        return (-scores[expert.name].utility, expert.cost, not expert.generalist, expert.name)

    ranked = sorted(field_of_choice or allowed, key=rank)
    chosen = {expert.name for expert in ranked}
    ranked += [expert for expert in sorted(allowed, key=rank) if expert.name not in chosen]
    best = ranked[0]
    second = ranked[1] if len(ranked) > 1 else None
    excluded = sorted((s for s in scores.values() if s.excluded is not None), key=lambda score: score.expert)
    return Decision(
        expert=best.name,
        domain=posterior.domain,
        confidence=posterior.confidence,
        abstained=posterior.abstained,
        reason=_reason(posterior, best, second, scores),
        runner_up=second.name if second else None,
        scores=(*(scores[expert.name] for expert in ranked), *excluded),
    )


def stay(decision: Decision, before: str, margin: float) -> Decision:
    """The decision that keeps a conversation at `before`, the expert of the turn before.

    It stays where it is allowed and the best leads over it by `margin` of utility or less.
    """
    best = decision.scores[0]
    kept = next((s for s in decision.scores if s.expert == before and s.excluded is None), best)
    if kept is best or best.utility - kept.utility > margin:
        return decision
    lead = f"{best.expert} leads by {best.utility - kept.utility:.3f} only"
    told = f"{_read_as(decision)}; {before} had the turn before, {lead}"
    return replace(decision, expert=before, runner_up=best.expert, reason=told)


def bars(posterior: Posterior, generalists: Sequence[Candidate]) -> Sequence[float]:
    """What a skill counts at most, for each label, where its expert is not admitted: the best generalist's skill."""
    return [
        max((posterior.qualities.get(one.name, one.skill(domain)) for one in generalists), default=math.inf)
        for domain in posterior.labels
    ]


def quality(expert: Candidate, posterior: Posterior, limits: Sequence[float]) -> float:
    """Expected probability of a right answer, in [0, 1]. `limits` are the `bars` of the posterior's labels.

    Declared but unproved skill never beats a measured generalist. What the posterior knows of the expert stands for
    its skills.
    """
    learnt = posterior.qualities.get(expert.name)
    total = 0.0
    for domain, probability, limit in zip(posterior.labels, posterior.probabilities, limits, strict=True):
        skill = expert.skill(domain) if learnt is None else learnt
        total += probability * (skill if skill <= limit or expert.is_admitted(domain) else limit)
    return total


def _score(expert: Candidate, posterior: Posterior, limits: Sequence[float], policy: Policy, needs: Needs) -> Score:
    value = quality(expert, posterior, limits)
    return Score(
        expert=expert.name,
        quality=value,
        cost=expert.cost,
        utility=value - policy.cost_weight * expert.cost,
        excluded=_exclusion(expert, posterior, needs),
    )


def _exclusion(expert: Candidate, posterior: Posterior, needs: Needs) -> str | None:
    if needs.permitted is not None and expert.name not in needs.permitted:
        return "denied by the caller's key"
    if not expert.ready:
        return "not ready"
    missing = needs.capabilities - expert.capabilities
    if missing:
        return f"lacks {', '.join(sorted(missing))}"
    if expert.context_window is not None and needs.tokens > expert.context_window:
        return f"about {needs.tokens} tokens do not fit its window of {expert.context_window}"
    if not expert.is_admitted(posterior.domain):
        return f"not admitted to {posterior.domain}"
    return None


def _reason(posterior: Posterior, best: Candidate, second: Candidate | None, scores: Mapping[str, Score]) -> str:
    read_as = _read_as(posterior)
    if posterior.abstained:
        role = (
            "the generalist answers" if best.generalist else f"no generalist is allowed, {best.name} is the best left"
        )
        if posterior.novel:
            return f"novel: less like the training prompts than {posterior.novelty:.1%} of prompts, {read_as}; {role}"
        return f"unsure: {read_as}, under the threshold {posterior.threshold:.2f}; {role}"
    if second is None:
        return f"{read_as}; {best.name} is the only expert allowed"
    lead = scores[best.name].utility - scores[second.name].utility
    return f"{read_as}; {best.name} has utility {scores[best.name].utility:.3f}, {lead:.3f} over {second.name}"


def _read_as(reading: Posterior | Decision) -> str:
    return f"{reading.domain} at {reading.confidence:.2f}"
