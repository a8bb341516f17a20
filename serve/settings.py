"""Settings of one edge process: limits and times. Values are checked at construction."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..router.decision import Policy

REFRESH = 0.25  # seconds between two looks at the registry's version


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Times are in seconds, sizes in bytes.

    `first_byte` limits the wait for a stream's first event, `between_events` the wait for each later one, `total` a
    whole answer. `classifier_budget` is how long a request waits for its posterior; after that the generalist answers.
    """

    policy: Policy = field(default_factory=Policy)
    max_body: int = 4 * 1024 * 1024
    max_answer: int = 64 * 1024 * 1024
    max_event: int = 1024 * 1024
    header_time: float = 10.0
    body_time: float = 30.0
    connect: float = 2.0
    first_byte: float = 120.0
    between_events: float = 60.0
    total: float = 900.0
    drain: float = 30.0
    classifier_budget: float = 0.25
    classifier_threads: int = 2
    classifier_queue: int = 64
    connections_per_expert: int = 0
    metrics_folder: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and value <= 0 and each.name != "connections_per_expert":
                raise ValueError(f"{each.name} is {value}; it must be more than 0")
