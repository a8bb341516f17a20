"""The hand on Ray: what it is asked for, and when an engine counts as idle, so that it may end."""

from __future__ import annotations

from pathlib import Path

from adapter_kit import FakeReplica
from collegium.experts.card import parse_card
from collegium.experts.engines import Engines, EngineView, Work, is_idle
from collegium.experts.lora import Adapters
from collegium.experts.probes import Probes
from collegium.experts.reconcile import Deploy
from collegium.experts.reconciler import Reconciler
from collegium.experts.registry import Registry, State
from collegium.experts.state import StateFolder
from echo_expert import EchoExpert


class NoRay(Engines):
    """Remembers what it should do, on a cluster without applications."""

    def __init__(self, state: StateFolder) -> None:
        super().__init__(state)
        self.asked: list[Work] = []

    def view(self) -> EngineView:
        return EngineView(apps={})

    def submit(self, work: Work) -> None:
        self.asked.append(work)


def test_the_reconciler_asks_for_engines_and_writes_only_what_changed(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    registry, engines, probes = Registry(state.registry_url), NoRay(state), Probes()
    backend = {"kind": "engine", "model": "lab/model", "memory_gb": 1, "accelerator": "cpu"}
    registry.add(parse_card({"name": "alpha", "backend": backend}))
    reconciler = Reconciler(registry, engines, probes, Adapters(state, local=True))
    reconciler.tick()
    assert registry.expert("alpha").state is State.STARTING
    written = registry.version()
    reconciler.tick()
    assert registry.version() == written and [type(work) for work in engines.asked] == [Deploy, Deploy]
    registry.observe("alpha", State.READY, base_url="http://127.0.0.1:1/v1")  # another's word, or a lost one's
    reconciler.tick()
    assert registry.expert("alpha").state is State.STARTING
    probes.close()
    registry.close()


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
