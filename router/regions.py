"""Regions: clusters inside a domain where another expert wins than in the rest of it, proved on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from .calibration import Floats
from .skills import soft_skills

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CLUSTERS = 4
MIN_ROWS = 60
"""A cluster with fewer prompts is not tried: half of them could prove nothing."""
LEVEL = 0.05


@dataclass(frozen=True, eq=False, slots=True)
class Regions:
    """Columns of the skill table: the `domains` first, then the kept clusters.

    Every domain that was split has its `centroids` (c, d) here, `domain_of` (c,) tells whose, `column_of` (c,) which
    column counts for a prompt near that centroid: the domain's own where the cluster was not kept.
    """

    domains: int
    centroids: Floats
    domain_of: Ints
    column_of: Ints

    @property
    def columns(self) -> int:
        return self.domains + int((self.column_of >= self.domains).sum())

    def of(self, vectors: Floats) -> Ints:
        """(n, domains): the column that stands for each domain at each vector, (n, d)."""
        chosen = np.tile(np.arange(self.domains), (len(vectors), 1))
        for domain in np.unique(self.domain_of):
            own = self.domain_of == domain
            chosen[:, domain] = self.column_of[own][_nearest(vectors, self.centroids[own])]
        return chosen

    def spread(self, vectors: Floats, posterior: Floats) -> Floats:
        """p(column | prompt), (n, columns), from p(domain | prompt), (n, domains)."""
        made = np.zeros((len(vectors), self.columns))
        np.put_along_axis(made, self.of(vectors), posterior, axis=1)
        return made


def no_regions(domains: int, dimensions: int) -> Regions:
    """Domains only."""
    return Regions(domains, np.empty((0, dimensions)), np.empty(0, np.int64), np.empty(0, np.int64))


def find_regions(vectors: Floats, domain: Ints, correct: Bools, domains: int, seed: int = 0) -> Regions:
    """Split every domain by k-means on a random half of the prompts and keep what the other half proves.

    The first half names the winner of each cluster and of its domain. The second tests, where they differ, whether the
    cluster's winner is better there: one-sided exact McNemar, Holm over all clusters of all domains. `vectors` (n, d),
    `domain` (n,), `correct` (n, experts).
    """
    half = np.random.default_rng(seed).permutation(len(domain)) % 2 == 0
    prior = correct.mean(axis=0)
    tried: list[tuple[int, int, float]] = []
    split: dict[int, Floats] = {}
    for own in range(domains):
        rows = np.flatnonzero(domain == own)
        count = min(CLUSTERS, len(rows) // MIN_ROWS)
        if count < 2:
            continue
        first, second = rows[half[rows]], rows[~half[rows]]
        split[own] = _kmeans(vectors[first], count, seed)
        of_first, of_second = _nearest(vectors[first], split[own]), _nearest(vectors[second], split[own])
        overall = int(correct[first].mean(axis=0).argmax())
        skills = soft_skills(np.eye(count)[of_first], correct[first].astype(np.float64), prior)
        for cluster in range(count):
            winner = int(skills[:, cluster].argmax())
            if winner != overall:
                there = correct[second[of_second == cluster]]
                tried.append((own, cluster, _p_better(there[:, winner], there[:, overall])))
    return _kept(tried, split, domains, vectors.shape[1])


def _kept(tried: list[tuple[int, int, float]], split: dict[int, Floats], domains: int, dimensions: int) -> Regions:
    """Holm's step-down test: the smallest p-values as long as each passes its own level."""
    kept: set[tuple[int, int]] = set()
    for rank, (own, cluster, p) in enumerate(sorted(tried, key=lambda one: one[2])):
        if p > LEVEL / (len(tried) - rank):
            break
        kept.add((own, cluster))
    used = sorted({own for own, _ in kept})
    if not used:
        return no_regions(domains, dimensions)
    column = {pair: domains + position for position, pair in enumerate(sorted(kept))}
    places = [(own, cluster) for own in used for cluster in range(len(split[own]))]
    return Regions(
        domains,
        np.stack([split[own][cluster] for own, cluster in places]),
        np.array([own for own, _ in places], dtype=np.int64),
        np.array([column.get(place, place[0]) for place in places], dtype=np.int64),
    )


def _p_better(a: Bools, b: Bools) -> float:
    """One-sided exact p of "a is not better than b" (McNemar 1947)."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binom.sf(only_a - 1, only_a + only_b, 0.5))


def _kmeans(vectors: Floats, count: int, seed: int) -> Floats:
    from sklearn.cluster import KMeans

    centroids: Floats = KMeans(count, n_init=3, random_state=seed).fit(vectors).cluster_centers_
    return centroids


def _nearest(vectors: Floats, centroids: Floats) -> Ints:
    """(n,) position of the nearest centroid."""
    distance = (centroids**2).sum(axis=1) - 2 * vectors @ centroids.T
    return np.asarray(distance.argmin(axis=1), dtype=np.int64)
