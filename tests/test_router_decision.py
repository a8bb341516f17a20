"""The decision: the formula by hand, masks, ties, abstention, reasons."""

from __future__ import annotations

import random

import pytest
from collegium.router.decision import Candidate, Needs, NoExpertError, Policy, bars, decide, quality, stay
from collegium.router.posterior import Posterior
from collegium.router.skills import Skill, candidate, effective_skills
from hypothesis import given
from hypothesis import strategies as st

LABELS = ("coding", "general", "math")
MATH = Posterior(LABELS, (0.1, 0.2, 0.7))
GENERALIST = Candidate("general", {"math": 0.5, "coding": 0.4}, default_skill=0.6, generalist=True)
MATHS = Candidate("maths", {"math": 0.9}, default_skill=0.3, admitted=frozenset({"math"}), cost=0.5)
CODER = Candidate("coder", {"coding": 0.9}, default_skill=0.2, admitted=frozenset({"coding"}), cost=0.5)


def test_formula_by_hand() -> None:
    decision = decide(MATH, [GENERALIST, MATHS, CODER], Policy(cost_weight=0.1))
    scores = {score.expert: score for score in decision.scores}
    assert scores["general"].quality == pytest.approx(0.1 * 0.4 + 0.2 * 0.6 + 0.7 * 0.5)
    assert scores["maths"].quality == pytest.approx(0.1 * 0.3 + 0.2 * 0.3 + 0.7 * 0.9)
    assert scores["maths"].utility == pytest.approx(scores["maths"].quality - 0.1 * 0.5)
    assert (decision.expert, decision.runner_up, decision.domain) == ("maths", "general", "math")
    assert decision.confidence == 0.7 and not decision.abstained
    assert "maths" in decision.reason and "math at 0.70" in decision.reason


def test_cost_weight_moves_the_choice() -> None:
    dear = Candidate("dear", {"math": 0.95}, default_skill=0.95, admitted=frozenset({"math"}), cost=5.0)
    assert decide(MATH, [GENERALIST, dear]).expert == "dear"
    assert decide(MATH, [GENERALIST, dear], Policy(cost_weight=0.2)).expert == "general"


def test_unproved_skill_counts_at_most_as_the_generalists() -> None:
    boaster = Candidate("boaster", dict.fromkeys(LABELS, 1.0), admitted=frozenset({"math"}))
    assert quality(boaster, MATH, bars(MATH, [GENERALIST])) == pytest.approx(0.1 * 0.4 + 0.2 * 0.6 + 0.7 * 1.0)
    assert quality(boaster, MATH, bars(MATH, [])) == pytest.approx(1.0)


def test_unsure_prompt_goes_to_the_generalist() -> None:
    unsure = Posterior(LABELS, (0.1, 0.2, 0.7), threshold=0.8)
    decision = decide(unsure, [MATHS, GENERALIST])
    assert decision.expert == "general" and decision.abstained and "unsure" in decision.reason


def test_unsure_without_a_generalist_goes_to_the_best() -> None:
    decision = decide(Posterior(LABELS, (0.1, 0.2, 0.7), threshold=0.8), [MATHS])
    assert decision.expert == "maths" and "no generalist" in decision.reason


@pytest.mark.parametrize(
    ("changes", "needs", "reason"),
    [
        ({"ready": False}, Needs(), "not ready"),
        ({"context_window": 100}, Needs(tokens=101), "do not fit its window of 100"),
        ({}, Needs(capabilities=frozenset({"tools"})), "lacks tools"),
        ({}, Needs(permitted=frozenset({"other"})), "denied by the caller's key"),
        ({"admitted": frozenset({"coding"})}, Needs(), "not admitted to math"),
    ],
)
def test_every_mask_says_why(changes: dict[str, object], needs: Needs, reason: str) -> None:
    fields: dict[str, object] = {"admitted": frozenset({"math"}), **changes}
    expert = Candidate("only", {"math": 0.9}, **fields)  # type: ignore[arg-type]
    with pytest.raises(NoExpertError, match=reason) as refused:
        decide(MATH, [expert], needs=needs)
    assert refused.value.scores[0].excluded and reason in refused.value.scores[0].excluded
    free = Candidate("free", {}, default_skill=0.0, generalist=True, capabilities=frozenset({"tools"}))
    allowed = Needs(needs.tokens, needs.capabilities, needs.permitted and needs.permitted | {"free"})
    assert decide(MATH, [expert, free], needs=allowed).expert == "free"


