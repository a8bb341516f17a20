"""Risk control: the exact bound, the guarantee by simulation, and what happens when nothing can be promised."""

from __future__ import annotations

import numpy as np
import pytest
from collegium.router.calibration import NEVER, Floats, softmax
from collegium.router.ngrams import NgramClassifier
from collegium.router.risk import GRID, STARTS, control_risk, upper_bound
from collegium.training.data import Columns, load_prompts
from collegium.training.starter import OWN_PROMPTS
from numpy.typing import NDArray

LEVEL = 0.8


def population(seed: int, rows: int = 200_000) -> tuple[Floats, NDArray[np.bool_]]:
    """Confidences and whether they are right; overconfident, so that the threshold is not alpha's complement."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 5)) * 4
    targets = (rng.random((rows, 1)) > softmax(logits, 1.4).cumsum(axis=1)[:, :-1]).sum(axis=1)
    probabilities = softmax(logits)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets


def test_the_bound_is_clopper_and_pearsons() -> None:
    assert upper_bound(0, 45, 0.9) == pytest.approx(1 - 0.1 ** (1 / 45))  # no error: the rule of three, exactly
    assert upper_bound(2, 10, 0.975) == pytest.approx(0.5561, abs=1e-4)
    assert upper_bound(5, 5, 0.9) == 1.0 and upper_bound(0, 0, 0.9) == 1.0


def test_starts_stand_on_the_grid() -> None:
    assert set(STARTS) <= set(GRID) and list(GRID) == sorted(set(GRID))


@pytest.mark.parametrize(
    ("alpha", "rows"),
    [
        (0.05, 400),
        (0.1, 400),
        pytest.param(0.1, 2_000, marks=pytest.mark.slow),
        pytest.param(0.2, 1_000, marks=pytest.mark.slow),
    ],
)
def test_wrong_routes_exceed_alpha_no_more_often_than_promised(alpha: float, rows: int) -> None:
    confidences, right = population(1)
    rng = np.random.default_rng(2)
    draws, broken, routed = 200, 0, 0.0
    for _ in range(draws):
        taken = rng.choice(len(right), rows, replace=False)
        found = control_risk(confidences[taken], right[taken], alpha, LEVEL)
        above = confidences >= found.threshold
        routed += above.mean() / draws
        broken += bool(above.any() and (~right[above]).mean() > alpha)
    assert broken / draws <= 1 - LEVEL + 0.056  # two standard errors of 200 draws
    if rows >= 1_000:
        assert routed > 0.1  # a promise kept by routing nothing would be empty


def test_more_rows_route_more_prompts_up_to_the_true_threshold() -> None:
    confidences, right = population(3)
    few, many = (control_risk(confidences[:rows], right[:rows], 0.1) for rows in (500, 100_000))
    assert many.threshold < few.threshold
    best = min(value for value in GRID if (~right[confidences >= value]).mean() <= 0.1)
    assert best <= many.threshold <= best + 0.03
    assert many.bound is not None and many.wrong / many.routed < many.bound <= 0.1


def test_nothing_is_promised_where_nothing_can_be() -> None:
    confidences = np.full(2_000, 1.0)
    guessing = np.random.default_rng(0).random(2_000) < 0.5
    for rows in (guessing, guessing[:10] | True, guessing[:0]):
        found = control_risk(confidences[: len(rows)], rows, 0.05)
        assert not found.possible and found.threshold == NEVER and found.routed == 0
        assert "Nothing is routed" in found.guarantee and str(len(rows)) in found.guarantee


def test_prompts_that_are_never_routed_do_not_count() -> None:
    confidences, right = population(4, 5_000)
    wrong_and_never = (
        np.concatenate([confidences, np.full(5_000, -1.0)]),
        np.concatenate([right, np.zeros(5_000, bool)]),
    )
    alone, beside = control_risk(confidences, right, 0.1), control_risk(*wrong_and_never, 0.1)
    assert (beside.threshold, beside.routed, beside.wrong) == (alone.threshold, alone.routed, alone.wrong)


def test_all_right_routes_all() -> None:
    found = control_risk(np.linspace(0.2, 1.0, 500), np.ones(500, bool), 0.05)
    assert found.threshold == 0.0 and found.routed == 500 and "exchangeable" in found.guarantee
    assert found.as_dict()["guarantee"] == found.guarantee


@pytest.mark.parametrize(("alpha", "level", "sentence"), [(0.0, 0.9, "alpha is 0"), (0.05, 1.0, "confidence is 1")])
def test_impossible_promises_are_refused(alpha: float, level: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        control_risk(np.ones(3), np.ones(3, bool), alpha, level)


def test_the_promise_holds_on_the_logits_of_a_real_router() -> None:
    """Held-out prompts of our own stand for all prompts, so that the true share of wrong routes is known."""
    prompts = load_prompts(OWN_PROMPTS, Columns(label="domain"))
    router = NgramClassifier().fit([p.text for p in prompts[::2]], [p.label for p in prompts[::2]])
    held = prompts[1::2]
    logits = router.logits_of_features(router.features([router.prepare(prompt.text) for prompt in held]))
    right = router.classes_[logits.argmax(axis=1)] == [prompt.label for prompt in held]
    confidences = softmax(logits, 0.3).max(axis=1)
    rng = np.random.default_rng(5)
    draws, broken, useful = 200, 0, 0
    for _ in range(draws):
        taken = rng.integers(0, len(held), 600)
        threshold = control_risk(confidences[taken], right[taken], 0.2, LEVEL).threshold
        routed = confidences >= threshold
        useful += bool(routed.mean() > 0.1)
        broken += bool(routed.any() and (~right[routed]).mean() > 0.2)
    assert broken / draws <= 1 - LEVEL + 0.056 and useful / draws > 0.5
