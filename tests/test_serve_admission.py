"""Admission: bounded, fair between keys, aware of deadlines; places never leak and never exceed the capacity."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine

import looptime
import pytest
from collegium.serve.admission import QUANTUM, Admission, Bounds
from collegium.serve.errors import ApiError


async def _held(admission: Admission, key: str, done: list[str], cost: int = 1, seconds: float = 0.0) -> None:
    async with admission.place("engine", 1, key, cost):
        await asyncio.sleep(seconds)
        done.append(key)


def _in_its_own_time(main: Callable[[Admission], Coroutine[None, None, None]], bounds: Bounds) -> None:
    """Run it with an event loop whose seconds pass only when nothing is left to do: exact on any machine."""
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(main(Admission(bounds, runner.get_loop().time)))


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _run(admission: Admission, asked: list[tuple[str, int]]) -> list[str]:
    """The order in which requests that wait for one busy place are served."""

    async def main() -> list[str]:
        done: list[str] = []
        async with admission.place("engine", 1, "first", 1):
            tasks = [asyncio.create_task(_held(admission, key, done, cost)) for key, cost in asked]
            await _settle()
            assert admission.waiting == len(asked)
        await asyncio.gather(*tasks)
        assert (admission.waiting, admission.running) == (0, 0)
        return done

    return asyncio.run(main())


def test_keys_take_turns_however_many_requests_one_of_them_has() -> None:
    order = _run(Admission(Bounds()), [("flood", QUANTUM)] * 20 + [("calm", QUANTUM)] * 3)
    assert [place for place, key in enumerate(order) if key == "calm"] == [1, 3, 5]


def test_a_key_with_long_requests_gets_the_same_tokens_not_the_same_requests() -> None:
    order = _run(Admission(Bounds()), [("long", 4 * QUANTUM)] * 10 + [("short", QUANTUM)] * 40)
    assert Counter(order[:25])["long"] == 5


def test_a_full_queue_refuses_whoever_holds_most_of_it() -> None:
    async def main() -> None:
        admission = Admission(Bounds(queue=4, queues=100))
        done: list[str] = []
        async with admission.place("engine", 1, "x", 1):
            flood = [asyncio.create_task(_held(admission, "flood", done)) for _ in range(4)]
            await _settle()
            with pytest.raises(ApiError) as refused:
                await _held(admission, "flood", done)
            assert refused.value.code == "server_is_overloaded"
            calm = asyncio.create_task(_held(admission, "calm", done))
            await _settle()
            assert admission.waiting == 4
        results = await asyncio.gather(*flood, calm, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 3 + [ApiError, type(None)]
        assert Counter(done) == {"flood": 3, "calm": 1}

    asyncio.run(main())


def test_the_bound_over_all_engines() -> None:
    async def main() -> None:
        admission = Admission(Bounds(queue=100, queues=2))
        async with admission.place("a", 1, "x", 1), admission.place("b", 1, "x", 1):
            waiting = [asyncio.create_task(admission.place(engine, 1, "x", 1).__aenter__()) for engine in "ab"]
            await _settle()
            with pytest.raises(ApiError):
                await admission.place("a", 1, "x", 1).__aenter__()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert (admission.waiting, admission.running) == (0, 0)

    asyncio.run(main())


def test_a_request_that_would_wait_too_long_is_refused_at_once_with_advice() -> None:
    async def main(admission: Admission) -> None:
        done: list[str] = []
        first = asyncio.create_task(_held(admission, "x", done, seconds=0.6))
        await _settle()
        second = asyncio.create_task(_held(admission, "x", done, seconds=0.6))
        await first
        third = asyncio.create_task(_held(admission, "x", done))
        await _settle()
        with pytest.raises(ApiError) as refused:
            await _held(admission, "x", done)
        assert dict(refused.value.headers())[b"retry-after"] in (b"2", b"3")
        await asyncio.gather(second, third)

    _in_its_own_time(main, Bounds(patience=1.0))


def test_before_any_place_came_back_the_wait_is_judged_by_how_long_they_are_held() -> None:
    async def main(admission: Admission) -> None:
        done: list[str] = []
        first = asyncio.create_task(_held(admission, "x", done, seconds=0.9))
        await _settle()
        second = asyncio.create_task(_held(admission, "x", done))
        await asyncio.sleep(0.41)
        assert admission.waiting == 1  # joined when nothing was known
        with pytest.raises(ApiError):
            await _held(admission, "x", done)  # two before it, each held for 0.41 s at least: 0.82 of its second
        await asyncio.gather(first, second)
        assert len(done) == 2

    _in_its_own_time(main, Bounds(patience=1.0))


def test_a_request_that_waited_too_long_leaves_the_queue() -> None:
    async def main(admission: Admission) -> None:
        loop = asyncio.get_running_loop()
        async with admission.place("engine", 1, "x", 1):
            began = loop.time()
            with pytest.raises(ApiError) as refused:
                await _held(admission, "x", [])
            assert (refused.value.status, admission.waiting) == (503, 0)
            assert loop.time() - began == pytest.approx(10.0)

    _in_its_own_time(main, Bounds(patience=10.0))


def test_places_are_never_lost_nor_doubled_when_requests_leave_at_any_moment() -> None:
    async def main(admission: Admission) -> None:
        rng = random.Random(1)
        running: Counter[str] = Counter()
        capacity = {"a": 3, "b": 1}

        async def one(engine: str) -> None:
            async with admission.place(engine, capacity[engine], rng.choice("xyz"), rng.randrange(1, 5000)):
                running[engine] += 1
                assert running[engine] <= capacity[engine]
                try:
                    await asyncio.sleep(rng.choice((0, 0.001, 0.003)))
                finally:
                    running[engine] -= 1

        tasks: list[asyncio.Task[None]] = []
        for _ in range(2000):
            tasks.append(asyncio.create_task(one(rng.choice("ab"))))
            if rng.random() < 0.4:
                rng.choice(tasks[-20:]).cancel()
            if rng.random() < 0.2:
                await asyncio.sleep(0.001)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = Counter(type(result) for result in results)
        assert set(kinds) == {type(None), ApiError, asyncio.CancelledError}
        assert (admission.waiting, admission.running) == (0, 0)
        done: list[str] = []
        await _held(admission, "x", done)
        assert done == ["x"]

    _in_its_own_time(main, Bounds(queue=10, queues=15, patience=0.02))
