"""A client's own deadline for its request: x-collegium-timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from collegium.serve.admission import Admission, Bounds
from collegium.serve.deadlines import asked
from collegium.serve.errors import ApiError
from faults import behaviours as do
from faults.kit import QUICK, Lab, Reply, laboratory, parsed


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    settings = replace(QUICK, first_byte=20, between_events=20, breaker_failures=1)
    with laboratory(Path(tmp_path_factory.mktemp("deadlines")), settings) as started:
        yield started


def ask(lab: Lab, timeout: str, text: str, stream: bool) -> Reply:
    body = lab.body(text, "math", stream=stream)
    with lab.http.stream(
        "POST", f"{lab.url}/v1/chat/completions", json=body, headers={"x-collegium-timeout": timeout}
    ) as response:
        lab.main.begun.add(response.headers["x-request-id"])
        response.read()
    return parsed(response)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_late_for_this_client_fails_for_it_alone(lab: Lab, stream: bool) -> None:
    lab.main.plan(f"late-{stream}", do.hang)
    reply = ask(lab, "0.3", f"late-{stream} x", stream)
    assert (reply.status, reply.code, reply.headers["x-should-retry"]) == (504, "total_timeout", "false")
    lab.await_left(*lab.main.of(f"late-{stream}"))
    # One failure would have opened this breaker.
    assert lab.ask(f"other-{stream} x", "math").status == 200


def test_a_stream_is_cut_with_an_error_when_the_time_is_over(lab: Lab) -> None:
    lab.main.plan("cut", do.broken(20, "stall"))
    reply = ask(lab, "1.5", "cut 60 tokens", True)
    assert (reply.status, reply.done, reply.code) == (200, False, "total_timeout")
    assert lab.right("cut 60 tokens").startswith(reply.text) and reply.text
    assert lab.ask("after x", "math").status == 200


def test_enough_time_changes_nothing(lab: Lab) -> None:
    assert ask(lab, "99999", "enough 9 tokens", True).text == lab.right("enough 9 tokens")


@pytest.mark.parametrize("value", ["", "0", "0.0", "-1", "1e3", "nan", "inf", "soon", "1.2345", "9" * 40, "1, 2", "٣"])
def test_values_that_are_no_time(value: str) -> None:
    with pytest.raises(ApiError) as refused:
        asked([(b"x-collegium-timeout", value.encode())])
    assert (refused.value.status, refused.value.param) == (400, "x-collegium-timeout")
    assert asked([]) is None
    with pytest.raises(ApiError):
        asked([(b"x-collegium-timeout", b"1"), (b"x-collegium-timeout", b"2")])


def test_a_place_is_waited_for_no_longer_than_the_client_waits() -> None:
    async def main() -> None:
        admission = Admission(Bounds(patience=30))
        async with admission.place("engine", 1, "x", 1):
            with pytest.raises(ApiError) as refused:
                async with admission.place("engine", 1, "x", 1, left=0.05):
                    raise AssertionError("there was no place")
        assert (refused.value.code, admission.waiting, admission.running) == ("server_is_overloaded", 0, 0)

    asyncio.run(main())
