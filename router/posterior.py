"""The posterior: calibrated p(domain | prompt), and whether it is sure enough to act on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Posterior:
    """Probabilities of the domains, in the order of `labels`, summing to 1.

    `threshold` is the confidence under which the router abstains and leaves the prompt to the generalist.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.labels or len(self.labels) != len(self.probabilities):
            raise ValueError(
                f"{len(self.labels)} labels with {len(self.probabilities)} probabilities; give one for each"
            )
        if not all(0.0 <= p <= 1.0 for p in self.probabilities) or abs(sum(self.probabilities) - 1.0) > 1e-4:
            raise ValueError(f"probabilities {self.probabilities} are not a distribution: each in [0, 1], sum 1")

    @property
    def domain(self) -> str:
        """The most probable domain; of equals the first in `labels`."""
        return self.labels[self.probabilities.index(self.confidence)]

    @property
    def confidence(self) -> float:
        return max(self.probabilities)

    @property
    def abstained(self) -> bool:
        return self.confidence < self.threshold

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.labels, self.probabilities, strict=True))
