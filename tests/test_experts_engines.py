"""The hand on Ray: when an engine counts as idle, so that it may end."""

from __future__ import annotations

from adapter_kit import FakeReplica
from collegium.experts.engines import is_idle
from echo_expert import EchoExpert


def test_an_engine_is_idle_when_it_says_so() -> None:
    replica = FakeReplica("base")
    assert is_idle(replica.url)
    replica.busy.add("math")
    assert not is_idle(replica.url)
    replica.close()
    assert is_idle(replica.url)


class Silent(FakeReplica):
    def metrics(self) -> str:
        return "process_open_fds 95.0\n"


def test_an_engine_that_does_not_count_its_requests_is_not_taken_for_idle() -> None:
    replica = Silent("base")
    assert not is_idle(replica.url)
    replica.close()


def test_what_answers_without_a_replica_behind_it_is_idle() -> None:
    with EchoExpert() as echo:
        assert is_idle(echo.url)
