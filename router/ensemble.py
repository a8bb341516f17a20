"""Domain-posterior ensembles: several experts' choice probabilities mixed by how likely each one's domain is.

Branch-Train-Merge (Li et al. 2022, arXiv 2208.03306): p(y | x) = sum over experts of p(e | x) p(y | x, e). p(e | x)
comes from the router's posterior or, as in the paper, from the experts' own likelihoods of the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DECAY = 0.3
"""Of the cached prior, as in the paper."""


def expert_posterior(
    posteriors: Floats, labels: Sequence[str], experts: Sequence[str], specialist: Mapping[str, str], generalist: str
) -> Floats:
    """p(e | x), (n, experts), from p(domain | x), (n, labels): a domain counts for its specialist, else the generalist.

    Raises:
        ValueError: a specialist or the generalist is not among `experts`.
    """
    unknown = {generalist, *specialist.values()} - set(experts)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are not among the experts {list(experts)}")
    owns = np.zeros((len(labels), len(experts)))
    for row, label in enumerate(labels):
        owns[row, list(experts).index(specialist.get(label, generalist))] = 1.0
    weights: Floats = np.asarray(posteriors, dtype=float) @ owns
    return weights


def likelihood_posterior(context: Floats, prior: Floats) -> Floats:
    """p(e | x), (n, experts), by Bayes' rule from the experts' log-likelihoods of the context, (n, experts), nats."""
    with np.errstate(divide="ignore"):
        return _normalised(np.asarray(context, dtype=float) + np.log(prior))


def cached_prior(posteriors: Floats, decay: float = DECAY) -> Floats:
    """p(e), (experts,): a moving average of posteriors on data at hand, which weighs the last of them most.

    With it fixed, no request changes how the next one is answered.
    """
    count = len(posteriors)
    ages = np.arange(count - 1, -1, -1)
    weights = decay ** (ages + 1.0)
    prior: Floats = (weights @ posteriors) / weights.sum()
    return prior


def with_prior(posteriors: Floats, trained: Floats, prior: Floats) -> Floats:
    """Posteriors of a router trained where classes came as `trained`, for traffic where they come as `prior`."""
    ratio = np.divide(prior, trained, out=np.zeros_like(prior), where=np.asarray(trained) > 0)
    scaled = np.asarray(posteriors) * ratio
    adjusted: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return adjusted


def top_k(weights: Floats, k: int) -> Floats:
    """The k largest of each row, made to sum to 1, and 0 for the others; of equals the first are kept.

    Raises:
        ValueError: k is under 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; an ensemble asks at least one expert")
    order = np.argsort(-weights, axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(weights)
    np.put_along_axis(kept, order, np.take_along_axis(weights, order, axis=1), axis=1)
    shares: Floats = kept / kept.sum(axis=1, keepdims=True)
    return shares


def mixed(weights: Floats, logprobs: Floats) -> Floats:
    """p(choice | x), (n, choices), from p(e | x), (n, experts), and log-probabilities, (n, experts, choices), in nats.

    Each expert's are made a distribution over the choices first. A choice that a question does not have is -inf; an
    expert of weight 0 was not asked, so its values may be anything.
    """
    asked = (weights > 0)[:, :, None]
    given = np.where(asked, logprobs, 0.0)
    chances: Floats = np.einsum("ne,nec->nc", weights, _normalised(given))
    return chances


def mixed_tokens(weights: Floats, logprobs: Floats) -> Floats:
    """log p(token | prefix), (tokens,), from p(e | x) > 0, (experts,), and the experts' own, (experts, tokens), nats.

    The next-token mixture with one p(e | x) for the whole text, as in c-BTM (Gururangan et al. 2023, arXiv 2303.14177).
    A token that is nan for any expert is nan.
    """
    logs = np.asarray(logprobs, dtype=float) + np.log(weights)[:, None]
    with np.errstate(invalid="ignore"):
        mixture: Floats = np.logaddexp.reduce(logs, axis=0)
    return mixture


def _normalised(logs: Floats) -> Floats:
    """exp(logs) with the last axis made to sum to 1, without overflow."""
    shifted = np.exp(logs - logs.max(axis=-1, keepdims=True))
    shares: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares
