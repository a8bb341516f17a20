"""Adapters on running engines: whatever a replica holds or loses, it ends with what the registry wants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from adapter_kit import FakeReplica, Tensors, adapter_folder, base_folder
from collegium.experts import lora
from collegium.experts.card import Card, parse_card
from collegium.experts.lora import Adapters
from collegium.experts.ray_serve import App
from collegium.experts.reconcile import Actual, Forget, Loaded, Observe, plan
from collegium.experts.records import ExpertRecord, State
from collegium.experts.state import StateFolder, engine_key

BASE_URL = "http://127.0.0.1:1/experts/base/v1"


def record(card: Card, *, removed: bool = False, base_url: str | None = None) -> ExpertRecord:
    return ExpertRecord(card, 1, removed, State.REGISTERED, "", base_url, 0.0)


class World:
    """An engine with as many replicas as are asked for, and the adapters' keeper."""

    def __init__(self, folder: Path, replicas: int) -> None:
        self.state = StateFolder(folder / "state")
        self.folder = folder
        base = base_folder(folder / "base")
        engine = {
            "kind": "engine", "model": str(base), "accelerator": "cpu", "memory_gb": 1,
            "adapters": {"max": 4, "max_rank": 8},
        }  # fmt: skip
        self.engine = parse_card({"name": "base", "generalist": True, "backend": engine})
        self.replicas = [FakeReplica("base") for _ in range(replicas)]
        self.cards: dict[str, Card] = {}
        self.adapters = Adapters(self.state)

    def close(self) -> None:
        self.adapters.close()
        for one in self.replicas:
            one.close()

    def add(self, name: str, change: Callable[[Tensors], object] = lambda made: None) -> None:
        number = sum(1 for _ in self.folder.glob(f"{name}-*"))
        folder = adapter_folder(self.folder / f"{name}-{number}", change)
        backend = {"kind": "adapter", "engine": "base", "adapter": str(folder)}
        self.cards[name] = parse_card({"name": name, "backend": backend})

    @property
    def app(self) -> App:
        urls = tuple(one.url for one in self.replicas)
        return App("app", "base", self.engine.engine_fingerprint, "running", "", BASE_URL, urls)

    def records(self) -> list[ExpertRecord]:
        return [record(card) for card in (self.engine, *self.cards.values())]

    def look(self) -> Mapping[tuple[str, str], Loaded]:
        return self.adapters.update(self.records(), {"app": self.app})

    def until(self, reached: Callable[[Mapping[tuple[str, str], Loaded]], object]) -> Mapping[tuple[str, str], Loaded]:
        deadline = time.monotonic() + 60
        while not reached(report := self.look()):
            assert time.monotonic() < deadline, (report, [one.loaded for one in self.replicas])
            time.sleep(0.01)
        return report

    def ready(self, name: str) -> str:
        """The name that answers, once the wanted adapter is on the engine."""
        key = (BASE_URL, name)
        loaded = self.until(lambda report: key in report and report[key].model and not report[key].reason)[key]
        assert loaded.model is not None
        return loaded.model


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "PERIOD", 0.05)
    monkeypatch.setattr(lora, "GRACE", 0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path, replicas=1)
    yield one
    one.close()


def doubled(made: Tensors) -> None:
    for name in made:
        made[name] = made[name] * np.float32(2)


def test_adapters_come_with_the_engines_key_and_from_staged_files(world: World) -> None:
    world.add("math")
    model = world.ready("math")
    (replica,) = world.replicas
    assert Path(replica.loaded[model]).parent == world.state.path / "adapters"
    assert replica.keys == {f"Bearer {engine_key(world.state.internal_key(), 'base')}"}


def test_every_replica_gets_them_also_one_that_starts_later(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=2)
    world.add("math")
    model = world.ready("math")
    world.until(lambda _: all(model in one.loaded for one in world.replicas))
    world.replicas.append(FakeReplica("base"))
    world.until(lambda _: model in world.replicas[2].loaded)
    world.close()


def test_what_a_restarted_replica_lost_is_put_back(world: World) -> None:
    for name in ("math", "coding"):
        world.add(name)
    models = {world.ready("math"), world.ready("coding")}
    world.replicas[0].loaded.clear()
    world.until(lambda _: set(world.replicas[0].loaded) == models)


def test_a_removed_adapter_leaves_when_its_requests_are_done(world: World) -> None:
    world.add("math")
    world.add("coding")
    model, stays = world.ready("math"), world.ready("coding")
    (replica,) = world.replicas
    replica.busy.add(model)
    card = world.cards.pop("math")
    for _ in range(40):
        world.look()
        time.sleep(0.01)
    assert model in replica.loaded
    desired = [record(world.engine), record(card, removed=True)]
    actual = Actual(apps={"app": world.app}, adapters=world.look(), unused=frozenset({"math"}))
    assert Forget("math") not in plan(desired, actual)
    replica.busy.clear()
    world.until(lambda report: (BASE_URL, "math") not in report and model not in replica.loaded)
    assert set(replica.loaded) == {stays}
    actual = replace(actual, adapters=world.look())
    assert Forget("math") in plan(desired, actual)


def test_a_new_version_answers_under_another_name_before_the_old_one_goes(world: World) -> None:
    world.add("math")
    before = world.ready("math")
    (replica,) = world.replicas
    replica.busy.add(before)
    world.add("math", doubled)
    report = world.until(lambda report: report.get((BASE_URL, "math"), Loaded(before)) != Loaded(before))
    assert before in replica.loaded
    after = world.ready("math")
    assert after != before and report[BASE_URL, "math"].model in (before, after)
    replica.busy.clear()
    world.until(lambda _: set(replica.loaded) == {after})


def test_a_bad_new_version_leaves_the_old_one_answering(world: World) -> None:
    world.add("math")
    before = world.ready("math")
    world.add("math", lambda made: made.popitem())
    report = world.until(lambda report: report.get((BASE_URL, "math"), Loaded(None)).failed)
    assert report[BASE_URL, "math"].model == before and "is missing" in report[BASE_URL, "math"].reason
    assert before in world.replicas[0].loaded


def test_a_refusal_is_told_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "LONGEST_PAUSE", 0.2)
    world.add("math")
    staged = world.state.path / "adapters"
    world.until(lambda _: list(staged.glob("math-*")))
    name = next(staged.glob("math-*")).name
    world.replicas[0].loaded.pop(name, None)
    world.replicas[0].refuses[name] = "no more room"
    report = world.until(lambda report: report.get((BASE_URL, "math"), Loaded(None)).failed)
    assert report[BASE_URL, "math"].reason == "the engine refuses the adapter: ValueError: no more room"
    world.replicas[0].refuses.clear()
    assert world.ready("math") == name


def test_an_adapter_that_a_stranger_or_an_earlier_run_left_is_unloaded(world: World) -> None:
    world.replicas[0].loaded["left-over"] = "/somewhere"
    world.add("math")
    model = world.ready("math")
    world.until(lambda _: set(world.replicas[0].loaded) == {model})


def test_nothing_is_reported_of_a_replica_that_does_not_answer(world: World) -> None:
    world.add("math")
    app = replace(world.app, replicas=("http://127.0.0.1:9/v1",))
    for _ in range(20):
        assert world.adapters.update(world.records(), {"app": app}) == {}
        time.sleep(0.01)


def test_the_plan_of_an_adapter() -> None:
    engine_backend = {"kind": "engine", "model": "lab/m", "memory_gb": 1, "accelerator": "cpu", "adapters": {}}
    engine = parse_card({"name": "base", "backend": engine_backend})
    card = parse_card({"name": "math", "backend": {"kind": "adapter", "engine": "base", "adapter": "/a"}})
    app = App("app", "base", engine.engine_fingerprint, "running", "", BASE_URL)

    def told(apps: Mapping[str, App], loaded: Loaded | None, before: str | None = None) -> tuple[State, str | None]:
        mine = [record(card, base_url=before), record(engine)]
        adapters = {} if loaded is None else {(BASE_URL, "math"): loaded}
        actions = plan(mine, Actual(apps=apps, adapters=adapters))
        (one,) = [action for action in actions if isinstance(action, Observe) and action.expert == "math"]
        return one.state, one.base_url

    running = {"app": app}
    assert told({}, None) == (State.STARTING, None)
    assert told(running, None) == (State.STARTING, None)
    assert told(running, None, f"{BASE_URL}#math-1") == (State.REGISTERED, f"{BASE_URL}#math-1")
    assert told(running, None, "http://127.0.0.1:2/other/v1#math-1") == (State.STARTING, None)
    assert told(running, None, BASE_URL) == (State.STARTING, None)  # as a prompted expert its card had no adapter
    assert told(running, Loaded("math-1")) == (State.READY, f"{BASE_URL}#math-1")
    assert told(running, Loaded("math-1", "the engine loads the adapter")) == (State.STARTING, f"{BASE_URL}#math-1")
    assert told(running, Loaded(None, "does not fit", failed=True)) == (State.FAILED, None)
    assert told(running, Loaded("math-1", "does not fit", failed=True)) == (State.FAILED, f"{BASE_URL}#math-1")
