"""Runs of the same questions judged together, and mixed tasks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from click.testing import CliRunner, Result
from collegium.cli.eval import command
from collegium.evals.records import Record, RunFolder, Sample
from collegium.evals.runner import Plan

CHOICES = ("ab", "abcdefgh")


def test_one_run_of_the_experts_and_one_of_auto_are_judged_together(tmp_path: Path) -> None:
    asked = [Sample(f"q{n}", f"question {n}", "math" if n % 2 else "law", "B", CHOICES) for n in range(40)]
    experts = _run(tmp_path / "experts", asked, "general", "mathematician")
    auto = _run(tmp_path / "auto", asked[:30], "auto")
    found = json.loads(_judge(experts, auto, "--json").stdout)
    assert found["n"] == 30 and found["dropped"] == 0
    assert found["accuracies"]["routed"] == 0.5 and found["accuracies"]["generalist"] == 0.0
    assert found["traffic"] == {"general": 0.5, "mathematician": 0.5}
    cells = {(cell["expert"], cell["domain"]): cell for cell in found["matrix"]}
    assert cells["mathematician", "math"]["right"]["value"] == 1.0
    assert cells["mathematician", "law"]["against_generalist"]["gain"]["value"] == 0.0
    shown = _judge(experts, auto).stdout
    assert "| right, and v. generalist | all | law | math |" in shown and "100.0 (+100.0 [+100.0, +100.0])" in shown
    # By the character the long second choice wins everywhere.
    assert json.loads(_judge(experts, auto, "--json", "--per-character").stdout)["accuracies"]["generalist"] == 1.0


def test_runs_that_asked_in_different_ways_are_refused(tmp_path: Path) -> None:
    asked = [Sample(f"q{n}", f"question {n}", "math", "B", CHOICES) for n in range(4)]
    other = _run(tmp_path / "letters", asked, "auto", score="letter")
    refused = _judge(_run(tmp_path / "texts", asked, "general"), other)
    assert refused.exit_code == 1 and "the runs differ in how they asked" in refused.output


def test_a_mixed_task_has_its_domains_and_its_parts_share_no_question(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "question": f"question {n}", "choices": CHOICES, "answer_index": 1, "subject": "s",
         "domain": "math" if n % 2 else "law", "split": "train" if n < 4 else "test"}
        for n in range(200)
    ]  # fmt: skip
    rows.append({**rows[10], "id": "twice"})
    rows.append({**rows[10], "id": "long", "question": "question " * 50})
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = []
    for part in ("0-0.5", "0.5-1"):
        out = tmp_path / f"{part}.jsonl"
        options = ["mix", "--out", str(out), "--part", part, "--draw", "maths=200/60", "--draw", "law=20/60"]
        sources = [f"--from=maths={source}", f"--from=law={source}"]
        assert CliRunner().invoke(command, [*options, *sources]).exit_code == 1  # no row is of the domain "maths"
        options[6], sources[0] = "math=200/60", f"--from=math={source}"
        assert CliRunner().invoke(command, [*options, *sources], catch_exceptions=False).exit_code == 0
        parts.append([json.loads(line) for line in out.read_text().splitlines()])
    first, second = ({row["question"] for row in part} for part in parts)
    assert not first & second and len(first) == len(parts[0])
    drawn = [row["id"] for part in parts for row in part if row["domain"] == "math"]
    assert sorted(drawn, key=int) == [str(n) for n in range(5, 200, 2)]
    assert all(sum(row["domain"] == "law" for row in part) == 20 for part in parts)

    rest = tmp_path / "rest.jsonl"
    options = ["mix", "--out", str(rest), "--draw", "math=200/60", f"--from=math={source}", "--without"]
    assert CliRunner().invoke(command, [*options, str(tmp_path / "0-0.5.jsonl")]).exit_code == 0
    left = {json.loads(line)["question"] for line in rest.read_text().splitlines()}
    assert left == {row["question"] for row in parts[1] if row["domain"] == "math"}


def _run(folder: Path, samples: list[Sample], *targets: str, score: str = "text") -> Path:
    """The mathematician is right in maths, where `auto` asks it; all others prefer the first choice, by the sum."""
    plan = asdict(Plan("choice", targets, score="text" if score == "text" else "letter"))
    with RunFolder(folder).open(plan, samples) as writer:
        for sample in samples:
            for target in targets:
                right = sample.domain == "math" and target != "general"
                expert = ("mathematician" if right else "general") if target == "auto" else target
                logs = (-2.0, -1.0) if right else (-2.0, -4.0)
                writer.append(
                    Record(sample.id, sample.domain, target, expert, right, "AB"[right], logprobs=logs, router="r-1")
                )
    return folder


def _judge(*arguments: Path | str) -> Result:
    return CliRunner().invoke(command, ["judge", *map(str, arguments), "--generalist", "general"])
