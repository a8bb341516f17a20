"""Settings of one edge process: limits and times. Values are checked at construction."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from ..experts.networks import Networks
from ..router.decision import Policy

_MAY_BE_ZERO = ("vsr_headers", "connections_per_expert", "worker")
REFRESH = 0.25  # seconds between two looks at the registry's version


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Times are in seconds, sizes in bytes.

    `first_byte` limits the wait for a stream's first event, `between_events` the wait for each later one, `total` a
    whole answer with all its attempts; an expert's card may make them shorter. `client_stall` is how long a client may
    leave a portion unread. `patience` is the longest Retry-After of an expert that is waited for; `recovery` how long a
    stream that broke off looks for an engine to go on, and a request that only one of our engines may answer waits for
    it to be started again. After `breaker_failures` in a row an expert is left alone for
    `breaker_pause`, and looked at every `breaker_look`. `classifier_budget` is how long a request waits for its
    posterior; after that the generalist answers. Second sendings are at most `retry_share` of the requests, saved up to
    `retry_reserve` of them.

    `concurrency` requests run at an engine at a time, where its card does not say otherwise; `queue` more may wait for
    it, and `queue_total` for all engines, each for at most `queue_time`. `max_requests` run and wait in one process;
    when many do and its event loop is `max_lag` late, new ones are refused before they are read.
    The engine's places are shared out over the `workers` edge processes; `worker` is this one's number, and `counters`
    the file in which they count what keys use. `networks` bounds where remote experts may be; None bounds nothing.
    `vsr_headers` adds the headers by which vLLM Semantic Router's tools read a route.
    """

    policy: Policy = field(default_factory=Policy)
    max_body: int = 4 * 1024 * 1024
    max_answer: int = 64 * 1024 * 1024
    max_event: int = 1024 * 1024
    header_time: float = 10.0
    body_time: float = 30.0
    max_head: int = 32 * 1024
    max_headers: int = 100
    max_connections: int = 8192
    connect: float = 2.0
    first_byte: float = 120.0
    between_events: float = 60.0
    total: float = 900.0
    client_stall: float = 30.0
    heartbeat: float = 15.0
    patience: float = 5.0
    recovery: float = 180.0
    retry_share: float = 0.1
    retry_reserve: float = 100.0
    breaker_failures: int = 3
    breaker_pause: float = 6.0
    breaker_look: float = 1.0
    drain: float = 30.0
    classifier_budget: float = 0.25
    classifier_threads: int = 2
    classifier_queue: int = 64
    connections_per_expert: int = 0
    concurrency: int = 256
    queue: int = 512
    queue_total: int = 2048
    queue_time: float = 10.0
    max_requests: int = 4096
    max_lag: float = 1.0
    workers: int = 1
    worker: int = 0
    counters: Path | None = None
    networks: Networks | None = None
    metrics_folder: str | None = None
    vsr_headers: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and value <= 0 and each.name not in _MAY_BE_ZERO:
                raise ValueError(f"{each.name} is {value}; it must be more than 0")
