"""The domain-posterior ensemble, on examples worked by hand to 1e-9."""

from __future__ import annotations

import math

import numpy as np
import pytest
from collegium.router.ensemble import (
    cached_prior,
    expert_posterior,
    likelihood_posterior,
    mixed,
    mixed_tokens,
    top_k,
    with_prior,
)

LABELS = ("math", "science", "general")
EXPERTS = ("base", "m", "s")
POSTERIOR = np.array([[0.5, 0.3, 0.2]])
SPECIALIST = {"math": "m", "science": "s"}
# Probabilities of three choices, as unnormalised log-likelihoods: each expert's are shifted by another constant.
CHOICES = (
    np.log(np.array([[[0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]])) + np.array([-3.0, 11.0, -700.0])[:, None]
)


def test_a_worked_example() -> None:
    weights = expert_posterior(POSTERIOR, LABELS, EXPERTS, SPECIALIST, "base")
    np.testing.assert_allclose(weights, [[0.2, 0.5, 0.3]], atol=1e-12)
    by_hand = [0.2 * 0.2 + 0.5 * 0.7 + 0.3 * 0.1, 0.2 * 0.5 + 0.5 * 0.2 + 0.3 * 0.1, 0.2 * 0.3 + 0.5 * 0.1 + 0.3 * 0.8]
    assert by_hand == pytest.approx([0.42, 0.23, 0.35], abs=1e-12)
    assert mixed(weights, CHOICES)[0] == pytest.approx(by_hand, abs=1e-9)


def test_top_two_leave_the_third_out() -> None:
    weights = top_k(expert_posterior(POSTERIOR, LABELS, EXPERTS, SPECIALIST, "base"), 2)
    np.testing.assert_allclose(weights, [[0, 0.625, 0.375]], atol=1e-12)
    unasked = CHOICES.copy()
    unasked[:, 0] = np.nan
    by_hand = [0.625 * 0.7 + 0.375 * 0.1, 0.625 * 0.2 + 0.375 * 0.1, 0.625 * 0.1 + 0.375 * 0.8]
    assert mixed(weights, unasked)[0] == pytest.approx(by_hand, abs=1e-9)


def test_one_expert_is_routing() -> None:
    weights = top_k(np.array([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]]), 1)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0, 0, 1]])


def test_a_domain_with_two_labels_and_one_without_specialist() -> None:
    weights = expert_posterior(
        np.array([[0.5, 0.3, 0.2]]), LABELS, ("base", "m"), {"math": "m", "science": "m"}, "base"
    )
    np.testing.assert_allclose(weights, [[0.2, 0.8]], atol=1e-12)


def test_likelihoods_of_the_context_by_bayes_rule() -> None:
    context = np.log(np.array([[0.02, 0.01]])) - 900.0
    posterior = likelihood_posterior(context, np.array([0.25, 0.75]))
    assert posterior[0] == pytest.approx([0.005 / 0.0125, 0.0075 / 0.0125], abs=1e-9)
    assert likelihood_posterior(context, np.array([0.0, 1.0]))[0] == pytest.approx([0, 1], abs=1e-12)


def test_the_cached_prior_is_an_average_that_forgets() -> None:
    seen = np.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    total = 0.3 + 0.09 + 0.027
    first = (0.3 * 0.2 + 0.09 * 0.5 + 0.027 * 1.0) / total
    assert cached_prior(seen) == pytest.approx([first, 1 - first], abs=1e-9)


def test_another_prior_moves_the_posterior_as_bayes_says() -> None:
    moved = with_prior(np.array([[0.6, 0.4]]), trained=np.array([0.5, 0.5]), prior=np.array([0.2, 0.8]))
    assert moved[0] == pytest.approx([0.12 / 0.44, 0.32 / 0.44], abs=1e-9)


def test_choices_that_a_question_does_not_have() -> None:
    padded = np.concatenate([CHOICES, np.full((1, 3, 1), -math.inf)], axis=2)
    chances = mixed(np.array([[0.2, 0.5, 0.3]]), padded)[0]
    assert chances == pytest.approx([0.42, 0.23, 0.35, 0.0], abs=1e-9)


def test_next_tokens_are_mixed_as_probabilities() -> None:
    logprobs = np.log(np.array([[0.5, 0.1, 1e-300], [0.9, 0.2, 1e-308]]))
    by_hand = [0.25 * 0.5 + 0.75 * 0.9, 0.25 * 0.1 + 0.75 * 0.2]
    found = mixed_tokens(np.array([0.25, 0.75]), logprobs)
    assert found[:2] == pytest.approx(np.log(by_hand), abs=1e-12)
    assert found[2] == pytest.approx(math.log(0.25) - 300 * math.log(10), abs=1e-6)
    far = mixed_tokens(np.array([0.5, 0.5]), np.array([[-9999.0, math.nan], [-9999.0, -1.0]]))
    assert far[0] == pytest.approx(-9999, abs=1e-9) and math.isnan(far[1])
    assert mixed_tokens(np.array([1.0]), logprobs[:1]) == pytest.approx(logprobs[0], abs=1e-12)


def test_what_makes_no_ensemble() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        top_k(np.array([[1.0]]), 0)
    with pytest.raises(ValueError, match="'s'"):
        expert_posterior(POSTERIOR, LABELS, ("base", "m"), SPECIALIST, "base")