def test_window_fits_exactly() -> None:
    expert = Candidate("only", {}, generalist=True, context_window=100)
    assert decide(MATH, [expert], needs=Needs(tokens=100)).expert == "only"


def test_empty_pool_says_so() -> None:
    with pytest.raises(NoExpertError, match="the pool is empty"):
        decide(MATH, [])


def test_ties_go_to_the_cheaper_then_a_generalist_then_the_name() -> None:
    def same(name: str, **fields: object) -> Candidate:
        return Candidate(name, {}, default_skill=0.5, admitted=frozenset({"math"}), **fields)  # type: ignore[arg-type]

    assert decide(MATH, [same("a"), same("b", cost=0.5)]).expert == "b"
    assert decide(MATH, [same("a"), same("b", generalist=True)]).expert == "b"
    assert decide(MATH, [same("b"), same("a")]).expert == "a"


@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_order_of_the_pool_never_matters(rng: random.Random, size: int) -> None:
    experts = [
        Candidate(
            f"e{i}",
            {label: rng.choice([0.2, 0.5, 0.8]) for label in LABELS},
            admitted=frozenset(label for label in LABELS if rng.random() < 0.7),
            generalist=rng.random() < 0.3,
            cost=rng.choice([0.5, 1.0]),
        )
        for i in range(size)
    ]
    experts.append(Candidate("g", {}, generalist=True))
    posterior = Posterior(LABELS, (0.25, 0.25, 0.5), threshold=rng.choice([0.0, 0.9]))
    decision = decide(posterior, experts)
    shuffled = rng.sample(experts, len(experts))
    assert decide(posterior, shuffled) == decision
    assert len(decision.scores) == len(experts)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_policy_refuses_a_weight_that_is_no_price(weight: float) -> None:
    with pytest.raises(ValueError, match="cost_weight"):
        Policy(weight)
    with pytest.raises(ValueError, match="switch_margin is"):
        Policy(switch_margin=weight)


def test_a_conversation_goes_over_only_where_another_leads_by_more_than_the_margin() -> None:
    decision = decide(MATH, [GENERALIST, MATHS, CODER])
    assert decision.lead == pytest.approx(0.72 - 0.51)
    kept = stay(decision, "general", 0.22)
    assert (kept.expert, kept.runner_up) == ("general", "maths") and "leads by 0.210 only" in kept.reason
    assert stay(decision, "general", 0.2) == stay(decision, "coder", 9.0) == stay(decision, "gone", 9.0) == decision


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.floats(0, 0.5), st.floats(0, 1),
    st.sampled_from(["general", "maths", "coder", "gone"]),
)  # fmt: skip
def test_who_stays_is_allowed_and_near_and_who_goes_is_not(
    weights: list[float], margin: float, threshold: float, before: str
) -> None:
    posterior = Posterior(LABELS, tuple(weight / sum(weights) for weight in weights), threshold=threshold)
    decision = decide(posterior, [GENERALIST, MATHS, CODER])
    allowed = {score.expert: score.utility for score in decision.scores if score.excluded is None}
    near = before in allowed and allowed[decision.expert] - allowed[before] <= margin
    assert stay(decision, before, margin).expert == (before if near else decision.expert)


def test_posterior_refuses_what_is_no_distribution() -> None:
    for labels, probabilities in [((), ()), (("a", "b"), (1.0,)), (("a", "b"), (0.7, 0.7)), (("a", "b"), (1.5, -0.5))]:
        with pytest.raises(ValueError):
            Posterior(labels, probabilities)


def test_skill_moves_from_declared_to_measured_with_its_counts() -> None:
    assert Skill(0, 0).shrunk(0.8) == 0.8
    assert Skill(10, 20).shrunk(0.8, pseudo_count=20) == pytest.approx(0.65)
    assert Skill(5_000, 10_000).shrunk(0.8) == pytest.approx(0.5, abs=0.001)
    with pytest.raises(ValueError, match="3 right of 2"):
        Skill(3, 2)


def test_effective_skills_cover_declared_and_measured_domains() -> None:
    skills = effective_skills({"math": 0.8, "law": 0.6}, {"math": Skill(0, 20), "health": Skill(20, 20)}, 0.4, 20)
    assert skills == pytest.approx({"health": 0.7, "law": 0.6, "math": 0.4})
    expert = candidate(
        "e", declared={"math": 0.8}, default_skill=0.4, measured={"math": Skill(0, 20)}, admitted=["math"]
    )
    assert expert.skill("math") == pytest.approx(0.4) and expert.skill("law") == 0.4 and expert.is_admitted("math")
