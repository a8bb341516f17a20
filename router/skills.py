"""Skill: the probability that an expert answers a prompt of a domain right, declared or measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decision import Candidate

Floats = NDArray[np.float64]

PSEUDO_COUNT = 20.0
"""A declared skill weighs as much as so many measured prompts: after 20 of them both count alike."""


@dataclass(frozen=True, slots=True)
class Skill:
    """What evaluations counted: `right` of `total` prompts of a domain."""

    right: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.total:
            raise ValueError(f"{self.right} right of {self.total}; right must be between 0 and total")

    def shrunk(self, declared: float, pseudo_count: float = PSEUDO_COUNT) -> float:
        """The mean of a Beta posterior whose prior has the declared mean and weighs `pseudo_count` prompts."""
        if self.total + pseudo_count == 0:
            return declared
        return (self.right + pseudo_count * declared) / (self.total + pseudo_count)


def effective_skills(
    declared: Mapping[str, float], measured: Mapping[str, Skill], default: float, pseudo_count: float = PSEUDO_COUNT
) -> dict[str, float]:
    """Skill of every domain that is declared or measured; one measured only is shrunk towards `default`."""
    return {
        domain: measured[domain].shrunk(declared.get(domain, default), pseudo_count)
        if domain in measured
        else declared[domain]
        for domain in sorted({*declared, *measured})
    }


def candidate(
    name: str,
    *,
    declared: Mapping[str, float],
    default_skill: float,
    measured: Mapping[str, Skill] | None = None,
    admitted: Collection[str] = (),
    generalist: bool = False,
    cost: float = 1.0,
    ready: bool = True,
    context_window: int | None = None,
    capabilities: Collection[str] = (),
) -> Candidate:
    """An expert as the decision sees it, from plain values.

    `admitted` are the domains that the operator vouches for or that the gate opened; `cost` is relative to the
    generalist's.
    """
    return Candidate(
        name=name,
        skills=effective_skills(declared, measured or {}, default_skill),
        default_skill=default_skill,
        admitted=frozenset(admitted),
        generalist=generalist,
        cost=cost,
        ready=ready,
        context_window=context_window,
        capabilities=frozenset(capabilities),
    )


def soft_skills(posterior: Floats, correct: Floats, prior: Floats, pseudo_count: float = PSEUDO_COUNT) -> Floats:
    """S (experts, labels) from posteriors (n, labels) and right/wrong (n, experts), shrunk towards `prior` (experts,).

    A prompt counts for each label as much as its posterior says.
    """
    total = posterior.sum(axis=0)
    skills: Floats = (correct.T @ posterior + pseudo_count * prior[:, None]) / (total + pseudo_count)
    return skills
