"""API keys: scoped, rotated and revoked while the edge serves; old registries; the admin scope; the command line."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner, Result
from collegium.cli.main import main
from collegium.experts.card import Card
from collegium.experts.registry import ExpertRecord, KeyRecord, KeyScope, Registry, key_digest
from collegium.experts.state import StateFolder
from collegium.serve.admin import create_admin_app
from collegium.serve.auth import Keyring
from echo_expert import served
from serve_kit import Running, running, specialist

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"COLLEGIUM_STATE": str(tmp_path / "state"), "COLUMNS": "200"})

    return invoke


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(StateFolder(tmp_path / "state").registry_url)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def until(edge: Running, secret: str, status: int) -> None:
    """Wait for the edge to answer a key so; a change must arrive within a second, four looks at the registry."""
    deadline = time.monotonic() + 60
    while (seen := edge.get("/v1/models", headers=bearer(secret)).status_code) != status:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def models(edge: Running, secret: str) -> set[str]:
    return {model["id"] for model in edge.get("/v1/models", headers=bearer(secret)).json()["data"]}


def test_a_key_of_domains_may_use_the_experts_admitted_to_them(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.registry.add_key("team", "sk-team", KeyScope(domains=frozenset({"math"})))
        edge.pool.registry.add_key("both", "sk-both", KeyScope(frozenset({"general"}), frozenset({"math"})))
        until(edge, "sk-nobody", 401)
        assert models(edge, "sk-team") == {"auto", "math"}
        assert models(edge, "sk-both") == {"auto", "general", "math"}
        edge.pool.add(specialist("algebra", edge.echo.url, "math"))
        while models(edge, "sk-team") != {"auto", "algebra", "math"}:
            time.sleep(0.02)
        asked = edge.post("/v1/route", json={"text": "python bug"}, headers=bearer("sk-both")).json()
        excluded = {one["expert"]: one["excluded"] for one in asked["experts"]}
        assert asked["expert"] == "general"
        assert excluded["coding"] == "denied by the caller's key"
        assert edge.get("/v1/models/coding", headers=bearer("sk-both")).status_code == 404


def test_a_rotated_key_keeps_its_scope_and_the_old_secret_ends(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        scope = KeyScope(frozenset({"general"}), requests_per_minute=100)
        edge.pool.registry.add_key("team", "sk-1", scope)
        until(edge, "sk-nobody", 401)
        assert edge.pool.registry.rotate_key("team", "sk-2", overlap=3600)
        until(edge, "sk-2", 200)
        assert models(edge, "sk-1") == models(edge, "sk-2") == {"auto", "general"}
        assert edge.pool.registry.rotate_key("team", "sk-3")
        until(edge, "sk-3", 200)
        assert edge.get("/v1/models", headers=bearer("sk-1")).status_code == 401
        assert edge.get("/v1/models", headers=bearer("sk-2")).status_code == 401
        assert [key.scope for key in edge.pool.registry.keys()] == [scope]


def test_revoking_the_last_key_does_not_open_the_endpoint(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        edge.pool.registry.add_key("team", "sk-team")
        until(edge, "sk-nobody", 401)
        assert edge.pool.registry.revoke_key("team")
        assert not edge.pool.registry.revoke_key("team")
        assert not edge.pool.registry.rotate_key("team", "sk-new")
        until(edge, "sk-team", 401)
        assert edge.chat("hello").status_code == 401
        edge.pool.registry.add_key("team", "sk-again")
        until(edge, "sk-again", 200)


def test_an_overlap_ends_by_the_clock() -> None:
    record = KeyRecord("a", key_digest("new"), previous=key_digest("old"), previous_until=time.time() - 1)
    assert Keyring([record]).find("old") is None
    assert Keyring([record]).find("new") == record
    assert Keyring([record]).find("") is None and Keyring([record]).find(None) is None


def test_an_admin_key_opens_the_admin_api_only(tmp_path: Path) -> None:
    with running(tmp_path) as edge:
        registry = edge.pool.registry
        registry.add_key("ops", "sk-ops", KeyScope(admin=True))
        registry.add_key("team", "sk-team")
        until(edge, "sk-ops", 403)
        refused = edge.get("/v1/models", headers=bearer("sk-ops")).json()["error"]
        assert (refused["type"], refused["code"]) == ("permission_error", "key_not_allowed")

        def nothing(card: Card, existing: Sequence[ExpertRecord]) -> None:
            return None

        with served(create_admin_app(registry, "root", nothing)) as url:
            answers = {
                key: httpx2.get(f"{url}/admin/experts", headers=bearer(key), trust_env=False).status_code
                for key in ("root", "sk-ops", "sk-team", "sk-wrong")
            }
        assert answers == {"root": 200, "sk-ops": 200, "sk-team": 401, "sk-wrong": 401}


def test_a_registry_from_before_there_were_scopes_opens(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    Registry(f"sqlite:///{file}").close()
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE api_key_scopes")
        digest = key_digest("sk-old")
        connection.execute("INSERT INTO api_keys VALUES ('old', ?, '[\"math\"]')", (digest,))
    registry = Registry(f"sqlite:///{file}")
    assert registry.keys() == [KeyRecord("old", digest, KeyScope(frozenset({"math"})))]
    assert registry.rotate_key("old", "sk-new", overlap=60)
    assert registry.keys()[0].previous == digest
    assert registry.revoke_key("old")
    assert registry.keys()[0].revoked and key_digest("sk-new") != registry.keys()[0].digest


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "concurrent"])
def test_a_limit_of_nothing_is_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=f"{limit} is 0"):
        KeyScope(**{limit: 0})  # type: ignore[arg-type]


def test_the_command_line_adds_lists_rotates_and_revokes(run: Run, registry: Registry) -> None:
    limits = [
        "--domains",
        "math, law",
        "--requests-per-minute",
        "60",
        "--tokens-per-minute",
        "9000",
        "--concurrent",
        "4",
    ]
    added = run("keys", "add", "team", *limits)
    first = added.output.strip()
    assert added.exit_code == 0 and first.startswith("sk-")
    assert [key.digest for key in registry.keys()] == [key_digest(first)]
    assert registry.keys()[0].scope == KeyScope(None, frozenset({"math", "law"}), False, 60, 9000, 4)
    assert "experts of law, math" in run("keys", "list").output
    assert run("keys", "add", "team").exit_code == 1

    second = run("keys", "rotate", "team", "--overlap", "60").output.strip()
    key = registry.keys()[0]
    assert (key.digest, key.previous, key.scope.concurrent) == (key_digest(second), key_digest(first), 4)

    assert run("keys", "revoke", "team").output == "revoked team\n"
    assert json.loads(run("keys", "list", "--json").output)[0]["revoked"]
    assert run("keys", "revoke", "team").exit_code == 1
    forgotten = run("keys", "revoke", "team", "--forget")
    assert "no key is left" in forgotten.output and registry.keys() == []


def test_the_command_line_refuses_what_cannot_be_meant(run: Run, registry: Registry) -> None:
    unknown = run("keys", "add", "team", "--experts", "nobody")
    assert unknown.exit_code == 1 and "nobody" in unknown.output
    assert run("keys", "add", "team", "--admin", "--domains", "math").exit_code == 1
    assert run("keys", "add", "team", "--concurrent", "0").exit_code == 2
    assert "known: none" in run("keys", "rotate", "team").output
    assert registry.keys() == []
