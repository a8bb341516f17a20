"""The sixteen faults of the public Failover Bench catalogue (C01-C16 of it), each at the edge, each with the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from collegium.serve.breaker import Breaker
from collegium.serve.settings import EdgeSettings
from faults import behaviours as do
from faults.expert import Behaviour, answer
from faults.kit import QUICK, Lab, laboratory

LONG = "60 tokens"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # Hardly anything here succeeds at once: of many repeats, the usual budget would refuse most second sendings.
    with laboratory(Path(tmp_path_factory.mktemp("lab")), replace(QUICK, retry_reserve=1e6)) as started:
        yield started


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A first word that no other test's prompt has."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))


def test_c01_rate_limited_once(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.status(429, retry_after="1"))
    reply = lab.ask(f"{tag} {LONG}", "math")
    assert (reply.status, reply.text) == (200, lab.right(f"{tag} {LONG}"))
    first, second = lab.main.of(tag)
    assert second.began - first.began >= 1
    assert reply.headers["x-collegium-attempts"] == "2"
    assert lab.attempts(reply) == [("math", "busy"), ("math", "ok")]


def test_c02_rate_limited_for_ever(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, *[do.status(429)] * 9)
    reply = lab.ask(f"{tag} x", "math")
    assert (reply.status, reply.code) == (429, "rate_limit_exceeded")
    assert reply.headers["x-should-retry"] == "true" and reply.headers["retry-after"]
    assert len(lab.main.of(tag)) == 3
    moved = lab.ask(f"{tag} sum", stream=True)
    assert (moved.status, moved.model, moved.done) == (200, "general", True)
    assert moved.headers["x-collegium-expert"] == "general"
    assert moved.headers["x-collegium-reason"].startswith("rate_limit_exceeded: math")
    assert len(lab.attempts(moved)) == 3


def test_c03_server_error_once(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.status(500), answer, do.status(500), do.status(500))
    safe = lab.ask(f"{tag} {LONG}", "safe")
    assert (safe.text, len(lab.main.of(tag))) == (lab.right(f"{tag} {LONG}"), 2)
    paid = lab.ask(f"{tag} {LONG}", "math")
    assert (paid.status, paid.code, len(lab.main.of(tag))) == (502, "upstream_invalid_response", 3)
    assert paid.headers["x-should-retry"] == "false"
    assert lab.ask(f"{tag} sum {LONG}").model == "general"


def test_c04_unavailable_for_ever(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, *[do.status(503)] * 9)
    reply = lab.ask(f"{tag} sum")
    assert (reply.status, reply.model) == (200, "general")
    named = lab.ask(f"{tag} sum", "math")
    assert (named.status, named.code) == (503, "server_is_overloaded")
    assert named.headers["retry-after"] and named.headers["x-should-retry"] == "true"


@pytest.mark.parametrize("fault", [do.reset, do.close])
@pytest.mark.parametrize("stream", [True, False])
def test_c05_connection_ends_before_the_headers(lab: Lab, tag: str, seed: int, fault: Behaviour, stream: bool) -> None:
    lab.main.plan(tag, fault, answer, fault)
    safe = lab.ask(f"{tag} {LONG}", "safe", stream=stream)
    assert (safe.text, safe.done) == (lab.right(f"{tag} {LONG}"), True)
    assert lab.attempts(safe) == [("safe", "reset"), ("safe", "ok")]
    assert lab.ask(f"{tag} sum", stream=stream).model == "general"


def test_c06_accepted_and_never_answered(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.hang, do.hang)
    moved = lab.ask(f"{tag} sum", stream=True)
    assert (moved.model, moved.done, len(lab.main.of(tag))) == ("general", True, 1)
    named = lab.ask(f"{tag} sum", "safe", stream=True)
    assert (named.status, named.code) == (504, "ttft_timeout")
    assert named.headers["x-should-retry"] == "false"
    assert len(lab.main.of(tag)) == 2
    lab.await_left(*lab.main.of(tag))


def test_c07_late_first_token(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.late(1.0), do.late(30))
    reply = lab.ask(f"{tag} {LONG}", "math", stream=True)
    assert (reply.text, reply.done) == (lab.right(f"{tag} {LONG}"), True)
    assert lab.ask(f"{tag} sum {LONG}", stream=True).model == "general"


CUTS = ("reset", "fin", "end", "error", "done")


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("usage", [True, False])
def test_c08_cut_and_continued_exactly(lab: Lab, tag: str, seed: int, how: str, usage: bool) -> None:
    lab.main.plan(tag, do.broken(20 + seed % 30, how))
    more = {"stream_options": {"include_usage": True}} if usage else {"max_tokens": 55}
    reply = lab.ask(f"{tag} {LONG}", "coding", stream=True, **more)
    whole = lab.ask(f"{tag} {LONG}", "coding", **more)
    assert (reply.text, reply.done, reply.error) == (whole.text, True, {})
    assert reply.usage == (whole.usage if usage else None)
    assert [attempt.path for attempt in lab.main.of(tag)[:2]] == ["/v1/chat/completions", "/v1/completions"]
    assert lab.attempts(reply)[1] == ("coding", "ok")


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize(("model", "temperature"), [("coding", 1), ("math", 0)])
def test_c08_cut_and_told(lab: Lab, tag: str, seed: int, how: str, model: str, temperature: int) -> None:
    lab.main.plan(tag, do.broken(20 + seed % 30, how))
    reply = lab.ask(f"{tag} {LONG}", model, stream=True, temperature=temperature)
    assert (reply.status, reply.done, len(lab.main.of(tag))) == (200, False, 1)
    assert reply.error["type"] == "upstream_error" and reply.text


def test_c09_stalled(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.broken(30, "stall"), answer, do.broken(30, "stall"))
    reply = lab.ask(f"{tag} {LONG}", "coding", stream=True)
    assert (reply.text, reply.done) == (lab.right(f"{tag} {LONG}"), True)
    told = lab.ask(f"{tag} {LONG}", "math", stream=True)
    assert (told.done, told.code) == (False, "total_timeout")
    lab.await_left(lab.main.of(tag)[0], lab.main.of(tag)[2])


def test_c10_malformed_events(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.malformed(10), do.malformed(10, 4))
    reply = lab.ask(f"{tag} {LONG}", "math", stream=True)
    assert (reply.text, reply.done) == (lab.right(f"{tag} {LONG}"), True)
    assert lab.logged(reply)["malformed"] == 1
    told = lab.ask(f"{tag} {LONG}", "math", stream=True)
    assert (told.done, told.code) == (False, "upstream_invalid_response")


@pytest.mark.parametrize("how", ["end", "reset", "stall"])
def test_c11_no_end_mark(lab: Lab, tag: str, seed: int, how: str) -> None:
    lab.main.plan(tag, do.unmarked(how))
    reply = lab.ask(f"{tag} {LONG}", "math", stream=True)
    assert (reply.text, reply.done, reply.error) == (lab.right(f"{tag} {LONG}"), True, {})
    assert len(lab.attempts(reply)) == 1


def test_c12_context_length_exceeded(lab: Lab, tag: str, seed: int) -> None:
    refusal = do.refusal(400, "maximum context length is 16 tokens", "context_length_exceeded")
    lab.main.plan(tag, refusal, refusal)
    named = lab.ask(f"{tag} sum", "safe")
    assert (named.status, named.code, len(lab.main.of(tag))) == (400, "context_length_exceeded", 1)
    # No card of this pool says how large its window is, so nobody is known to have a larger one.
    assert (lab.ask(f"{tag} sum").status, len(lab.spare.of(tag))) == (400, 0)


def test_c13_content_policy(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.refusal(400, "no", "content_policy_violation"))
    reply = lab.ask(f"{tag} sum")
    assert (reply.status, reply.code) == (400, "content_policy_violation")
    assert (len(lab.main.of(tag)), len(lab.spare.of(tag))) == (1, 0)


def test_c14_cut_and_the_continuation_is_refused(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.broken(20), do.refusal(400, "prefill is not supported"))
    reply = lab.ask(f"{tag} {LONG}", "coding", stream=True)
    assert (reply.status, reply.done, reply.code) == (200, False, "upstream_stream_truncated")
    assert "prefill" not in reply.raw
    lab.main.plan(f"{tag}-wait", do.broken(1), do.refusal(400, "prefill is not supported"))
    whole = lab.ask(f"{tag}-wait sum {LONG}", stream=True)
    assert (whole.status, whole.model, whole.done) == (200, "general", True)


def test_c15_down_for_a_minute() -> None:
    """By the clock; test_recovery.py does it at the edge, in seconds."""
    now = 0.0
    breaker = Breaker(3, EdgeSettings().breaker_pause, lambda: now)
    asked = []
    while now < 120:
        permit = breaker.admit()
        if permit is not None:
            asked.append(now)
            permit.failed() if now < 60 else permit.succeeded()
            assert breaker.admit() is None or now >= 60 or len(asked) < 3
        now += 0.01
    assert sum(moment < 60 for moment in asked) <= 3 + 10
    assert next(moment for moment in asked if moment >= 60) < 66.1


def test_c16_the_answer_names_who_gave_it(lab: Lab, tag: str, seed: int) -> None:
    lab.main.plan(tag, do.status(500))
    reply = lab.ask(f"{tag} sum {LONG}")
    assert reply.model == reply.headers["x-collegium-expert"] == "general"
    assert reply.headers["x-collegium-reason"].startswith(
        "upstream_invalid_response: math failed (status 500); general"
    )
    assert reply.usage and reply.usage["completion_tokens"] >= 60
    assert lab.attempts(reply) == [("math", "error"), ("general", "ok")]


def test_c16_only_the_answer_that_the_client_has_is_counted(lab: Lab, tag: str, seed: int) -> None:
    usage = '{"prompt_tokens":9999,"completion_tokens":1}'
    begun = f'{{"choices":[{{"index":0,"delta":{{"role":"assistant"}}}}],"usage":{usage}}}'
    lab.main.plan(tag, do.events(begun, '{"error": {"message": "no"}}'), do.broken(30))
    for model, kinds in (("auto", ["request", "request"]), ("coding", ["request", "continuation"])):
        reply = lab.ask(f"{tag} sum {LONG}", model, stream=True, stream_options={"include_usage": True})
        line = lab.logged(reply)
        assert [attempt["kind"] for attempt in line["attempts"]] == kinds  # type: ignore[attr-defined]
        assert reply.usage
        told = (reply.usage["prompt_tokens"], reply.usage["completion_tokens"])
        assert (line["prompt_tokens"], line["completion_tokens"]) == told
