"""The soak's books: the edge's counts and lines, what the experts saw and what clients got must all be the same."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import httpx2
from faults.expert import Expert
from faults.traffic import Clients
from faults.watch import Follower
from prometheus_client.parser import text_string_to_metric_families

_PATIENCE = 120.0
_OPEN = {"healthz", "readyz", "metrics"}  # routes that write no line, as clients of this test do not use them
_FAILED = {"refused", "failed_before_first_byte"}


@dataclass
class Books:
    """`ended` is how many requests ended how, by the log."""

    clients: Clients
    experts: Sequence[Expert]
    logs: Sequence[Follower]
    ended: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    _lines: dict[str, dict[str, object]] = field(default_factory=dict)
    _answered: Counter[str] = field(default_factory=Counter)
    _unanswered: int = 0

    def read(self) -> None:
        """Take in what was logged; often, as a log is cut when it is large."""
        for log in self.logs:
            for line in log.more():
                assert line["level"] in ("info", "warning"), line
                if "request" in line:
                    assert line["request"] not in self._lines, "one line a request"
                    self._lines[str(line["request"])] = line

    async def close(self, http: httpx2.AsyncClient) -> None:
        """Wait until nothing is in flight; then each request since the last time must have ended once, and only so."""
        by_count = await self._counted(http)
        seen = await self._seen()
        self.read()
        told, self.clients.told = self.clients.told, {}
        self._answered.update(told.values())
        for request, line in self._lines.items():
            end = str(line["end"])
            self.ended[end] += 1
            expected = told.pop(request, None)
            self._unanswered += expected is None
            assert end == expected if expected in ("completed", "failed_mid_stream") else end != "completed", line
            assert expected != "error" or end in _FAILED, line
            _check_attempts(line, seen.pop(request, 0))
        self._lines.clear()
        self._check_totals(by_count, len(told))
        assert len(seen) <= len(told), f"experts saw requests that the log does not have: {list(seen)[:3]}"

    def _check_totals(self, by_count: Counter[str], missing: int) -> None:
        clients, answered = self.clients, self._answered
        assert by_count.total() == clients.sent == answered.total() + clients.left, (by_count, clients.sent)
        for end in ("completed", "failed_mid_stream"):
            assert by_count[end] == answered[end], (end, by_count, answered)
        # A line may be lost in the moment in which a log is cut, a count may not.
        self.lost += missing
        lost = by_count - self.ended
        assert not self.ended - by_count and lost.total() == self.lost + clients.left - self._unanswered
        assert not lost or any(log.cuts for log in self.logs), lost

    async def _counted(self, http: httpx2.AsyncClient) -> Counter[str]:
        """How many requests ended how, by the metrics of all workers together."""
        until = time.monotonic() + _PATIENCE
        while True:
            accepted, ended = _totals((await http.get(f"http://127.0.0.1:{self.clients.port}/metrics")).text)
            if accepted == ended.total() + 1:  # the one that asks
                return Counter(
                    {end: sum(ended[key] for key in ended if key[1] == end and key[0] not in _OPEN) for _, end in ended}
                )
            assert time.monotonic() < until, f"{accepted - ended.total()} requests do not end"
            await asyncio.sleep(0.5)

    async def _seen(self) -> Counter[str]:
        """How often experts were asked, by request."""
        until = time.monotonic() + _PATIENCE
        while any(attempt.ended is attempt.left is None for expert in self.experts for attempt in expert.attempts):
            assert time.monotonic() < until, "the edge does not leave an expert"
            await asyncio.sleep(0.1)
        return Counter(attempt.id for expert in self.experts for attempt in expert.forget())


def _check_attempts(line: dict[str, object], seen: int) -> None:
    """Ended by its client, or by its client's time, before its first byte went out, an attempt is not seen."""
    results = Counter(str(attempt["result"]) for attempt in cast("list[dict[str, object]]", line["attempts"]))
    most = results.total() - results["connect"]
    assert "" not in results and most - results["cancelled"] - results["late"] <= seen <= most, (line, seen)


def _totals(text: str) -> tuple[int, Counter[tuple[str, str]]]:
    """Requests that came in, and those that ended by route and end."""
    accepted, ended = 0, Counter[tuple[str, str]]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "collegium_requests_accepted_total":
                accepted += int(sample.value)
            elif sample.name == "collegium_requests_total":
                ended[sample.labels["route"], sample.labels["end"]] += int(sample.value)
    return accepted, ended
