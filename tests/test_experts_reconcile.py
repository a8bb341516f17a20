"""The plan: whatever the world looks like, it starts nothing twice, ends nothing that is wanted, and gets there."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from collegium.experts.backends import Address
from collegium.experts.card import Card, parse_card
from collegium.experts.ray_serve import App, Phase
from collegium.experts.reconcile import Action, Actual, Delete, Deploy, Forget, GiveUp, Observe, Probe, plan
from collegium.experts.records import ExpertRecord, State
from hypothesis import given, settings
from hypothesis import strategies as st

A = TypeVar("A")
NAMES = ("alpha", "beta", "gamma")


def engine_card(name: str, version: int = 1) -> Card:
    backend = {"kind": "engine", "model": f"lab/model-{version}", "memory_gb": 1, "accelerator": "cpu"}
    return parse_card({"name": name, "backend": backend})


def remote_card(name: str) -> Card:
    return parse_card({"name": name, "backend": {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}})


def prompted_card(name: str, engine: str) -> Card:
    return parse_card({"name": name, "backend": {"kind": "prompted", "engine": engine, "system_prompt": "Be brief."}})


def record(card: Card, *, removed: bool = False, base_url: str | None = None, generation: int = 1) -> ExpertRecord:
    return ExpertRecord(card, generation, removed, State.REGISTERED, "", base_url, 0.0)


def app(card: Card, phase: Phase, reason: str = "") -> App:
    name = f"{card.name}-{card.engine_fingerprint}"
    return App(name, card.name, card.engine_fingerprint, phase, reason, f"http://127.0.0.1:1/{name}/v1")


def observed(actions: list[Action], expert: str) -> Observe:
    (found,) = [action for action in actions if isinstance(action, Observe) and action.expert == expert]
    return found


def of_kind(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


records_of = st.lists(st.sampled_from(NAMES), unique=True).flatmap(
    lambda names: st.tuples(
        *(
            st.builds(
                lambda name, version, kind, removed, generation: record(
                    {
                        "engine": lambda: engine_card(name, version),
                        "remote": lambda: remote_card(name),
                        "prompted": lambda: prompted_card(name, "alpha" if name != "alpha" else "beta"),
                    }[kind](),
                    removed=removed,
                    generation=generation,
                ),
                st.just(name),
                st.integers(1, 2),
                st.sampled_from(["engine", "remote", "prompted"]),
                st.booleans(),
                st.integers(1, 3),
            )
            for name in names
        )
    )
)
apps_of = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.integers(1, 2)),
    st.sampled_from(["starting", "running", "restarting", "failed", "deleting"]),
).map(lambda found: {(a := app(engine_card(*key), phase)).name: a for key, phase in found.items()})  # type: ignore[arg-type]


@given(records_of, apps_of, st.booleans())
def test_nothing_is_started_twice_and_nothing_wanted_is_ended(
    records: tuple[ExpertRecord, ...], apps: dict[str, App], everything_unused: bool
) -> None:
    unused = frozenset(apps) | {r.name for r in records} if everything_unused else frozenset[str]()
    actions = plan(records, Actual(apps=apps, unused=unused))
    started = [f"{action.card.name}-{action.card.engine_fingerprint}" for action in of_kind(actions, Deploy)]
    assert len(started) == len(set(started))
    assert not set(started) & set(apps)
    wanted = {
        f"{r.name}-{r.card.engine_fingerprint}" for r in records if not r.removed and r.card.backend.kind == "engine"
    }
    assert set(started) <= wanted
    ended = {action.app for action in of_kind(actions, Delete)}
    assert not ended & wanted
    assert all(apps[name].phase == "failed" for name in ended - unused)
    assert {action.expert for action in of_kind(actions, Forget)} <= {r.name for r in records if r.removed}
    answering = {a.base_url for a in apps.values() if a.phase in ("running", "restarting")}
    for action in of_kind(actions, Observe):
        assert action.base_url is None or action.base_url in answering


@given(records_of, st.booleans())
def test_while_ray_is_silent_no_engine_is_touched(records: tuple[ExpertRecord, ...], trouble: bool) -> None:
    unused = frozenset(r.name for r in records)
    actions = plan(records, Actual(apps=None, trouble="Ray starts" if trouble else "", unused=unused))
    engines = {r.name for r in records if r.card.backend.kind == "engine"}
    assert not of_kind(actions, Deploy) and not of_kind(actions, Delete) and not of_kind(actions, GiveUp)
    assert not {action.expert for action in of_kind(actions, Forget)} & engines


@settings(max_examples=60)
@given(records_of, apps_of, st.frozensets(st.sampled_from(NAMES)))
def test_it_gets_there(records: tuple[ExpertRecord, ...], apps: dict[str, App], broken: frozenset[str]) -> None:
    """Apply the plan to a world that obeys, until it asks for nothing: then runs what is wanted, and only that."""
    desired, world, failures = list(records), dict(apps), dict[tuple[str, int], str]()
    for _ in range(12):
        unused = frozenset(world) | {r.name for r in desired}
        for action in plan(desired, Actual(apps=world, failures=failures, unused=unused)):
            match action:
                case Deploy(card, _):
                    fresh = app(card, "starting")
                    assert fresh.name not in world
                    world[fresh.name] = fresh
                case Delete(name):
                    world[name] = replace(world[name], phase="deleting")
                case GiveUp(name, expert, generation, reason):
                    world[name] = replace(world[name], phase="deleting")
                    failures[expert, generation] = reason
                case Forget(name):
                    desired = [r for r in desired if r.name != name]
                case Observe():
                    pass
        world = {name: found for name, found in world.items() if found.phase != "deleting"}
        for name, found in world.items():
            if found.phase in ("starting", "restarting"):
                world[name] = replace(found, phase="failed" if found.expert in broken else "running")
    assert not any(r.removed for r in desired)
    if desired:
        live = {found.name for found in world.values() if found.phase == "running"}
        wanted = {
            f"{r.name}-{r.card.engine_fingerprint}"
            for r in desired
            if r.card.backend.kind == "engine" and (r.name, r.generation) not in failures
        }
        assert wanted <= live
        extra = {world[name].expert for name in live - wanted}
        assert extra <= {r.name for r in desired if (r.name, r.generation) in failures}


def test_a_remote_expert_that_was_not_asked_yet_is_as_it_was() -> None:
    card = remote_card("far")
    url = "http://127.0.0.1:9/v1"
    assert observed(plan([record(card, base_url=url)], Actual()), "far") == Observe("far", State.READY, "", url)
    assert observed(plan([record(card)], Actual()), "far").state is State.STARTING
    moved = observed(
        plan([record(card, base_url="http://127.0.0.1:8/v1")], Actual()), "far"
    )  # its card has another URL
    assert (moved.state, moved.base_url) == (State.STARTING, None)
    (address,) = card.backend.addresses  # type: ignore[union-attr]
    failed = Actual(probes={address: Probe(False, "it does not answer")})
    assert observed(plan([record(card, base_url=url)], failed), "far").state is State.FAILED


def test_an_empty_registry_ends_nothing() -> None:
    running = app(engine_card("alpha"), "running")
    assert plan([], Actual(apps={running.name: running}, unused=frozenset({running.name}))) == []


def test_what_answered_before_goes_on_until_the_new_engine_is_ready() -> None:
    old, new = app(engine_card("alpha", 1), "running"), app(engine_card("alpha", 2), "starting")
    wanted = [record(engine_card("alpha", 2), generation=2, base_url=old.base_url)]
    unused = frozenset({old.name})
    started = plan(wanted, Actual(apps={old.name: old}, unused=unused))
    assert of_kind(started, Deploy) and not of_kind(started, Delete)
    assert observed(started, "alpha").base_url == old.base_url
    starting = plan(wanted, Actual(apps={old.name: old, new.name: new}, unused=unused))
    assert not of_kind(starting, Delete) and observed(starting, "alpha").base_url == old.base_url
    ready = plan(wanted, Actual(apps={old.name: old, new.name: replace(new, phase="running")}, unused=unused))
    assert observed(ready, "alpha") == Observe("alpha", State.READY, "", new.base_url)
    assert of_kind(ready, Delete) == [Delete(old.name)]


def test_an_engine_that_answered_before_it_failed_is_started_anew() -> None:
    card = engine_card("alpha")
    broken = app(card, "failed", "Failed to update the deployments")
    actions = plan([record(card, base_url=broken.base_url)], Actual(apps={broken.name: broken}))
    assert not of_kind(actions, GiveUp) and of_kind(actions, Delete) == [Delete(broken.name)]
    assert observed(actions, "alpha") == Observe("alpha", State.STARTING, "the engine is started anew", broken.base_url)
    leaving = plan(
        [record(card, base_url=broken.base_url)], Actual(apps={broken.name: replace(broken, phase="deleting")})
    )
    assert not of_kind(leaving, Deploy) and observed(leaving, "alpha").base_url is None
    assert of_kind(plan([record(card)], Actual(apps={})), Deploy)
    assert of_kind(plan([record(card)], Actual(apps={broken.name: broken})), GiveUp)  # it never answered again


def test_an_engine_that_fails_is_given_up_once_with_its_reason_and_tried_again_when_replaced() -> None:
    card = engine_card("alpha")
    broken = app(card, "failed", "OutOfMemoryError: no room")
    actions = plan([record(card)], Actual(apps={broken.name: broken}))
    assert of_kind(actions, GiveUp) == [GiveUp(broken.name, "alpha", 1, "OutOfMemoryError: no room")]
    failures = {("alpha", 1): "OutOfMemoryError: no room"}
    assert plan([record(card)], Actual(apps={}, failures=failures)) == [
        Observe("alpha", State.FAILED, "OutOfMemoryError: no room", None)
    ]
    assert of_kind(plan([record(card, generation=2)], Actual(apps={}, failures=failures)), Deploy)


def test_a_prompted_expert_is_what_its_engine_is() -> None:
    base, brief = engine_card("alpha"), prompted_card("brief", "alpha")
    wanted = [record(base), record(brief)]
    running = app(base, "running")
    assert observed(plan(wanted, Actual(apps={running.name: running})), "brief").base_url == running.base_url
    assert observed(plan(wanted, Actual(apps={})), "brief").state is State.STARTING
    failed = plan(wanted, Actual(apps={}, failures={("alpha", 1): "no such model"}))
    assert observed(failed, "brief").state is State.FAILED and "no such model" in observed(failed, "brief").reason
    assert "not registered" in observed(plan([record(brief)], Actual(apps={})), "brief").reason


def test_remote_cards_need_no_ray() -> None:
    card = remote_card("alpha")
    address = Address("http://127.0.0.1:9/v1", "m", None)
    answers = {address: Probe(True)}
    assert plan([record(card)], Actual(apps=None, probes=answers)) == [
        Observe("alpha", State.READY, "", "http://127.0.0.1:9/v1")
    ]
    silent = {address: Probe(False, "does not answer in time")}
    assert plan([record(card)], Actual(apps=None, probes=silent)) == [
        Observe("alpha", State.FAILED, "does not answer in time", None)
    ]
    gone = plan([record(card, removed=True)], Actual(apps=None, unused=frozenset({"alpha"})))
    assert of_kind(gone, Forget) == [Forget("alpha")]


def test_one_url_that_answers_is_enough() -> None:
    backend = {"kind": "remote", "urls": ["http://a/v1", "http://b/v1", "http://c/v1"], "model": "m"}
    card = parse_card({"name": "alpha", "backend": backend})
    a, b, c = (Address(f"http://{host}/v1", "m", None) for host in "abc")

    def seen(probes: dict[Address, Probe]) -> Observe:
        return observed(plan([record(card)], Actual(probes=probes)), "alpha")

    dead = Probe(False, "b is dead")
    assert seen({}).state is State.STARTING and seen({}).base_url is None
    assert seen({a: Probe(True)}) == Observe(
        "alpha", State.READY, "1 of 3 URLs answer; asking http://b/v1; asking http://c/v1", "http://a/v1"
    )
    assert seen({a: Probe(True), b: dead, c: Probe(True)}) == Observe(
        "alpha", State.READY, "2 of 3 URLs answer; b is dead", "http://a/v1 http://c/v1"
    )
    everyone = {one: Probe(True) for one in (a, b, c)}
    assert seen(everyone) == Observe("alpha", State.READY, "", "http://a/v1 http://b/v1 http://c/v1")
    assert seen(dict.fromkeys((a, b, c), dead)).state is State.FAILED


def test_a_card_that_drops_or_gets_a_url_goes_on_answering() -> None:
    known = {Address(f"http://{host}/v1", "m", None): Probe(True) for host in "ab"}
    for hosts in ("a", "abc"):
        backend = {"kind": "remote", "urls": [f"http://{host}/v1" for host in hosts], "model": "m"}
        changed = record(parse_card({"name": "alpha", "backend": backend}), generation=2)
        assert observed(plan([changed], Actual(probes=known)), "alpha").state is State.READY


def test_a_removed_engine_is_ended_before_its_record_is_forgotten() -> None:
    card = engine_card("alpha")
    running = app(card, "running")
    wanted = [record(card, removed=True, base_url=running.base_url)]
    busy = plan(wanted, Actual(apps={running.name: running}, unused=frozenset({"alpha"})))
    assert not of_kind(busy, Delete) and not of_kind(busy, Forget)
    assert observed(busy, "alpha").base_url is None
    idle = plan(wanted, Actual(apps={running.name: running}, unused=frozenset({"alpha", running.name})))
    assert of_kind(idle, Delete) == [Delete(running.name)] and not of_kind(idle, Forget)
    assert of_kind(plan(wanted, Actual(apps={}, unused=frozenset({"alpha"}))), Forget) == [Forget("alpha")]


def test_an_engine_that_is_started_again_keeps_its_address() -> None:
    card = engine_card("alpha")
    before = app(card, "running").base_url
    for phase, known in (("restarting", None), ("restarting", before), ("starting", before)):
        gone = app(card, phase)  # type: ignore[arg-type]
        left = replace(gone, replicas=("http://127.0.0.1:2/v1",))
        for found, state in ((left, State.READY), (gone, State.STARTING)):
            (seen,) = plan([record(card, base_url=known)], Actual(apps={found.name: found}))
            assert isinstance(seen, Observe) and (seen.state, seen.base_url) == (state, before)


def test_an_engine_that_never_answered_has_no_address() -> None:
    card = engine_card("alpha")
    fresh = app(card, "starting")
    seen = observed(plan([record(card)], Actual(apps={fresh.name: fresh})), "alpha")
    assert (seen.state, seen.base_url) == (State.STARTING, None)
