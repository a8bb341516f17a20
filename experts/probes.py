"""Probes of remote URLs: asked now and then in threads of their own, so that a slow one is in nobody's way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from .backends import Address, RemoteBackend
from .card import CardError
from .networks import Networks
from .preflight import PROBE_TIMEOUT, probe_remote
from .reconcile import Probe
from .records import ExpertRecord

PERIOD = 15.0  # seconds between probes of a URL that answers
LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class _Target:
    due: float = 0.0
    failures: int = 0
    running: Future[Probe] | None = None


class Probes:
    """Keeps the last answer of each URL of the remote cards: a card that changes otherwise keeps what is known."""

    def __init__(
        self, period: float = PERIOD, timeout: float = PROBE_TIMEOUT, networks: Networks | None = None
    ) -> None:
        self._period, self._timeout, self._networks = period, timeout, networks
        self._targets: dict[Address, _Target] = {}
        self._results: dict[Address, Probe] = {}
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="probe")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def update(self, records: Sequence[ExpertRecord]) -> Mapping[Address, Probe]:
        """Start what is due, collect what is done; returns at once."""
        addresses = {
            address
            for record in records
            if isinstance(record.card.backend, RemoteBackend) and not record.removed
            for address in record.card.backend.addresses
        }
        self._targets = {address: self._targets.get(address) or _Target() for address in addresses}
        self._results = {address: result for address, result in self._results.items() if address in addresses}
        for address, target in self._targets.items():
            self._advance(address, target, time.monotonic())
        return self._results

    def _advance(self, address: Address, target: _Target, now: float) -> None:
        if target.running is not None and target.running.done():
            self._take(address, target, target.running.result(), now)
            target.running = None
        if target.running is None and now >= target.due:
            target.running = self._pool.submit(_ask, address, self._timeout, self._networks)

    def _take(self, address: Address, target: _Target, probe: Probe, now: float) -> None:
        """A URL that was fine is only given up on its second failure: one lost packet evicts nobody."""
        target.failures = 0 if probe.ok else target.failures + 1
        before = self._results.get(address)
        if probe.ok or target.failures > 1 or before is None or not before.ok:
            self._results[address] = probe
        target.due = now + (self._period if probe.ok else min(2.0 ** (target.failures - 1), LONGEST_PAUSE))


def _ask(address: Address, timeout: float, networks: Networks | None) -> Probe:
    try:
        probe_remote(address, timeout, networks)
    except CardError as error:
        return Probe(False, str(error))
    return Probe(True)
