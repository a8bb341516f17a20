"""A large pool's decision is the one that looking at every expert would give, to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from collegium.router.decision import UNREAD, Candidate, Decision, Needs, NoExpertError, Policy, decide
from collegium.router.posterior import Posterior
from collegium.router.shortlist import SMALL, Shortlist

LABELS = ("coding", "health", "law", "math", "writing")


def _pool(chance: random.Random, size: int) -> list[Candidate]:
    """Experts among whom many are equal, so that every rule for equals is asked."""
    often = chance.choice((0.0, 0.02, 0.3))
    return [
        Candidate(
            f"e{number}",
            {label: chance.choice((0.2, 0.5, 0.9, chance.random())) for label in chance.sample(LABELS, 2)},
            default_skill=chance.choice((0.3, 0.5)),
            admitted=frozenset(chance.sample(LABELS, chance.randrange(3))),
            generalist=chance.random() < often,
            cost=chance.choice((0.5, 1.0, 1.0)),
            ready=chance.random() < 0.9,
            context_window=chance.choice((None, 1000, 4000, 8000)),
            capabilities=frozenset(chance.sample(("tools", "vision"), chance.randrange(3))),
        )
        for number in range(size)
    ]


def _posterior(chance: random.Random, pool: list[Candidate]) -> Posterior:
    shares = [chance.random() ** 4 + 1e-9 for _ in LABELS]
    learnt = chance.sample(pool, 5) if chance.random() < 0.3 else []
    return Posterior(
        LABELS,
        tuple(share / sum(shares) for share in shares),
        threshold=chance.choice((0.0, 0.6)),
        qualities={one.name: chance.random() for one in learnt},
    )


def _needs(chance: random.Random, pool: list[Candidate]) -> Needs:
    permitted = frozenset(one.name for one in chance.sample(pool, len(pool) // 2)) | {"unknown"}
    return Needs(
        tokens=chance.choice((0, 500, 5000)),
        capabilities=frozenset(chance.sample(("tools", "vision"), chance.choice((0, 0, 1, 2)))),
        permitted=chance.choice((None, permitted)),
    )


def _told(decision: Decision) -> tuple[object, ...]:
    return (decision.expert, decision.runner_up, decision.reason, decision.lead, decision.scores[0])


@pytest.mark.parametrize("number", range(100))
def test_the_decision_is_the_one_among_all(number: int) -> None:
    chance = random.Random(number)
    pool = _pool(chance, chance.choice((SMALL + 1, 60, 200)))
    shortlist = Shortlist(pool)
    policy = Policy(cost_weight=chance.choice((0.0, 0.1)))
    for _ in range(5):
        posterior, needs = _posterior(chance, pool), _needs(chance, pool)
        short = shortlist.of(posterior, policy, needs)
        assert len(short) < SMALL
        try:
            expected = decide(posterior, pool, policy, needs)
        except NoExpertError:
            with pytest.raises(NoExpertError):
                decide(posterior, short, policy, needs)
            continue
        decided = decide(posterior, short, policy, needs)
        assert _told(decided) == _told(expected)
        _stand_ins_are_among(decided, expected, pool)


def _stand_ins_are_among(decided: Decision, expected: Decision, pool: list[Candidate]) -> None:
    """Whom a failing first one leaves the request to: the best generalist, and those with larger windows."""
    known = {one.name: one for one in pool}
    window = known[expected.expert].context_window or float("inf")

    def first(decision: Decision, generalist: bool, larger: bool) -> str | None:
        names = (score.expert for score in decision.scores[1:] if score.excluded is None)
        fits = (n for n in names if not larger or (known[n].context_window or float("inf")) > window)
        return next((name for name in fits if known[name].generalist or not generalist), None)

    for generalist in (False, True):
        for larger in (False, True):
            assert first(decided, generalist, larger) == first(expected, generalist, larger)


def test_who_is_to_be_kept_is_kept() -> None:
    chance = random.Random(1)
    pool = _pool(chance, 200)
    posterior = _posterior(chance, pool)
    short = Shortlist(pool).of(posterior, Policy(), Needs(), keep=("e17", "unknown"))
    assert "e17" in {one.name for one in short}


def test_a_small_pool_is_looked_at_whole() -> None:
    pool = _pool(random.Random(2), SMALL)
    shortlist = Shortlist(pool)
    assert shortlist.of(Posterior(LABELS, (0.2,) * 5), Policy(), Needs()) is pool
    assert shortlist.labellings == shortlist.changed(pool[1:]).labellings == ()


def test_other_labels_are_another_look_and_not_kept_for_ever() -> None:
    pool = [replace(one, generalist=True) for one in _pool(random.Random(3), 100)]
    shortlist = Shortlist(pool)
    for number in range(20):
        labels = (*LABELS, f"new {number}")
        posterior = Posterior(labels, (0.2,) * 5 + (0.0,))
        decided = decide(posterior, shortlist.of(posterior, Policy(), Needs()))
        assert _told(decided) == _told(decide(posterior, pool))
    assert 0 < len(shortlist.labellings) < 10


def test_a_prompt_that_nobody_read_is_anybodys() -> None:
    pool = [replace(one, admitted=frozenset(), generalist=False) for one in _pool(random.Random(4), 100)]
    unread = Posterior((UNREAD,), (1.0,), threshold=2.0)
    decided = decide(unread, Shortlist(pool).of(unread, Policy(), Needs()))
    assert decided.abstained
    assert _told(decided) == _told(decide(unread, pool))


@pytest.mark.parametrize("number", range(30))
def test_a_pool_that_changed_is_seen_as_it_is(number: int) -> None:
    """Experts that go, come, change and change places: what is kept of those that stay is theirs."""
    chance = random.Random(number)
    pool = _pool(chance, 80)
    shortlist = Shortlist(pool)
    for _ in range(5):
        posterior, needs = _posterior(chance, pool), Needs()
        shortlist.of(posterior, Policy(), needs)
        pool = chance.sample(pool, 70) + [replace(one, name=f"n{one.name}") for one in _pool(chance, 10)]
        for place in chance.sample(range(len(pool)), 5):
            pool[place] = replace(pool[place], cost=chance.random(), admitted=frozenset(LABELS), skills={})
        pool = list({one.name: one for one in pool}.values())
        shortlist = shortlist.changed(pool)
        assert shortlist.labellings == (LABELS,)
        again = Shortlist(pool)
        for _ in range(3):
            posterior = _posterior(chance, pool)
            found, expected = (one.of(posterior, Policy(0.1), needs) for one in (shortlist, again))
            assert found == expected
