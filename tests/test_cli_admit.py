"""`collegium experts admit`: answers from several runs, texts judged by the character, and what is written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from collegium.cli.experts import command
from collegium.evals.records import Record, RunFolder, Sample
from collegium.evals.runner import Plan
from collegium.experts.card import parse_card
from collegium.experts.registry import Registry, SkillRecord

SAMPLES = [
    Sample(f"{domain}-{n}", f"{domain} question {n}", domain, "B", choices=("no", "eight characters or more"))
    for domain in ("math", "law")
    for n in range(40)
]
RIGHT_BY_CHARACTER = (-2.0, -3.0)  # by the sum the first choice, a character the second, which is right
WRONG = (-0.1, -90.0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    backend = {"kind": "remote", "url": "http://127.0.0.1:9", "model": "m"}
    registry.add(parse_card({"name": "general", "generalist": True, "backend": backend}))
    registry.add(parse_card({"name": "maths", "backend": backend}))
    registry.close()
    return folder


def run(folder: Path, target: str, samples: list[Sample], right: str = "") -> str:
    """`target` is right, by the character, on the domain `right` only."""
    with RunFolder(folder).open(asdict(Plan("choice", (target,), score="text")), samples) as writer:
        for sample in samples:
            logs = RIGHT_BY_CHARACTER if sample.domain == right else WRONG
            writer.append(Record(sample.id, sample.domain, target, target, False, "A", logprobs=logs))
    return str(folder)


def admit(state: Path, *runs: str, more: tuple[str, ...] = ()) -> Result:
    options = [option for folder in runs for option in ("--run", folder)]
    registry = ["--registry", f"sqlite:///{state / 'registry.db'}"]
    return CliRunner().invoke(command, ["admit", "maths", *options, "--json", "--state", str(state), *registry, *more])


def test_answers_of_two_runs_are_judged_together_and_by_the_character(state: Path, tmp_path: Path) -> None:
    both = (run(tmp_path / "general", "general", SAMPLES), run(tmp_path / "maths", "maths", SAMPLES, "math"))
    by_sum = admit(state, *both)
    assert by_sum.exit_code == 0, by_sum.output
    assert not any(verdict["admitted"] for verdict in json.loads(by_sum.output))
    result = admit(state, *both, more=("--per-character",))
    verdicts = {verdict["domain"]: verdict for verdict in json.loads(result.output)}
    assert {domain: verdict["admitted"] for domain, verdict in verdicts.items()} == {"math": True, "law": False}
    assert (verdicts["math"]["right"], verdicts["math"]["generalist_right"], verdicts["math"]["n"]) == (40, 0, 40)
    registry = Registry(f"sqlite:///{state / 'registry.db'}")
    assert registry.skills() == [
        SkillRecord("general", "law", 0, 40, True),
        SkillRecord("general", "math", 0, 40, True),
        SkillRecord("maths", "law", 0, 40, False),
        SkillRecord("maths", "math", 40, 40, True),
    ]
    registry.close()


def test_only_questions_of_both_runs_count(state: Path, tmp_path: Path) -> None:
    general = run(tmp_path / "general", "general", SAMPLES)
    some = run(tmp_path / "maths", "maths", SAMPLES[:35], "math")
    (verdict,) = json.loads(admit(state, general, some, more=("--per-character",)).output)
    assert (verdict["domain"], verdict["n"], verdict["admitted"]) == ("math", 35, True)


def test_a_run_without_the_expert_changes_nothing(state: Path, tmp_path: Path) -> None:
    result = admit(state, run(tmp_path / "general", "general", SAMPLES), more=("--per-character",))
    assert result.exit_code == 1
    assert "no question was answered by both" in result.output
    registry = Registry(f"sqlite:///{state / 'registry.db'}")
    assert registry.skills() == []
    registry.close()
