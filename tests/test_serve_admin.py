"""The admin API on a real socket, over a real registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
from collegium.experts.card import Card, CardError
from collegium.experts.registry import ExpertRecord, Registry, State
from collegium.serve.admin import create_admin_app
from echo_expert import served

BACKEND = {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}


def no_unreachable(card: Card, existing: Sequence[ExpertRecord]) -> None:
    if card.description == "unreachable":
        raise CardError(f"card {card.name!r}: the URL does not answer ({len(existing)} others do)")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    yield opened
    opened.close()


@pytest.fixture
def admin(registry: Registry) -> Iterator[httpx2.Client]:
    with (
        served(create_admin_app(registry, "admin-key", no_unreachable)) as url,
        httpx2.Client(base_url=url, trust_env=False, headers={"authorization": "Bearer admin-key"}) as client,
    ):
        yield client


def data(name: str, **changes: object) -> dict[str, object]:
    return {"name": name, "backend": BACKEND, **changes}


def test_an_expert_lives_and_goes(admin: httpx2.Client, registry: Registry) -> None:
    added = admin.post("/admin/experts", json=data("one"))
    assert (added.status_code, added.headers["etag"], added.headers["location"]) == (201, '"1"', "/admin/experts/one")
    assert added.json()["state"] == "registered"
    assert [one["name"] for one in admin.get("/admin/experts").json()["data"]] == ["one"]

    changed = data("one", domains={"math": 0.7})
    replaced = admin.put("/admin/experts/one", json=changed, headers={"if-match": '"1"'})
    assert (replaced.status_code, replaced.headers["etag"]) == (200, '"2"')
    assert registry.expert("one").card.domains == {"math": 0.7}
    stale = admin.put("/admin/experts/one", json=changed, headers={"if-match": '"1"'})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "registry_version_conflict")
    assert registry.expert("one").generation == 2

    gone = admin.delete("/admin/experts/one")
    assert (gone.status_code, gone.json()["state"], gone.json()["removed"]) == (202, "draining", True)
    assert registry.expert("one").state is State.DRAINING


def test_yaml_is_as_good_as_json(admin: httpx2.Client, registry: Registry) -> None:
    text = "name: two\nbackend:\n  kind: remote\n  url: http://127.0.0.1:9/v1\n  model: m\n"
    answer = admin.post("/admin/experts", content=text, headers={"content-type": "application/yaml"})
    assert answer.status_code == 201
    assert registry.expert("two").card.backend.kind == "remote"


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"{", "application/json", "not valid JSON"),
        (b'{"name": "a", "name": "b"}', "application/json", "twice"),
        (b"[]", "application/json", "card"),
        (b'{"name": "x"}', "application/json", "backend"),
        (b"a: [1", "application/yaml", "not acceptable YAML"),
        (b"a: 1\na: 2", "application/yaml", "twice"),
        (b"a: &x [1]\nb: *x", "application/yaml", "aliases"),
        (b"!!python/object/apply:os.system ['true']", "application/yaml", "not acceptable YAML"),
        (b"\xff", "application/yaml", "UTF-8"),
    ],
)
def test_bad_bodies_change_nothing(
    admin: httpx2.Client, registry: Registry, content: bytes, kind: str, says: str
) -> None:
    before = registry.version()
    answer = admin.post("/admin/experts", content=content, headers={"content-type": kind})
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert registry.version() == before


def test_cards_that_cannot_work(admin: httpx2.Client, registry: Registry) -> None:
    unknown = admin.post("/admin/experts", json=data("one", colour="red"))
    assert unknown.json()["error"]["message"] == "card 'one': colour is not a known key"
    unreachable = admin.post("/admin/experts", json=data("one", description="unreachable"))
    assert (unreachable.status_code, unreachable.json()["error"]["param"]) == (400, "card")
    assert registry.experts() == []


def test_conflicts_and_unknown_names(admin: httpx2.Client) -> None:
    admin.post("/admin/experts", json=data("one"))
    again = admin.post("/admin/experts", json=data("one"))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_exists")
    prompted = {"kind": "prompted", "engine": "one", "system_prompt": "x"}
    admin.post("/admin/experts", json={"name": "user", "backend": prompted})
    used = admin.delete("/admin/experts/one")
    assert (used.status_code, used.json()["error"]["code"]) == (409, "in_use")
    assert admin.get("/admin/experts/nobody").status_code == 404
    assert admin.put("/admin/experts/nobody", json=data("nobody")).status_code == 404
    assert admin.put("/admin/experts/one", json=data("other")).status_code == 400
    assert admin.put("/admin/experts/one", json=data("one"), headers={"if-match": "new"}).status_code == 400
    assert admin.get("/elsewhere").json()["error"]["code"] == "not_found"
    assert admin.patch("/admin/experts").json()["error"]["code"] == "method_not_allowed"


def test_of_many_adds_of_one_name_one_wins(admin: httpx2.Client, registry: Registry) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(admin.post("/admin/experts", json=data("one")).status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201] + [409] * 7


@pytest.mark.parametrize("header", ["", "Bearer wrong", "Basic admin-key", "admin-key"])
def test_the_admin_key_is_needed(admin: httpx2.Client, registry: Registry, header: str) -> None:
    for method, path in (("GET", "/admin/experts"), ("POST", "/admin/experts"), ("DELETE", "/admin/experts/one")):
        answer = admin.request(method, path, headers={"authorization": header}, json=data("one"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert registry.experts() == []
    assert admin.get("/admin/health", headers={"authorization": ""}).json() == {"status": "ok"}
