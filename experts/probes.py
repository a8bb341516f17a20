"""Probes of remote URLs: asked now and then in threads of their own, so that a slow one is in nobody's way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from .backends import RemoteBackend
from .card import CardError
from .networks import Networks
from .preflight import PROBE_TIMEOUT, probe_remote
from .reconcile import Probe
from .records import ExpertRecord

PERIOD = 15.0  # seconds between probes of a URL that answers
LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class _Target:
    backend: RemoteBackend
    due: float = 0.0
    failures: int = 0
    running: Future[Probe] | None = None


class Probes:
    """Keeps the last answer of each remote card, by the card's fingerprint."""

    def __init__(
        self, period: float = PERIOD, timeout: float = PROBE_TIMEOUT, networks: Networks | None = None
    ) -> None:
        self._period, self._timeout, self._networks = period, timeout, networks
        self._targets: dict[str, _Target] = {}
        self._results: dict[str, Probe] = {}
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="probe")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def update(self, records: Sequence[ExpertRecord]) -> Mapping[str, Probe]:
        """Start what is due, collect what is done; returns at once."""
        backends = {
            record.card.engine_fingerprint: record.card.backend
            for record in records
            if isinstance(record.card.backend, RemoteBackend) and not record.removed
        }
        self._targets = {key: self._targets.get(key) or _Target(backend) for key, backend in backends.items()}
        self._results = {key: result for key, result in self._results.items() if key in backends}
        for key, target in self._targets.items():
            self._advance(key, target, time.monotonic())
        return self._results

    def _advance(self, key: str, target: _Target, now: float) -> None:
        if target.running is not None and target.running.done():
            self._take(key, target, target.running.result(), now)
            target.running = None
        if target.running is None and now >= target.due:
            target.running = self._pool.submit(_ask, target.backend, self._timeout, self._networks)

    def _take(self, key: str, target: _Target, probe: Probe, now: float) -> None:
        """A URL that was fine is only given up on its second failure: one lost packet evicts nobody."""
        target.failures = 0 if probe.ok else target.failures + 1
        before = self._results.get(key)
        if probe.ok or target.failures > 1 or before is None or not before.ok:
            self._results[key] = probe
        target.due = now + (self._period if probe.ok else min(2.0 ** (target.failures - 1), LONGEST_PAUSE))


def _ask(backend: RemoteBackend, timeout: float, networks: Networks | None) -> Probe:
    try:
        probe_remote(backend, timeout, networks)
    except CardError as error:
        return Probe(False, str(error))
    return Probe(True)
