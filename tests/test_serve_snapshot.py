"""Snapshots of the registry: what has not changed is neither read nor made again, what has is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from collegium.experts.registry import ExpertRecord, Registry, SkillRecord, State
from collegium.router.decision import UNREAD, Needs, Policy
from collegium.router.posterior import Posterior
from collegium.router.shortlist import SMALL
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import Builder, Snapshot, Sources
from serve_kit import KeywordRouter, card, running

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    for name in ("a", "b", "c"):
        _add(registry, name)
    yield registry
    registry.close()


def _add(registry: Registry, name: str, **changes: object) -> None:
    registry.add(card(name, URL, **changes))
    registry.observe(name, State.READY, base_url=URL)


def _same(before: list[ExpertRecord], after: list[ExpertRecord]) -> dict[str, bool]:
    """Of the experts after: whether the record is the one from before."""
    known = {record.name: record for record in before}
    return {record.name: known.get(record.name) is record for record in after}


def test_records_that_nobody_changed_are_returned_again(registry: Registry, tmp_path: Path) -> None:
    before = registry.experts()
    registry.observe("b", State.FAILED, "it is gone")
    registry.remove("c")
    _add(registry, "d")
    after = registry.experts()
    assert _same(before, after) == {"a": True, "b": False, "c": False, "d": False}
    other = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    assert after == other.experts()
    other.close()


@pytest.mark.parametrize("change", ["card", "url", "again"])
def test_a_record_that_changed_is_read_again(registry: Registry, tmp_path: Path, change: str) -> None:
    before = registry.experts()
    if change == "card":
        registry.replace(card("b", URL, description="another"))
    elif change == "url":
        registry.observe("b", State.READY, base_url="http://127.0.0.1:10/v1")
    else:
        registry.remove("b")
        registry.forget("b")
        _add(registry, "b")
    after = registry.experts()
    assert _same(before, after) == {"a": True, "b": False, "c": True}
    other = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    assert after == other.experts()
    other.close()


class _Pool:
    """What a watcher does, without its thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._builder = Builder(Sources("internal", {}))

    def look(self) -> Snapshot:
        experts, skills, keys = self._registry.experts(), self._registry.skills(), self._registry.keys()
        return self._builder.build(experts, skills, keys, KeywordRouter())


def _remade(before: Snapshot, after: Snapshot) -> set[str]:
    return {
        name
        for name in after.known
        if before.known.get(name) is not after.known[name] or before.targets.get(name) is not after.targets.get(name)
    }


def test_only_what_changed_is_made_again(registry: Registry) -> None:
    pool = _Pool(registry)
    first = pool.look()
    again = pool.look()
    assert _remade(first, again) == set() and again.pool is first.pool
    registry.set_skills("b", [SkillRecord("b", "math", right=9, total=10, admitted=True)])
    measured = pool.look()
    assert _remade(again, measured) == {"b"}
    assert measured.known["b"].is_admitted("math") and measured.pool.experts == tuple(measured.known.values())
    registry.observe("c", State.FAILED, "gone")
    failed = pool.look()
    assert _remade(measured, failed) == {"c"} and "c" not in failed.targets and not failed.known["c"].ready
    registry.remove("a")
    assert set(pool.look().known) == {"b", "c"}


def test_who_borrows_an_engine_changes_with_it(registry: Registry) -> None:
    prompted = {"kind": "prompted", "engine": "a", "system_prompt": "Be brief."}
    registry.add(card("brief", URL, backend=prompted))
    pool = _Pool(registry)
    before = pool.look()
    registry.observe("a", State.READY, base_url="http://127.0.0.1:10/v1")
    registry.replace(card("a", "http://127.0.0.1:10/v1", capabilities=["vision"]))
    after = pool.look()
    assert _remade(before, after) == {"a", "brief"}
    assert after.targets["brief"].url == "http://127.0.0.1:10/v1" and "vision" in after.known["brief"].capabilities


def test_costs_are_relative_to_a_generalist_that_may_change(registry: Registry) -> None:
    _add(registry, "general", generalist=True, cost={"active_parameters": 10.0})
    registry.replace(card("a", URL, cost={"active_parameters": 5.0}))
    pool = _Pool(registry)
    assert pool.look().known["a"].cost == 0.5
    registry.replace(card("general", URL, generalist=True, cost={"active_parameters": 2.5}))
    assert pool.look().known["a"].cost == 2.0


def test_a_large_pool_is_ready_for_the_labels_in_use(registry: Registry) -> None:
    for number in range(SMALL):
        _add(registry, f"e{number}", generalist=True)
    pool = _Pool(registry)
    snapshot = pool.look()
    posterior = Posterior(("x", "y"), (0.5, 0.5))
    snapshot.pool.of(posterior, Policy(), Needs())
    _add(registry, "new")
    assert pool.look().pool.labellings == (posterior.labels,)


def test_a_large_pool_answers_routes_and_tells_all_scores(tmp_path: Path) -> None:
    with running(tmp_path, EdgeSettings()) as edge:
        for number in range(SMALL):
            skill = 0.91 + number / 1000
            edge.pool.add(card(f"e{number}", edge.echo.url, domains={"math": skill}, admitted=["math"]))
        names = {"math", "coding", "general", *(f"e{number}" for number in range(SMALL))}
        while not names <= {model["id"] for model in edge.get("/v1/models").json()["data"]}:
            pass
        told = edge.post(
            "/v1/route", json={"model": "auto", "messages": [{"role": "user", "content": "sum of primes"}]}
        )
        best = f"e{SMALL - 1}"
        assert told.json()["expert"] == edge.chat("sum of primes").json()["model"] == best
        assert told.json()["runner_up"] == f"e{SMALL - 2}"
        assert names <= {one["expert"] for one in told.json()["experts"]}
        assert told.json()["experts"][0]["expert"] == best
        unread = edge.chat("explode")
        assert unread.headers["x-collegium-domain"] == UNREAD and unread.status_code == 200
