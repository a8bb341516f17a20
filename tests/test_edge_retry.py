"""What may be sent again: the rules, the budget, the breaker."""

from __future__ import annotations

import random

import pytest
from collegium.serve.breaker import Breaker
from collegium.serve.failure import Fault, UpstreamError
from collegium.serve.retry import ENDS, Budget, blame, elsewhere, executed, may_return, pause, same_again, sibling

CODES = {
    Fault.CONNECT: "upstream_connection_failed",
    Fault.OPEN: "no_healthy_expert",
    Fault.BUSY: "server_is_overloaded",
    Fault.LATE: "ttft_timeout",
    Fault.BROKEN: "upstream_stream_truncated",
    Fault.REFUSED: "invalid_value",
}


def failure(fault: Fault, code: str | None = None, wait: int | None = None) -> UpstreamError:
    return UpstreamError(fault, code or CODES.get(fault, "upstream_invalid_response"), "it failed", wait=wait)


@pytest.mark.parametrize("fault", Fault)
def test_only_what_was_not_done_or_may_be_done_twice_is_sent_again(fault: Fault) -> None:
    always = {Fault.CONNECT, Fault.BUSY}
    safe = always | {Fault.RESET, Fault.ERROR, Fault.INVALID, Fault.BROKEN}
    assert same_again(failure(fault), False, sent=1, others=False) == (fault in always)
    assert same_again(failure(fault), True, sent=1, others=False) == (fault in safe)
    assert same_again(failure(fault), True, sent=2, others=False) == (fault is Fault.BUSY)
    assert not any(same_again(failure(fault), True, sent, others=False) for sent in (3, 4))
    assert not same_again(failure(fault), True, sent=2, others=True)


@pytest.mark.parametrize("fault", Fault)
def test_another_replica_is_asked_for_whatever_is_not_the_requests_fault(fault: Fault) -> None:
    assert sibling(failure(fault), sent=1, others=True) == sibling(failure(fault), sent=2, others=False)
    assert sibling(failure(fault), sent=1, others=True) == (fault is not Fault.REFUSED)
    assert not sibling(failure(fault), sent=2, others=True)
    assert not any(sibling(failure(fault), sent, others=False) for sent in (3, 4))
    assert not sibling(failure(Fault.REFUSED, "context_length_exceeded"), sent=1, others=False)


def test_a_late_expert_is_never_asked_again_but_another_may_be() -> None:
    assert not same_again(failure(Fault.LATE), True, sent=1, others=False)
    assert elsewhere(failure(Fault.LATE)) and executed(failure(Fault.LATE))
    assert not elsewhere(failure(Fault.REFUSED))
    assert elsewhere(failure(Fault.REFUSED, "context_length_exceeded"))
    assert not executed(failure(Fault.CONNECT)) and not executed(failure(Fault.OPEN))


@pytest.mark.parametrize("fault", Fault)
def test_an_engine_that_is_gone_may_return_unless_the_request_seems_to_end_it(fault: Fault) -> None:
    gone = fault in {Fault.CONNECT, Fault.OPEN, Fault.BUSY, Fault.RESET, Fault.ERROR, Fault.BROKEN}
    assert may_return([failure(fault)]) == may_return([failure(Fault.INVALID), failure(fault)]) == gone
    assert not may_return([failure(fault), failure(Fault.LATE)])
    twice = [failure(Fault.RESET), failure(Fault.BROKEN)]
    assert may_return([*twice, failure(fault)]) == (gone and fault not in ENDS)
    assert not may_return([*twice, *twice, failure(fault)])
    assert not may_return([failure(fault, "rate_limit_exceeded")])


def test_the_wait_is_what_was_asked_for_or_full_jitter() -> None:
    chance = random.Random(1)
    asked = [pause(failure(Fault.BUSY, wait=2), 1, chance) for _ in range(50)]
    assert all(2 <= one <= 2.1 for one in asked) and len(set(asked)) > 40
    second = [pause(failure(Fault.BUSY), 2, chance) for _ in range(200)]
    assert max(second) <= 0.4 and min(second) < 0.05 and max(second) > 0.35
    third, late = ([pause(failure(Fault.BUSY), sent, chance) for _ in range(200)] for sent in (3, 30))
    assert 0.7 < max(third) <= 0.8 and 1.8 < max(late) <= 2.0
    unseen = [pause(failure(Fault.CONNECT), 1, chance) for _ in range(200)]
    assert min(unseen) >= 0 and 0.04 < max(unseen) <= 0.05


