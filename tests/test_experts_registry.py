"""The registry holds under many writers and under kill -9, on SQLite and, where there is one, on Postgres."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from collegium.experts.card import Card, parse_card
from collegium.experts.registry import (
    ConflictError,
    KeyScope,
    Registry,
    RegistryError,
    SkillRecord,
    State,
    UnknownExpertError,
    key_digest,
)
from sqlalchemy import create_engine

ADD = """
import sys
from collegium.experts.card import parse_card
from collegium.experts.registry import ConflictError, Registry
registry = Registry(sys.argv[1])
card = {"name": sys.argv[2], "description": sys.argv[3],
        "backend": {"kind": "remote", "url": "http://127.0.0.1:1/v1", "model": "m"}}
try:
    registry.add(parse_card(card))
    print("added")
except ConflictError:
    print("conflict")
"""
WRITE_FOREVER = """
import sys
from collegium.experts.card import parse_card
from collegium.experts.registry import Registry
registry = Registry(sys.argv[1])
number = 0
while True:
    number += 1
    names = [f"{sys.argv[2]}-{number}-{part}" for part in ("a", "b")]
    backend = {"kind": "remote", "url": "http://127.0.0.1:1/v1", "model": "m"}
    registry.seed([parse_card({"name": name, "backend": backend})
                   for name in names])
    print(number, flush=True)
