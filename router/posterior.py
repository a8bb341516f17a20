"""The posterior: calibrated p(domain | prompt), and whether it is sure enough to act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Posterior:
    """Probabilities of the domains, in the order of `labels`, summing to 1.

    `threshold` is the confidence under which the router abstains and leaves the prompt to the generalist. `qualities`
    are experts' probabilities of answering this prompt right, from a router that learnt outcomes; they stand for the
    skills of the experts they name. `novelty` is the share of held-out prompts that are more like the training prompts
    than this one; above `novelty_limit` the router abstains too, however confident it is.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    threshold: float = 0.0
    qualities: Mapping[str, float] = field(default_factory=dict, hash=False)
    novelty: float = 0.0
    novelty_limit: float = 1.0

    def __post_init__(self) -> None:
        if not self.labels or len(self.labels) != len(self.probabilities):
            raise ValueError(
                f"{len(self.labels)} labels with {len(self.probabilities)} probabilities; give one for each"
            )
        if not all(0.0 <= p <= 1.0 for p in self.probabilities) or abs(sum(self.probabilities) - 1.0) > 1e-4:
            raise ValueError(f"probabilities {self.probabilities} are not a distribution: each in [0, 1], sum 1")
        if not all(0.0 <= quality <= 1.0 for quality in self.qualities.values()):
            raise ValueError(f"qualities {dict(self.qualities)} are not probabilities: each in [0, 1]")

    @property
    def domain(self) -> str:
        """The most probable domain; of equals the first in `labels`."""
        return self.labels[self.probabilities.index(self.confidence)]

    @property
    def confidence(self) -> float:
        return max(self.probabilities)

    @property
    def abstained(self) -> bool:
        return self.confidence < self.threshold or self.novel

    @property
    def novel(self) -> bool:
        return self.novelty > self.novelty_limit

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.labels, self.probabilities, strict=True))
