"""The few experts of a large pool among whom its decision falls, found by looking at all of them at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decision import Candidate, Needs, Policy
from .posterior import Posterior

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

SMALL = 32
"""Up to so many experts are quicker looked at one by one."""
_BEST = 4
_LABELLINGS = 4


@dataclass(frozen=True, slots=True)
class _Labelled:
    """The pool seen through a router's labels: (labels, experts) each. `counted` is what a skill is worth at most."""

    skills: Floats
    admitted: Bools
    counted: Floats


class Shortlist:
    """A pool's experts as arrays, in the order in which equals are chosen."""

    def __init__(self, experts: Sequence[Candidate]) -> None:
        self.experts = experts
        if len(experts) <= SMALL:
            return
        self._sorted = sorted(experts, key=lambda one: (one.cost, not one.generalist, one.name))
        self._places = {one.name: place for place, one in enumerate(self._sorted)}
        self._generalist = np.array([one.generalist for one in self._sorted])
        self._ready = np.array([one.ready for one in self._sorted])
        self._costs = np.array([one.cost for one in self._sorted])
        self._windows = np.array([np.inf if one.context_window is None else one.context_window for one in self._sorted])
        self._capable: dict[frozenset[str], Bools] = {}
        self._labelled: dict[tuple[str, ...], _Labelled] = {}

    def of(self, posterior: Posterior, policy: Policy, needs: Needs, keep: Collection[str] = ()) -> Sequence[Candidate]:
        """Those that `decide` has to see to decide as if it saw all, and `keep`; all of them where they are few.

        With them are the next best, the best generalists, and the best with a larger context window than the first.
        Where no expert is allowed, they are any few.
        """
        if len(self.experts) <= SMALL:
            return self.experts
        seen = self._seen(posterior.labels)
        skills, counted = seen.skills, seen.counted
        if posterior.qualities:
            skills, counted = self._learnt(seen, posterior.qualities)
        allowed = self._allowed(seen, posterior, needs)
        if not allowed.any():
            return self._sorted[:_BEST]
        utility = self._utility(counted, posterior, policy)
        generalists = allowed & self._generalist
        best = _best(utility, generalists if posterior.abstained and generalists.any() else allowed)
        larger = allowed & (self._windows > self._windows[best[0]])
        places = [best, *(_best(utility, among) for among in (allowed, generalists, larger, larger & generalists))]
        places.append(self._bars(skills))
        places.append(np.array([self._places[name] for name in keep if name in self._places], dtype=np.intp))
        return [self._sorted[place] for place in np.unique(np.concatenate(places))]

    def changed(self, experts: Sequence[Candidate]) -> Shortlist:
        """The pool as it is now, ready for the labels that decisions were made under."""
        after = Shortlist(experts)
        if len(experts) > SMALL:
            after._labelled = {labels: after._look(labels, self) for labels in self.labellings}
        return after

    @property
    def labellings(self) -> tuple[tuple[str, ...], ...]:
        """The labels that decisions were made under."""
        return tuple(self._labelled) if len(self.experts) > SMALL else ()

    def _seen(self, labels: tuple[str, ...]) -> _Labelled:
        seen = self._labelled.get(labels)
        if seen is None:
            if len(self._labelled) >= _LABELLINGS:
                self._labelled = {}
            seen = self._labelled[labels] = self._look(labels)
        return seen

    def _look(self, labels: tuple[str, ...], before: Shortlist | None = None) -> _Labelled:
        """Every expert's skills; of those that are as they were `before`, the same."""
        shape = (len(labels), len(self._sorted))
        skills, admitted = np.empty(shape), np.empty(shape, dtype=bool)
        others = range(len(self._sorted))
        if before is not None:
            known = before._labelled[labels]
            was = np.array([before._place(one) for one in self._sorted])
            skills, admitted = known.skills[:, was], known.admitted[:, was]
            others = np.flatnonzero(was < 0).tolist()
        for place in others:
            one = self._sorted[place]
            skills[:, place] = [one.skill(label) for label in labels]
            admitted[:, place] = [one.is_admitted(label) for label in labels]
        return _Labelled(skills, admitted, self._counted(skills, admitted))

    def _place(self, one: Candidate) -> int:
        """Where this very candidate is, or -1."""
        place = self._places.get(one.name, -1)
        return place if place >= 0 and self._sorted[place] is one else -1

    def _learnt(self, seen: _Labelled, qualities: Mapping[str, float]) -> tuple[Floats, Floats]:
        skills = seen.skills.copy()
        for name, quality in qualities.items():
            if name in self._places:
                skills[:, self._places[name]] = quality
        return skills, self._counted(skills, seen.admitted)

    def _counted(self, skills: Floats, admitted: Bools) -> Floats:
        if not self._generalist.any():
            return skills
        bars = skills[:, self._generalist].max(axis=1, keepdims=True)
        return np.where(admitted, skills, np.minimum(skills, bars))

    def _bars(self, skills: Floats) -> Places:
        """For each label the generalist that sets the bar."""
        places = np.flatnonzero(self._generalist)
        return places[np.unique(skills[:, places].argmax(axis=1))] if places.size else places

    def _utility(self, counted: Floats, posterior: Posterior, policy: Policy) -> Floats:
        # Label by label, as `quality` adds up: the same numbers to the last bit, so that equals are equal here too.
        total = np.zeros(len(self._sorted))
        for probability, row in zip(posterior.probabilities, counted, strict=True):
            total += probability * row
        return total - policy.cost_weight * self._costs

    def _allowed(self, seen: _Labelled, posterior: Posterior, needs: Needs) -> Bools:
        admitted = seen.admitted[posterior.labels.index(posterior.domain)]
        allowed: Bools = self._ready & admitted & (self._windows >= needs.tokens) & self._able(needs.capabilities)
        if needs.permitted is not None:
            permitted = np.zeros(len(self._sorted), dtype=bool)
            permitted[[self._places[name] for name in needs.permitted if name in self._places]] = True
            allowed &= permitted
        return allowed

    def _able(self, capabilities: frozenset[str]) -> Bools:
        if capabilities not in self._capable:
            self._capable[capabilities] = np.array([capabilities <= one.capabilities for one in self._sorted])
        return self._capable[capabilities]


def _best(utility: Floats, among: Bools) -> Places:
    """Places of the highest utilities, of equals the first."""
    places = np.flatnonzero(among)
    if places.size <= _BEST:
        return places[np.argsort(-utility[places], kind="stable")]
    values = utility[places]
    last = np.partition(values, -_BEST)[-_BEST]
    above = places[values > last]
    above = above[np.argsort(-utility[above], kind="stable")]
    return np.concatenate([above, places[values == last][: _BEST - above.size]])