"""


def remote(name: str, **fields: object) -> Card:
    return parse_card(
        {"name": name, "backend": {"kind": "remote", "url": "http://127.0.0.1:1/v1", "model": "m"}, **fields}
    )


def prompted(name: str, engine: str) -> Card:
    return parse_card({"name": name, "backend": {"kind": "prompted", "engine": engine, "system_prompt": "Be brief."}})


def postgres_url() -> str:
    url = os.environ.get("COLLEGIUM_TEST_POSTGRES")
    if not url:
        pytest.skip("set COLLEGIUM_TEST_POSTGRES to the URL of an empty database to test the registry on Postgres")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    address = postgres_url()
    registry = Registry(address)
    yield address
    for prompted_first in (True, False):
        for record in registry.experts():
            if (record.card.backend.kind == "prompted") == prompted_first:
                registry.remove(record.name)
                registry.forget(record.name)
    registry.close()


def test_every_write_grows_the_version_and_an_observation_of_nothing_new_does_not(url: str) -> None:
    registry = Registry(url)
    before = registry.version()
    registry.add(remote("math"))
    added = registry.version()
    assert added > before
    registry.observe("math", State.READY, "", "http://127.0.0.1:1/v1")
    ready = registry.version()
    assert ready > added
    registry.observe("math", State.READY, "", "http://127.0.0.1:1/v1")
    assert registry.version() == ready


def test_an_observation_is_of_one_expert_and_of_anything_that_changed(url: str) -> None:
    registry = Registry(url)
    for name in ("a", "b", "c"):
        registry.add(remote(name))
    seen: list[tuple[State, str, str | None]] = [
        (State.READY, "", "http://127.0.0.1:1/v1"),
        (State.STARTING, "", "http://127.0.0.1:1/v1"),
        (State.STARTING, "it pulls its image", "http://127.0.0.1:1/v1"),
        (State.STARTING, "it pulls its image", None),
        (State.FAILED, "no such image", None),
    ]
    for one in seen:
        before = registry.version()
        registry.observe("b", *one)
        assert registry.version() > before
        record = registry.expert("b")
        assert (record.state, record.reason, record.base_url) == one
    version = registry.version()
    registry.observe("b", *seen[-1])
    registry.observe("nobody", State.READY)
    assert registry.version() == version
    assert [registry.expert(name).state for name in ("a", "c")] == [State.REGISTERED] * 2


def test_a_replacement_keeps_what_answers_and_refuses_a_stale_generation(url: str) -> None:
    registry = Registry(url)
    registry.add(remote("math"))
    registry.observe("math", State.READY, "", "http://127.0.0.1:1/v1")
    replaced = registry.replace(remote("math", description="new"), expected_generation=1)
    assert (replaced.generation, replaced.base_url) == (2, "http://127.0.0.1:1/v1")
    with pytest.raises(ConflictError, match="generation 2"):
        registry.replace(remote("math"), expected_generation=1)


def test_removal_waits_for_prompted_users_and_forgetting_for_removal(url: str) -> None:
    registry = Registry(url)
    registry.add(remote("base"))
    registry.add(prompted("brief", "base"))
    with pytest.raises(ConflictError, match="brief"):
        registry.remove("base")
    registry.forget("brief")
    assert registry.expert("brief").routable is False
    registry.remove("brief")
    registry.forget("brief")
    with pytest.raises(UnknownExpertError):
        registry.expert("brief")
    assert registry.remove("base").state is State.DRAINING


def test_forgetting_takes_one_expert_and_its_skills(url: str) -> None:
    registry = Registry(url)
    for name in ("a", "b", "c"):
        registry.add(remote(name))
        registry.set_skills(name, [SkillRecord(name, "math", 1, 2, True)])
        registry.remove(name)
    registry.forget("b")
    assert [record.name for record in registry.experts()] == ["a", "c"]
    assert [skill.expert for skill in registry.skills()] == ["a", "c"]


def test_skills_are_replaced_of_one_expert_as_a_whole(url: str) -> None:
    registry = Registry(url)
    for name in ("a", "b", "c"):
        registry.add(remote(name))
        registry.set_skills(name, [SkillRecord(name, domain, 1, 2, True) for domain in ("law", "math")])
    again = SkillRecord("b", "math", 7, 9, False)
    registry.set_skills("b", [again])
    assert [(skill.expert, skill.domain) for skill in registry.skills()] == [
        ("a", "law"), ("a", "math"), ("b", "math"), ("c", "law"), ("c", "math"),
    ]  # fmt: skip
    assert registry.skills()[2] == again
    with pytest.raises(UnknownExpertError):
        registry.set_skills("nobody", [])


def test_keys_are_kept_with_their_scope_and_removed_one_by_one(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    scope = KeyScope(domains=frozenset({"math"}), concurrent=3)
    registry.add_key("a", "first")
    registry.add_key("b", "second", scope)
    registry.add_key("c", "third")
    assert [(key.name, key.digest) for key in registry.keys()] == [
        ("a", key_digest("first")), ("b", key_digest("second")), ("c", key_digest("third")),
    ]  # fmt: skip
    assert [key.scope for key in registry.keys()] == [KeyScope(), scope, KeyScope()]
    with pytest.raises(ConflictError, match="'b' exists already"):
        registry.add_key("b", "fourth")
    assert registry.remove_key("b") and not registry.remove_key("b")
    assert [key.name for key in registry.keys()] == ["a", "c"]


def test_seeding_adds_what_is_missing_and_replaces_only_what_differs(url: str) -> None:
    registry = Registry(url)
    registry.seed([remote("same"), remote("other")])
    registry.seed([remote("same"), remote("other", description="new"), remote("third")])
    assert [(record.name, record.generation, record.card.description) for record in registry.experts()] == [
        ("other", 2, "new"), ("same", 1, ""), ("third", 1, ""),
    ]  # fmt: skip


def test_seeding_takes_all_cards_or_none(url: str) -> None:
    registry = Registry(url)
    registry.add(remote("old"))
    registry.remove("old")
    with pytest.raises(ConflictError):
        registry.seed([remote("new"), remote("old", description="again")])
    assert [record.name for record in registry.experts()] == ["old"]


def test_a_registry_that_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    file.write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry(f"sqlite:///{file}")
    with pytest.raises(RegistryError, match="accepted: sqlite"):
        Registry("nosuch://host")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_postgres_that_does_not_answer_is_told_in_a_line(scheme: str) -> None:
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    with pytest.raises(RegistryError, match=r"cannot be opened: .*127\.0\.0\.1") as caught:
        Registry(f"{scheme}://nobody@127.0.0.1:1/nothing")
    assert "\n" not in str(caught.value)


def test_a_connection_that_postgres_ended_is_replaced_unnoticed() -> None:
    address = postgres_url()
    registry = Registry(address)
    version = registry.version()
    with create_engine(address.replace("postgresql://", "postgresql+psycopg://")).connect() as other:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        other.exec_driver_sql(f"{ended} WHERE datname = current_database() AND pid <> pg_backend_pid()")
    assert registry.version() == version


def test_what_a_database_says_is_told_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    registry = Registry(f"sqlite:///{file}")
    registry.add(remote("general"))
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE meta")
    with pytest.raises(RegistryError) as reading:
        registry.version()
    assert str(reading.value) == "the registry cannot be read: no such table: meta"
    with pytest.raises(RegistryError) as writing:
        registry.remove("general")
    assert str(writing.value) == "the registry cannot be written: no such table: meta"


def test_sqlite_keeps_what_was_written_and_says_where_a_file_is_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "registry.db"
    url = f"sqlite:///{file}"
    with caplog.at_level(logging.WARNING, "collegium.registry"):
        registry = Registry(url)
        registry.add(remote("general"))
        assert (Registry(url).version(), [record.name for record in Registry(url).experts()]) == (1, ["general"])
        assert caplog.messages == []
        assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)
        empty = tmp_path / "empty.db"
        empty.touch()
        Registry(f"sqlite:///{empty}")
    assert caplog.messages == [f"{empty} is an empty file: a new registry without experts and keys begins there"]


@pytest.mark.parametrize("schema", [0, 99])
def test_another_schema_is_refused(tmp_path: Path, schema: int) -> None:
    file = tmp_path / "registry.db"
    Registry(f"sqlite:///{file}").close()
    with sqlite3.connect(file) as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (schema,))
    with pytest.raises(RegistryError, match=f"schema {schema},"):
        Registry(f"sqlite:///{file}")


def test_a_card_of_a_newer_version_is_refused_as_such(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    registry = Registry(f"sqlite:///{file}")
    registry.add(remote("general"))
    with sqlite3.connect(file) as database:
        database.execute("UPDATE experts SET card = json_set(card, '$.teleport', 1)")
    with pytest.raises(RegistryError, match=r"cannot read.*teleport"):
        registry.experts()
    registry.close()


def test_of_many_processes_that_add_one_name_exactly_one_wins(url: str) -> None:
    Registry(url).close()
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD, url, "math", str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    said = [process.communicate()[0].strip() for process in processes]
    assert sorted(said) == ["added", "conflict", "conflict"]
    assert Registry(url).expert("math").card.description == str(said.index("added"))


def test_of_many_threads_that_add_one_name_exactly_one_wins(url: str) -> None:
    registry = Registry(url)

    def add(number: int) -> bool:
        try:
            registry.add(remote("math", description=str(number)))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(add, range(32)))
    assert won.count(True) == 1
    assert registry.expert("math").card.description == str(won.index(True))


def test_of_many_that_open_a_new_registry_at_once_all_may_use_it(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def version(url: str) -> int:
        together.wait()
        return Registry(url).version()

    with ThreadPoolExecutor(8) as pool:
        for turn in range(5):
            assert list(pool.map(version, [f"sqlite:///{tmp_path / str(turn)}.db"] * 8)) == [0] * 8


def test_a_killed_writer_leaves_whole_records_and_all_it_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    url = f"sqlite:///{file}"
    Registry(url).close()
    for turn in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, url, f"w{turn}"], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(3 + turn)]
        time.sleep(0.003 * turn)  # another point of the transaction each time; any of them must be harmless
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split("\n") if line.isdigit()]
        writer.wait()
        names = {record.name for record in Registry(url).experts()}
        for number in acknowledged:
            assert {f"w{turn}-{number}-a", f"w{turn}-{number}-b"} <= names
        assert all(name[:-1] + other in names for name in names for other in "ab"), "a pair was written by half"
    assert sqlite3.connect(file).execute("PRAGMA integrity_check").fetchone() == ("ok",)
