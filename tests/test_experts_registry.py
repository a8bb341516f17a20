"""The registry holds under many writers and under kill -9, on SQLite and, where there is one, on Postgres."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from collegium.experts.card import Card, parse_card
from collegium.experts.registry import ConflictError, Registry, RegistryError, State, UnknownExpertError

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


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    Registry(f"sqlite:///{file}").close()
    with sqlite3.connect(file) as database:
        database.execute("UPDATE meta SET value = 99 WHERE key = 'schema'")
    with pytest.raises(RegistryError, match="schema 99"):
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
