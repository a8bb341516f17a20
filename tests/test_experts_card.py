"""Cards and pools: what is wrong is refused with a sentence that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from collegium.experts.backends import EngineBackend, RemoteBackend
from collegium.experts.card import CardError, parse_card, relative_costs
from collegium.experts.plan import Machine, plan_memory
from collegium.experts.pool import builtin_pools, load_pool

REMOTE = {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}
MANY = {"kind": "remote", "urls": ["http://b:9/v1", "http://c:9/v1/"], "model": "m"}
ENGINE = {"kind": "engine", "model": "lab/model", "memory_gb": 4, "accelerator": "cpu"}
PROMPTED = {"kind": "prompted", "engine": "base", "system_prompt": "Be brief."}


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"name": "a", "backend": REMOTE, "colour": "red"}, "colour is not a known key"),
        ({"name": "a", "backend": {**REMOTE, "api_key": "s3cret"}}, "backend.api_key is not a known key"),
        ({"name": "Not A Name", "backend": REMOTE}, "name:"),
        ({"name": "auto", "backend": REMOTE}, "reserved"),
        ({"name": "a"}, "backend: Field required"),
        ({"name": "a", "backend": {"kind": "magic"}}, "backend"),
        ({"name": "a", "backend": {**REMOTE, "url": "ftp://host/v1"}}, "must be http"),
        ({"name": "a", "backend": {**REMOTE, "url": "http://user:pass@host/v1"}}, "no user, password"),
        ({"name": "a", "backend": {**REMOTE, "urls": ["http://b/v1"]}}, "backend: give either url or urls"),
        ({"name": "a", "backend": {"kind": "remote", "model": "m"}}, "backend: give either url or urls"),
        ({"name": "a", "backend": {**MANY, "urls": []}}, "backend.urls"),
        ({"name": "a", "backend": {**MANY, "urls": ["http://b/v1", "http://b/v1/"]}}, "urls must differ"),
        ({"name": "a", "backend": {**MANY, "urls": ["http://b/v1", "http://u:p@c/v1"]}}, "no user, password"),
        ({"name": "a", "backend": {**MANY, "urls": ["http://b/v1 http://c/v1"]}}, "no spaces"),
        ({"name": "a", "backend": {**ENGINE, "options": {"trust_remote_code": True}}}, "trust_remote_code"),
        ({"name": "a", "backend": {**ENGINE, "memory_gb": 0}}, "backend.memory_gb"),
        ({"name": "a", "backend": {**ENGINE, "tensor_parallel_size": "two"}}, "backend.tensor_parallel_size"),
        ({"name": "a", "backend": {**ENGINE, "autoscaling": {"min": 3, "max": 1}}}, "min 3 is over max 1"),
        ({"name": "base", "backend": PROMPTED}, "names itself"),
        ({"name": "a", "backend": REMOTE, "domains": {"math": 1.5}}, "domains.math"),
        ({"name": "a", "backend": REMOTE, "admitted": ["law"]}, "law"),
        ("just text", "card"),
        (None, "card"),
    ],
)
def test_a_bad_card_is_refused_by_name_of_the_field(card: object, said: str) -> None:
    with pytest.raises(CardError, match=said) as refused:
        parse_card(card)
    assert "s3cret" not in str(refused.value)


def test_a_remote_card_has_one_url_or_several() -> None:
    one, many = (parse_card({"name": "a", "backend": backend}) for backend in (REMOTE, MANY))
    assert isinstance(one.backend, RemoteBackend) and isinstance(many.backend, RemoteBackend)
    assert [address.url for address in one.backend.addresses] == ["http://127.0.0.1:9/v1"]
    assert [address.url for address in many.backend.addresses] == ["http://b:9/v1", "http://c:9/v1"]
    for card in (one, many):
        assert parse_card(json.loads(card.model_dump_json())) == card


def test_a_card_with_one_url_is_kept_as_before_there_were_several() -> None:
    kept = parse_card({"name": "a", "backend": REMOTE}).model_dump(mode="json")["backend"]
    assert kept == {**REMOTE, "api_key_env": None, "retry_safe": False}


def test_a_new_skill_restarts_no_engine_and_a_new_model_does() -> None:
    before = parse_card({"name": "a", "backend": ENGINE, "domains": {"math": 0.5}})
    wiser = parse_card({"name": "a", "backend": ENGINE, "domains": {"math": 0.9}, "cost": {"input": 1}})
    other = parse_card({"name": "a", "backend": {**ENGINE, "model": "lab/other"}})
    assert before.engine_fingerprint == wiser.engine_fingerprint != other.engine_fingerprint


def test_costs_are_relative_to_the_generalist() -> None:
    cards = [
        parse_card({"name": "big", "generalist": True, "backend": ENGINE, "cost": {"active_parameters": 8}}),
        parse_card({"name": "small", "backend": ENGINE, "cost": {"active_parameters": 2}}),
        parse_card({"name": "brief", "backend": {**PROMPTED, "engine": "small"}}),
        parse_card({"name": "unknown", "backend": REMOTE}),
    ]
    assert relative_costs(cards) == {"big": 1.0, "small": 0.25, "brief": 0.25, "unknown": 1.0}


def write(folder: Path, rows: object) -> str:
    file = folder / "pool.yaml"
    file.write_text(rows if isinstance(rows, str) else yaml.safe_dump(rows))
    return str(file)


BASE = {"name": "base", "generalist": True, "backend": ENGINE}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([BASE, {"name": "brief", "backend": {**PROMPTED, "engine": "nobody"}}], "'nobody'.*there are: base"),
        ([BASE, {"name": "a", "backend": PROMPTED}, {"name": "b", "backend": {**PROMPTED, "engine": "a"}}], "'a'"),
        ([BASE, BASE], "2 cards are named 'base'"),
        ([{"name": "a", "backend": ENGINE}], "no card is a generalist"),
        ([], "at least one"),
        ({"name": "a"}, "must be a YAML list"),
        ("- {name: [", "is not YAML"),
        ("- !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_bad_pool_is_refused(tmp_path: Path, rows: object, said: str) -> None:
    with pytest.raises(CardError, match=said):
        load_pool(write(tmp_path, rows))


def test_all_that_is_wrong_with_a_pool_is_said_at_once(tmp_path: Path) -> None:
    rows = [{"name": "UP", "backend": REMOTE}, {"name": "b", "backend": ENGINE, "colour": 1}]
    with pytest.raises(CardError, match=r"(?s)card 1: .*name.*card 2: .*colour"):
        load_pool(write(tmp_path, rows))


def test_an_unknown_pool_names_the_built_in_ones() -> None:
    with pytest.raises(CardError, match="demo, specialists-70b, specialists-7b"):
        load_pool("nosuch")


@pytest.mark.parametrize("name", ["demo", "specialists-7b", "specialists-70b"])
def test_the_built_in_pools_are_whole(name: str) -> None:
    assert name in builtin_pools()
    cards = load_pool(name)
    assert sum(card.generalist for card in cards) == 1
    assert all(card.licence and card.domains for card in cards)
    for card in cards:
        backend = card.backend
        if isinstance(backend, EngineBackend):
            assert card.limits.context_window == backend.max_model_len


def test_the_memory_plan_counts_engines_once_and_says_what_does_not_fit() -> None:
    base = parse_card(BASE)
    brief = parse_card({"name": "brief", "backend": PROMPTED})
    assert plan_memory([base], Machine(8)).host_gb == plan_memory([base, brief], Machine(8)).host_gb
    assert plan_memory([base], Machine(8)).fits
    (problem,) = plan_memory([base], Machine(5)).problems
    assert "base 4" in problem and "5.0" in problem


def test_the_memory_plan_hands_out_whole_devices() -> None:
    wide = parse_card({"name": "wide", "backend": {**ENGINE, "accelerator": "gpu", "tensor_parallel_size": 2,
                                                   "memory_gb": 40, "replicas": 2}})  # fmt: skip
    assert plan_memory([wide], Machine(8, (24,) * 4)).fits
    assert "need 4 CUDA devices" in plan_memory([wide], Machine(8, (24,) * 3)).problems[0]
    assert "20.0 GB on each of 4" in plan_memory([wide], Machine(8, (16,) * 4)).problems[0]
