"""More than an expert or the process can take: who is refused, and that the rest is answered."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from collegium.router.posterior import Posterior
from collegium.serve.lag import Lag
from collegium.serve.settings import EdgeSettings
from serve_kit import KeywordRouter, card, running


@dataclass(frozen=True)
class Blocking(KeywordRouter):
    """Keeps the event loop busy for so long, as too many requests would."""

    inline: bool = True
    seconds: float = 1.0

    def posterior(self, text: str) -> Posterior:
        if "block" in text:
            time.sleep(self.seconds)
        return super().posterior(text)


def test_a_busy_expert_refuses_whom_it_cannot_take_and_the_rest_is_answered(tmp_path: Path) -> None:
    settings = EdgeSettings(first_byte=20, between_events=20, total=30, queue=1, queue_time=8)
    with running(tmp_path, settings) as edge, ThreadPoolExecutor(3) as threads:
        edge.pool.add(card("narrow", edge.echo.url.replace("127.0.0.1", "localhost"), limits={"concurrency": 1}))
        while edge.chat("hello", "narrow").status_code == 404:
            time.sleep(0.02)
        slow = {"model": "narrow", "stream": True, "messages": [{"role": "user", "content": "!slow 12345"}]}
        answers = list(threads.map(lambda _: edge.post("/v1/chat/completions", json=slow), range(3)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 503]
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.json()["error"]["code"] == "server_is_overloaded"
        assert int(refused.headers["retry-after"]) >= 1


def test_an_expert_is_not_blamed_for_the_lateness_of_this_process(tmp_path: Path) -> None:
    """Time enough passes for a first token while the loop is busy: the breaker would open at one failure."""
    settings = EdgeSettings(first_byte=2, max_lag=0.5, breaker_failures=1, breaker_pause=60)
    with running(tmp_path, settings, Blocking(seconds=2.5)) as edge, ThreadPoolExecutor(1) as pool:
        late = pool.submit(edge.chat, "!hang", "math", stream=True)
        while not edge.echo.received:
            time.sleep(0.005)
        edge.chat("block")
        assert late.result().json()["error"]["code"] == "ttft_timeout"
        assert edge.chat("hello", "math").status_code == 200


def test_the_lag_of_a_loop_is_known_during_and_after() -> None:
    async def main() -> None:
        lag = Lag()
        assert lag.seconds == 0
        lag.start()
        await asyncio.sleep(0.01)
        time.sleep(0.5)
        assert lag.seconds >= 0.3
        await asyncio.sleep(0)
        assert lag.seconds >= 0.3
        lag.stop()
        assert lag.seconds == 0

    asyncio.run(main())


def test_a_process_whose_loop_is_late_under_many_requests_refuses_more_before_it_reads_them(tmp_path: Path) -> None:
    settings = EdgeSettings(max_lag=0.3, between_events=60)
    stalled = {"model": "general", "stream": True, "messages": [{"role": "user", "content": "!stall"}]}
    over, busy = threading.Event(), threading.Event()
    with running(tmp_path, settings, Blocking(seconds=0.5)) as edge, ExitStack() as stack:

        def block() -> None:
            while busy.wait() and not over.is_set():
                edge.chat("block")

        pool = stack.enter_context(ThreadPoolExecutor(3))
        stack.callback(busy.set)
        stack.callback(over.set)
        busy.set()
        for _ in range(3):
            pool.submit(block)
        assert {edge.chat("hello").status_code for _ in range(3)} == {200}  # late, but there is no crowd
        busy.clear()
        for _ in range(33):
            stack.enter_context(edge.http.stream("POST", f"{edge.url}/v1/chat/completions", json=stalled))
        busy.set()
        while (refused := edge.chat("hello")).status_code == 200:
            continue
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
        over.set()
        while edge.chat("hello").status_code != 200:
            time.sleep(0.05)


def test_a_process_that_is_full_still_tells_that_it_lives(tmp_path: Path) -> None:
    settings = EdgeSettings(first_byte=20, between_events=20, total=30, max_requests=1)
    with (
        running(tmp_path, settings) as edge,
        edge.client().chat.completions.create(
            model="general", messages=[{"role": "user", "content": "!stall 12345"}], stream=True
        ) as stream,
    ):
        next(iter(stream))
        assert edge.chat("hello").json()["error"]["code"] == "server_is_overloaded"
        assert edge.get("/healthz").status_code == 200
