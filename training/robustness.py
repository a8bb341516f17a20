"""Robustness: how often a change that leaves the domain as it is flips the predicted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from ..router.calibration import Targets
from ..router.classifier import Classifier
from .augment import PERTURBATIONS, Rewrite
from .data import Prompt
from .learners import logits_of
from .metrics import Share, share


@dataclass(frozen=True, slots=True)
class Robustness:
    """One perturbation: of the `flips.rows` prompts that it changes, the share whose predicted domain flips.

    The accuracies are those of these prompts before and after.
    """

    perturbation: str
    flips: Share
    before: Share
    after: Share

    def as_dict(self) -> dict[str, JsonValue]:
        return asdict(self)


def robustness(
    classifier: Classifier,
    prompts: Sequence[Prompt],
    seed: int = 0,
    perturbations: Mapping[str, Rewrite] = PERTURBATIONS,
    cache: Path | None = None,
) -> list[Robustness]:
    """Route every prompt as it is and changed; what a perturbation leaves as it is does not count for it.

    The same seed perturbs a prompt the same way, whichever classifier reads it.
    """
    texts = [prompt.text for prompt in prompts]
    truth = np.array([prompt.label for prompt in prompts])
    plain = _predicted(classifier, texts, cache)
    found = []
    for name, perturb in perturbations.items():
        changed = [perturb(text, np.random.default_rng([seed, row])) for row, text in enumerate(texts)]
        moved = np.array([new != old for new, old in zip(changed, texts, strict=True)], dtype=bool)
        after = _predicted(classifier, [text for text, is_new in zip(changed, moved, strict=True) if is_new], cache)
        before, labels = plain[moved], truth[moved]
        names = classifier.classes_
        found.append(
            Robustness(name, share(before != after), share(names[before] == labels), share(names[after] == labels))
        )
    return found


def _predicted(classifier: Classifier, texts: Sequence[str], cache: Path | None) -> Targets:
    """Most probable class of each text, by its calibrated probabilities, shape (n,)."""
    if not texts:
        return np.empty(0, np.intp)
    chosen: Targets = classifier.calibrated(
        logits_of(classifier, [classifier.prepare(t) for t in texts], cache)
    ).argmax(axis=1)
    return chosen
