"""Splits that keep exact and near duplicates on one side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..router.seen import shingles

Positions = NDArray[np.intp]

SIMILARITY = 0.8
_BANDS, _ROWS = 10, 4  # two texts at Jaccard 0.8 share a band with probability 1 - (1 - 0.8**4)**10 = 0.995
_PRIME = np.uint64(2**31 - 1)
_COMPARED = 16  # of a crowded bucket; a template's rows chain to its first ones


def near_duplicate_groups(texts: Sequence[str]) -> Positions:
    """A group number for each text: equal for texts whose word-3-grams have Jaccard similarity of 0.8 or more.

    MinHash with banding finds the pairs (Broder 1997), exact similarity confirms them; groups are transitive.
    """
    grams = [shingles(text) for text in texts]
    parent = list(range(len(texts)))
    rng = np.random.default_rng(0)
    scale = rng.integers(1, int(_PRIME), _BANDS * _ROWS, dtype=np.uint64)
    shift = rng.integers(0, int(_PRIME), _BANDS * _ROWS, dtype=np.uint64)
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for position, hashes in enumerate(grams):
        signature = ((hashes[:, None] * scale + shift) % _PRIME).min(axis=0).astype(np.uint32)
        for band in range(_BANDS):
            bucket = buckets[band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes()]
            for other in bucket[:_COMPARED]:
                ours, theirs = _root(parent, position), _root(parent, other)
                if ours != theirs and _jaccard(hashes, grams[other]) >= SIMILARITY:
                    parent[max(ours, theirs)] = min(ours, theirs)
            bucket.append(position)
    return np.array([_root(parent, position) for position in range(len(texts))], dtype=np.intp)


def folds(labels: Sequence[str], groups: Positions, count: int, seed: int) -> NDArray[np.intp]:
    """A fold number in [0, count) for each row: labels spread evenly, a group never parted."""
    rng = np.random.default_rng(seed)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[int(group)].append(position)
    filled: defaultdict[str, list[int]] = defaultdict(lambda: [0] * count)
    assigned = np.zeros(len(groups), dtype=np.intp)
    order = rng.permutation(sorted(members))
    for group in sorted(order, key=lambda group: -len(members[int(group)])):
        rows = members[int(group)]
        label = labels[rows[0]]
        fold = int(np.argmin(filled[label]))
        filled[label][fold] += len(rows)
        assigned[rows] = fold
    return assigned


def source_folds(labels: Sequence[str], sources: Sequence[str], count: int) -> Positions:
    """A fold number for each row that never parts a source, and never puts all rows of a label into one fold.

    Raises:
        ValueError: a label comes from one source only.
    """
    sources_of: defaultdict[str, set[str]] = defaultdict(set)
    for label, source in zip(labels, sources, strict=True):
        sources_of[label].add(source)
    alone = sorted(label for label, found in sources_of.items() if len(found) < 2)
    if alone:
        raise ValueError(f"label {alone[0]!r} comes from one source only, which cannot be held out")
    sizes = Counter(sources)
    fold_of: dict[str, int] = {}
    filled = [0] * count
    for source in sorted(sizes, key=lambda source: (-sizes[source], source)):
        for fold in sorted(range(count), key=filled.__getitem__):
            together = {*(other for other, its in fold_of.items() if its == fold), source}
            if not any(found <= together for found in sources_of.values()):
                break
        else:
            raise ValueError(f"the sources of a label cannot be parted into {count} folds")
        fold_of[source] = fold
        filled[fold] += sizes[source]
    return np.array([fold_of[source] for source in sources], dtype=np.intp)


def rounds(assigned: Positions, count: int) -> Iterator[tuple[Positions, Positions]]:
    """(training rows, held-out rows) of the first `count` folds."""
    for fold in range(count):
        yield np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)


def _jaccard(ours: NDArray[np.uint64], theirs: NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(ours, theirs, assume_unique=True))
    return shared / (len(ours) + len(theirs) - shared)


def _root(parent: list[int], position: int) -> int:
    while parent[position] != position:
        parent[position] = parent[parent[position]]
        position = parent[position]
    return position
