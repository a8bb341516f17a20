"""Limits of keys: buckets that refill, are corrected and shared between processes; running requests; the headers."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import httpx2
import pytest
from collegium.experts.registry import KeyRecord, KeyScope
from collegium.serve.counters import Counters
from collegium.serve.errors import ApiError
from collegium.serve.limits import KeyLimits, duration
from collegium.serve.usage import Usage
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_kit import Running, running


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(**limits: int) -> KeyRecord:
    return KeyRecord("team", "digest", KeyScope(**limits))  # type: ignore[arg-type]


def test_requests_a_minute() -> None:
    clock = Clock()
    limits = KeyLimits(Counters(clock=clock))
    team = key(requests_per_minute=2)
    limits.enter(team).leave()
    assert dict(limits.enter(team).headers()) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"1m0s",
    }
    with pytest.raises(ApiError) as refused:
        limits.enter(team)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    told = dict(refused.value.headers())
    assert (told[b"x-should-retry"], told[b"retry-after"]) == (b"true", b"30")
    assert told[b"x-ratelimit-remaining-requests"] == b"0"
    clock.now += 30
    limits.enter(team)
    with pytest.raises(ApiError):
        limits.enter(team)
    limits.enter(KeyRecord("other", "digest", KeyScope(requests_per_minute=2)))


def test_tokens_are_reserved_and_then_settled() -> None:
    clock = Clock()
    limits = KeyLimits(Counters(clock=clock))
    team = key(tokens_per_minute=600)
    first = limits.enter(team)
    first.spend(500, 400)
    with pytest.raises(ApiError):
        limits.enter(team).spend(200)
    first.settle(Usage(90, 10, 1), worked=True)
    second = limits.enter(team)
    second.spend(200)
    second.settle(Usage(800, None, 100), worked=True)  # more than was left: a debt, which refills first
    assert dict(second.headers())[b"x-ratelimit-remaining-tokens"] == b"0"
    with pytest.raises(ApiError) as refused:
        limits.enter(team).spend(1)
    assert dict(refused.value.headers())[b"retry-after"] == b"41"
    clock.now += 41
    limits.enter(team).spend(1)


def test_what_is_not_known_counts_as_reserved_if_an_expert_worked_for_it() -> None:
    limits = KeyLimits(Counters(clock=Clock()))
    team = key(tokens_per_minute=1000)
    for worked, left in ((False, b"1000"), (True, b"900")):
        allowance = limits.enter(team)
        allowance.spend(100, 60)
        allowance.settle(Usage(), worked)
        assert dict(allowance.headers())[b"x-ratelimit-remaining-tokens"] == left
    refused = limits.enter(team)
    refused.spend(100, 60)
    refused.settle(Usage(prompt=50, pieces=1), worked=False)  # an answer that failed before it began
    assert dict(refused.headers())[b"x-ratelimit-remaining-tokens"] == b"900"
    cut = limits.enter(team)
    cut.spend(100, 60)
    cut.settle(Usage(pieces=20), worked=True)  # an answer that broke off: its pieces and the estimated prompt
    assert dict(cut.headers())[b"x-ratelimit-remaining-tokens"] == b"820"


def test_an_absurd_count_locks_a_key_out_for_no_more_than_a_minute() -> None:
    clock = Clock()
    limits = KeyLimits(Counters(clock=clock))
    team = key(tokens_per_minute=600)
    allowance = limits.enter(team)
    allowance.spend(10)
    allowance.settle(Usage(2**31 - 1, 2**31 - 1, 1), worked=True)
    clock.now += 59
    with pytest.raises(ApiError):
        limits.enter(team).spend(1)
    clock.now += 2
    limits.enter(team).spend(1)


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        ([{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}], (3, 2)),
        ([{"type": "response.completed", "response": {"usage": {"input_tokens": 4, "output_tokens": 5}}}], (4, 5)),
        (
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 6, "output_tokens": 1}}},
                {"type": "message_delta", "usage": {"output_tokens": 7}},
            ],
            (6, 7),
        ),
        ([{"usage": {"prompt_tokens": -3, "completion_tokens": True}}], (None, None)),
        ([{"usage": [1]}, {"usage": None}, {}], (None, None)),
    ],
)
def test_usage_of_each_api(events: list[dict[str, object]], counts: tuple[int | None, int | None]) -> None:
    usage = Usage()
    for event in events:
        usage.see(event)
    assert (usage.prompt, usage.completion, usage.pieces) == (*counts, len(events))


def test_a_request_larger_than_the_limit_is_not_to_be_retried() -> None:
    with pytest.raises(ApiError) as refused:
        KeyLimits(Counters()).enter(key(tokens_per_minute=10)).spend(11)
    assert refused.value.code == "insufficient_quota"
    assert dict(refused.value.headers()) == {b"x-should-retry": b"false"}


def test_requests_at_a_time() -> None:
    limits = KeyLimits(Counters())
    team = key(concurrent=2, requests_per_minute=3)
    held = [limits.enter(team), limits.enter(team)]
    with pytest.raises(ApiError) as refused:
        limits.enter(team)
    assert refused.value.code == "tenant_concurrency_exceeded"
    held.pop().leave()
    held.append(limits.enter(team))
    for allowance in held * 2:  # leaving twice counts once
        allowance.leave()
    with pytest.raises(ApiError, match="3 requests a minute"):
        limits.enter(team)
    assert Counters().running("team") == 0


def test_without_a_key_or_a_limit_nothing_is_counted() -> None:
    limits = KeyLimits(Counters())
    for record in (None, key()):
        allowance = limits.enter(record)
        allowance.spend(10**9)
        allowance.settle(Usage(), worked=False)
        assert allowance.headers() == []


def _begin(file: Path, worker: int, begun: Barrier) -> None:
    counters = Counters(file, worker)
    assert counters.begin("team", 100)
    assert counters.take("team", 0, 40, 100).wait == 0
    begun.wait(60)
    time.sleep(600)


@contextmanager
def _workers(file: Path) -> Iterator[list[SpawnProcess]]:
    """Workers 1 and 2, each with one running request."""
    context = multiprocessing.get_context("spawn")
    begun = context.Barrier(3)
    workers = [context.Process(target=_begin, args=(file, worker, begun)) for worker in (1, 2)]
    for worker in workers:
        worker.start()
    begun.wait(60)
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.join(60)


def test_processes_share_what_is_used_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "limits"
    counters = Counters(file, 0, Clock())
    assert file.stat().st_mode & 0o777 == 0o600
    with _workers(file) as workers:
        assert counters.running("team") == 2 and not counters.begin("team", 2)
        assert Counters(file, 0).take("team", 0, 40, 100).wait > 0
        workers[0].kill()  # nobody waits for it yet: it is a zombie for a while
        while not counters.begin("team", 2):
            time.sleep(0.01)
        assert counters.running("team") == 2 and not counters.begin("team", 2)
        counters.end("team")
        assert counters.running("team") == 1


def test_a_successor_clears_its_predecessors_column(tmp_path: Path) -> None:
    file = tmp_path / "limits"
    with _workers(file):
        pass
    successor = Counters(file, 1)
    assert successor.running("team") == 0
    assert successor.begin("team", 1) and Counters(file, 3).running("team") == 1
    with pytest.raises(ValueError, match="worker is 64"):
        Counters(file, 64)


def test_a_clock_that_went_back_as_after_a_reboot_does_not_lock_a_key_out(tmp_path: Path) -> None:
    clock = Clock()
    counters = Counters(tmp_path / "limits", clock=clock)
    assert counters.take("team", 0, 10, 10).wait == 0
    clock.now = 5.0
    assert counters.take("team", 0, 10, 10).wait == 0


def test_more_keys_than_slots_still_have_a_place() -> None:
    counters = Counters()
    assert all(counters.take(f"key-{number}", 0, 1, 10**6).wait == 0 for number in range(5000))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "correct", "wait"]), st.floats(0, 500)), max_size=40))
def test_never_more_than_the_limit_is_taken_and_what_refills_can_be_taken(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    counters = Counters(clock=clock)
    granted = 0.0
    for step, amount in steps:
        if step == "wait":
            clock.now += amount / 100
        elif step == "correct":
            counters.correct("team", 1, amount, 300)
        elif (reading := counters.take("team", 1, amount, 300)).wait == 0:
            granted += amount
            assert 0 <= reading.remaining <= 300
        elif amount <= 300:
            clock.now += reading.wait + 0.001
            assert counters.take("team", 1, amount, 300).wait == 0
            granted += amount
    assert granted <= 300 + (clock.now - 1000) * 5 + 1


def test_durations_as_openai_writes_them() -> None:
    assert [duration(seconds) for seconds in (0, 0.0171, 1.5, 59.99, 360, 61.2)] == [
        "0ms", "18ms", "1.5s", "60s", "6m0s", "1m2s",
    ]  # fmt: skip


HELLO = {"model": "general", "messages": [{"role": "user", "content": "hello"}]}


def closed(edge: Running, *records: tuple[str, KeyScope]) -> None:
    """Add keys and wait until the edge asks for one."""
    for name, scope in records:
        edge.pool.registry.add_key(name, f"sk-{name}", scope)
    while edge.get("/v1/models", headers={"authorization": "Bearer sk-nobody"}).status_code != 401:
        time.sleep(0.02)


def ask(edge: Running, key: str, **more: object) -> httpx2.Response:
    return edge.post("/v1/chat/completions", json={**HELLO, **more}, headers={"authorization": f"Bearer sk-{key}"})


def test_the_edge_counts_requests_and_tokens_of_each_key(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        closed(edge, ("few", KeyScope(requests_per_minute=2, tokens_per_minute=1000)), ("other", KeyScope()))
        told = ask(edge, "few", max_tokens=100)
        assert told.status_code == 200
        assert told.headers["x-ratelimit-limit-requests"] == "2"
        assert told.headers["x-ratelimit-remaining-requests"] == "1"
        assert 899 - 1 <= int(told.headers["x-ratelimit-remaining-tokens"]) <= 900
        over = ask(edge, "few", max_tokens=10_000)
        assert (over.status_code, over.json()["error"]["code"]) == (429, "insufficient_quota")
        assert over.headers["x-should-retry"] == "false"
        refused = ask(edge, "few")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] in ("0", "1")
        assert ask(edge, "other").status_code == 200
        assert edge.get("/v1/models", headers={"authorization": "Bearer sk-few"}).status_code == 200


def test_tokens_are_settled_by_what_the_expert_counted(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        closed(edge, ("team", KeyScope(tokens_per_minute=6000)))

        def left() -> int:
            asked = ask(edge, "team", max_tokens=1)
            return int(asked.headers["x-ratelimit-remaining-tokens"])

        ask(edge, "team", max_tokens=5000)  # 5 tokens, by the expert's usage
        assert left() > 5900
        ask(edge, "team", max_tokens=5000, stream=True)  # without usage: an event a token
        assert left() > 5800
        ask(edge, "team", max_tokens=5000, messages=[{"role": "user", "content": "!status 400"}])
        assert left() > 5800


def test_requests_at_a_time_at_the_edge(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        closed(edge, ("one", KeyScope(concurrent=1)))
        client = edge.client("sk-one")
        with client.chat.completions.create(
            model="general", messages=[{"role": "user", "content": "!stall 12345"}], stream=True
        ) as stream:
            next(iter(stream))
            refused = ask(edge, "one")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tenant_concurrency_exceeded")
        while ask(edge, "one").status_code != 200:
            time.sleep(0.02)
