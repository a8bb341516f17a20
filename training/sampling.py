"""Which prompts training reads, and how often: neither a large label nor a large source drowns the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..router.calibration import Floats
from .split import Positions

MOST = 3.0


def draw(targets: Floats, sources: Sequence[str], count: int, rng: np.random.Generator) -> Positions:
    """About `count` rows in random order; `targets` are soft labels, shape (n, k).

    A row's chance is 1 / sqrt(rows of its source and label), and labels count alike; none is drawn more than MOST times
    as often as the mean.
    """
    labels = targets.argmax(axis=1)
    sizes = Counter(zip(sources, labels.tolist(), strict=True))
    weights = np.array([sizes[key] ** -0.5 for key in zip(sources, labels.tolist(), strict=True)])
    for label in np.unique(labels):
        weights[labels == label] /= weights[labels == label].sum()
    mean = count / len(labels)
    expected = np.minimum(weights / weights.sum() * count, MOST * mean)
    times = np.floor(expected + rng.random(len(labels))).astype(np.intp)
    drawn: Positions = rng.permutation(np.repeat(np.arange(len(labels)), times))
    return drawn
