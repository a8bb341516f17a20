"""The command line: what it prints, its exit codes, and that bad input changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from collegium.cli.main import COMMANDS, main
from collegium.evals.records import Record, RunFolder, Sample
from collegium.experts.card import parse_card
from collegium.experts.registry import Registry, State
from collegium.experts.state import StateFolder
from echo_expert import EchoExpert

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"COLLEGIUM_STATE": str(tmp_path / "state")})

    return invoke


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(StateFolder(tmp_path / "state").registry_url)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoExpert]:
    with EchoExpert() as expert:
        yield expert


def _write(folder: Path, card: object) -> str:
    file = folder / "card.yaml"
    file.write_text(yaml.safe_dump(card))
    return str(file)


def _remote(url: str, **more: object) -> dict[str, object]:
    return {"name": "legal", "backend": {"kind": "remote", "url": url, "model": "echo"}, **more}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(run: Run, name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert shown.output.startswith("Usage:")


def test_an_unknown_command_is_named(run: Run) -> None:
    shown = run("severe")
    assert shown.exit_code == 2
    assert "severe" in shown.output


def test_an_expert_is_added_listed_shown_and_removed(
    run: Run, registry: Registry, echo: EchoExpert, tmp_path: Path
) -> None:
    added = run("experts", "add", _write(tmp_path, _remote(echo.url, domains={"law": 0.8})))
    assert (added.exit_code, added.output) == (0, "legal: registered, generation 1\n")
    assert [row["name"] for row in json.loads(run("experts", "list", "--json").output)] == ["legal"]
    assert json.loads(run("experts", "show", "legal", "--json").output)["card"]["domains"] == {"law": 0.8}
    assert yaml.safe_load(run("experts", "show", "legal").output)["state"] == "registered"
    assert run("experts", "remove", "legal").exit_code == 0
    assert registry.expert("legal").removed


def test_the_list_says_how_many_of_an_experts_urls_answer(run: Run, registry: Registry) -> None:
    backend = {"kind": "remote", "urls": ["http://a/v1", "http://b/v1"], "model": "m"}
    registry.add(parse_card({"name": "legal", "backend": backend}))
    assert "0 of 2 URLs" in run("experts", "list").output
    registry.observe("legal", State.READY, "1 of 2 URLs answer; b is dead", "http://a/v1")
    assert "1 of 2 URLs" in run("experts", "list").output


def test_a_replaced_expert_gets_a_new_generation(
    run: Run, registry: Registry, echo: EchoExpert, tmp_path: Path
) -> None:
    run("experts", "add", _write(tmp_path, _remote(echo.url)))
    again = run("experts", "add", _write(tmp_path, _remote(echo.url, domains={"law": 0.9})))
    assert again.exit_code == 1 and "'legal' is registered already" in again.output
    replaced = run("experts", "add", "--replace", _write(tmp_path, _remote(echo.url, domains={"law": 0.9})))
    assert replaced.exit_code == 0
    assert registry.expert("legal").generation == 2


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ({"name": "legal"}, "backend"),
        (_remote("http://127.0.0.1:9/v1"), "127.0.0.1:9"),
        (_remote("file:///etc/passwd"), "http://"),
        (_remote("http://127.0.0.1:9/v1", colour="blue"), "colour is not a known key"),
        (_remote("http://127.0.0.1:9/v1", admitted=["law"]), "admitted"),
        ({"name": "x", "backend": {"kind": "prompted", "engine": "nobody", "system_prompt": "Be brief."}}, "nobody"),
        (
            {
                "name": "x",
                "backend": {"kind": "engine", "model": "/no/such/folder", "accelerator": "cpu", "memory_gb": 1},
            },
            "/no/such/folder",
        ),
        ([], "card"),
    ],
    ids=["no backend", "unreachable", "file url", "unknown key", "undeclared", "no engine", "no model", "a list"],
)
def test_a_bad_card_is_refused_and_changes_nothing(
    run: Run, registry: Registry, tmp_path: Path, card: object, says: str
) -> None:
    before = registry.version()
    refused = run("experts", "add", _write(tmp_path, card))
    assert refused.exit_code == 1
    assert says in refused.output
    assert (registry.version(), registry.experts()) == (before, [])


def test_a_file_that_is_no_yaml_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_bytes(b"\xff\xfe{")
    refused = run("experts", "add", str(file))
    assert refused.exit_code == 1
    assert str(file) in refused.output


def test_an_unknown_expert_is_named(run: Run) -> None:
    for action in ("show", "remove"):
        refused = run("experts", action, "nobody")
        assert refused.exit_code == 1
        assert "no expert is named 'nobody'" in refused.output


def test_an_expert_is_admitted_only_where_a_run_shows_its_lead(
    run: Run, registry: Registry, echo: EchoExpert, tmp_path: Path
) -> None:
    for card in (_remote(echo.url), {**_remote(echo.url), "name": "general", "generalist": True}):
        run("experts", "add", _write(tmp_path, card))
    samples = [Sample(f"{domain}-{n}", "?", domain, "A") for domain in ("law", "math") for n in range(60)]
    with RunFolder(tmp_path / "run").open({}, samples) as writer:
        for number, sample in enumerate(samples):
            better = sample.domain == "law" and number % 2 == 0
            for target, correct in (("legal", better or number % 4 == 1), ("general", number % 4 == 1)):
                writer.append(Record(sample.id, sample.domain, target, target, correct, "A" if correct else "B"))
    judged = run("experts", "admit", "legal", "--run", str(tmp_path / "run"), "--json")
    assert judged.exit_code == 0, judged.output
    verdicts = {row["domain"]: row for row in json.loads(judged.output)}
    assert verdicts["law"]["admitted"] and verdicts["law"]["right"] == 45
    assert not verdicts["math"]["admitted"] and "does not beat the generalist" in verdicts["math"]["failed"]
    written = {(skill.expert, skill.domain): skill for skill in registry.skills()}
    assert written["legal", "law"].admitted and not written["legal", "math"].admitted
    assert (written["general", "law"].right, written["general", "law"].total) == (15, 60)


def test_an_admission_without_records_of_the_expert_is_refused(
    run: Run, registry: Registry, echo: EchoExpert, tmp_path: Path
) -> None:
    run("experts", "add", _write(tmp_path, _remote(echo.url, generalist=True)))
    (tmp_path / "empty").mkdir()
    refused = run("experts", "admit", "legal", "--run", str(tmp_path / "empty"))
    assert refused.exit_code == 1 and refused.output.startswith("Error: ")
    assert registry.skills() == []


def test_a_damaged_registry_is_a_sentence_not_a_trace(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "registry.db").write_bytes(b"this is no database" * 500)
    refused = run("experts", "list")
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: the registry cannot be opened")


def test_serve_without_a_pool_or_experts_says_what_to_do(run: Run) -> None:
    refused = run("serve", "--port", "18461", "--admin-port", "18462")
    assert refused.exit_code == 1
    assert "collegium serve demo" in refused.output


def test_serve_names_the_builtin_pools_when_one_is_unknown(run: Run) -> None:
    refused = run("serve", "specialists-900b")
    assert refused.exit_code == 1
    for name in ("demo", "specialists-7b", "specialists-70b"):
        assert name in refused.output


def test_ask_says_that_nothing_listens(run: Run) -> None:
    refused = run("ask", "hello", "--endpoint", "http://127.0.0.1:9/v1")
    assert refused.exit_code == 1
    assert "collegium serve" in refused.output


def test_ask_streams_the_answer_and_names_the_expert(run: Run, echo: EchoExpert) -> None:
    answered = run("ask", "how are you", "--endpoint", echo.url)
    assert answered.exit_code == 0
    assert "how are you" in answered.output


def test_ask_tells_an_answer_that_broke_off(run: Run, echo: EchoExpert) -> None:
    for fault in ("!silent answer", "!midway answer"):
        broken = run("ask", fault, "--endpoint", echo.url)
        assert broken.exit_code == 1
        assert "broke off" in broken.output