def test_second_sendings_stay_within_a_tenth_of_the_requests() -> None:
    budget = Budget(share=0.1, reserve=20)
    spent = 0
    for _ in range(10_000):
        budget.earn()
        spent += budget.spend()
    assert 1000 <= spent <= 1021
    quiet = Budget(share=0.1, reserve=20)
    for _ in range(10_000):
        quiet.earn()
    assert sum(quiet.spend() for _ in range(100)) == 20


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def opened(now: Now) -> Breaker:
    breaker = Breaker(3, 5.0, now)
    for _ in range(3):
        permit = breaker.admit()
        assert permit is not None
        permit.failed()
    return breaker


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 5.0, Now())
    for failed in (True, True, False, True, True, False):
        permit = breaker.admit()
        assert permit is not None
        permit.failed() if failed else permit.succeeded()
    assert breaker.closed
    left = breaker.admit()
    assert left is not None
    left.abandoned()
    assert breaker.closed


def test_one_request_at_a_time_tries_a_half_open_breaker() -> None:
    now = Now()
    breaker = opened(now)
    assert breaker.admit() is None and breaker.wait == 5.0
    now.time += 5
    probe = breaker.admit()
    assert probe is not None and breaker.admit() is None
    probe.failed()
    assert breaker.admit() is None
    now.time += 5
    second = breaker.admit()
    assert second is not None
    second.abandoned()  # its client left: nothing is known, the next may try
    third = breaker.admit()
    assert third is not None
    third.succeeded()
    assert breaker.closed


def test_a_closed_breakers_request_counts_once_and_its_first_content_counts_as_nothing() -> None:
    breaker = Breaker(3, 5.0, Now())
    for _ in range(2):
        permit = breaker.admit()
        assert permit is not None
        permit.alive()
        permit.failed()
        permit.failed()
        permit.succeeded()
        assert breaker.closed
    last = breaker.admit()
    assert last is not None
    last.failed()
    assert not breaker.closed


def test_a_probe_that_ends_late_does_not_end_the_next_one() -> None:
    now = Now()
    breaker = opened(now)
    now.time += 6
    first = breaker.admit()
    assert first is not None
    first.alive()
    for _ in range(3):
        permit = breaker.admit()
        assert permit is not None
        permit.failed()
    now.time += 6
    second = breaker.admit()
    assert second is not None
    first.abandoned()
    assert breaker.admit() is None


def test_an_answer_shows_that_an_expert_is_back_after_a_look_did_not() -> None:
    now = Now()
    breaker = opened(now)
    breaker.looked(False)
    now.time += 6
    probe = breaker.admit()
    assert probe is not None
    probe.succeeded()
    assert breaker.alive


def test_a_look_says_when_to_try_again_and_that_there_is_no_need_to() -> None:
    now = Now()
    breaker = opened(now)
    breaker.looked(True)  # it lists its models, as it did when it failed: nothing new
    assert not breaker.ready and breaker.wait == 5.0
    breaker.looked(False)
    assert not breaker.alive and not breaker.ready
    now.time += 5
    assert breaker.ready  # where nobody else can be asked
    now.time -= 4
    breaker.looked(True)
    assert breaker.alive and breaker.ready and breaker.wait == 0
    probe = breaker.admit()
    assert probe is not None and not breaker.ready
    probe.failed()
    assert not breaker.ready and breaker.wait == 5.0


def test_a_probe_that_begins_to_answer_closes_the_breaker_and_still_counts_its_end() -> None:
    now = Now()
    breaker = opened(now)
    now.time += 5
    probe = breaker.admit()
    assert probe is not None
    probe.alive()
    assert breaker.closed and breaker.admit() is not None
    probe.failed()
    assert breaker.closed
    for _ in range(2):
        permit = breaker.admit()
        assert permit is not None
        permit.failed()
    assert not breaker.closed


def test_blame() -> None:
    assert blame(failure(Fault.BUSY, "rate_limit_exceeded")) == 0 and blame(failure(Fault.BUSY)) == 1
    assert blame(failure(Fault.REFUSED)) == 0 and blame(failure(Fault.MISCONFIGURED)) == 3
