"""Prometheus metrics of the edge, over all its workers where they share a folder."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .answer import Exchange
from .ledger import End, Ledger

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHARE = 0.05
_CLASSIFIER = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Labels are bounded: experts and routes are known names, statuses and outcomes come from our own tables."""

    def __init__(self, folder: str | None = None) -> None:
        """`folder` is PROMETHEUS_MULTIPROC_DIR where several workers share one, else None."""
        self._folder = folder
        self._registry = CollectorRegistry()
        self._rendered = b""
        self._fresh_until = 0.0
        self.ledger = Ledger()
        self._accepted = Counter(
            "collegium_requests_accepted_total", "Requests that came in; the ended and those in flight add up to it.",
            registry=self._registry,
        )  # fmt: skip
        self._attempts = Counter(
            "collegium_attempts_total", "Sendings of a request to an expert.", ("expert", "kind", "result"),
            registry=self._registry,
        )  # fmt: skip
        self._requests = Counter(
            "collegium_requests_total", "Requests that ended, by their end.", ("route", "expert", "status", "end"),
            registry=self._registry,
        )  # fmt: skip
        self._latency = Histogram(
            "collegium_request_seconds", "Time to the whole answer.", ("route", "expert"), buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "collegium_first_byte_seconds", "Time to a stream's first event.", ("expert",), buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._classifier = Histogram(
            "collegium_classifier_seconds", "Time from asking for a posterior to having one, or to giving up.",
            buckets=_CLASSIFIER, registry=self._registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "collegium_fallbacks_total", "Requests that another than the decided expert answered.", ("why",),
            registry=self._registry,
        )  # fmt: skip
        self._refused = Counter(
            "collegium_refused_total", "Requests refused before any expert was asked.", ("code",),
            registry=self._registry,
        )  # fmt: skip
        self._tokens = Counter(
            "collegium_tokens_total", "Tokens, as experts counted them.", ("expert", "kind"), registry=self._registry,
        )  # fmt: skip
        self._running = Gauge(
            "collegium_requests_in_flight", "Requests being answered.", registry=self._registry,
            multiprocess_mode="livesum",
        )  # fmt: skip

    def begun(self, exchange: Exchange) -> None:
        self.ledger.open(exchange.id)
        self._accepted.inc()
        self._running.inc()

    def fell_back(self, why: str) -> None:
        self._fallbacks.labels(why).inc()

    def ended(self, exchange: Exchange, end: End) -> None:
        """Enter a request's end, once."""
        exchange.end = end
        self.ledger.close(exchange.id, end, len(exchange.attempts))
        self._running.dec()
        expert = exchange.expert or "none"
        self._requests.labels(exchange.route, expert, str(exchange.status), end.value).inc()
        for attempt in exchange.attempts:
            attempt.close("cancelled")
            self._attempts.labels(attempt.expert, attempt.kind, attempt.result).inc()
        if end is End.REFUSED:
            self._refused.labels(exchange.code).inc()
        for kind, count in (("prompt", exchange.used.prompt), ("completion", exchange.used.completion)):
            if count:
                self._tokens.labels(expert, kind).inc(count)
        self._latency.labels(exchange.route, expert).observe(exchange.seconds)
        if exchange.classified is not None:
            self._classifier.observe(exchange.classified)
        if exchange.streamed and exchange.first_byte is not None:
            self._first.labels(expert).observe(exchange.first_byte)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format; kept so long that a storm of scrapes takes 5 % of the process."""
        began = time.monotonic()
        if began >= self._fresh_until:
            self._rendered = self._render()
            self._fresh_until = began + (time.monotonic() - began) / _SHARE
        return self._rendered

    def _render(self) -> bytes:
        if self._folder is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
