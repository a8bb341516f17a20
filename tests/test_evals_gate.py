"""The admission gate: published pairs, every clause, and what it writes into the registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from collegium.evals.gate import Gate, GateError, admit, judge_counts, judge_expert
from collegium.evals.records import Record, Sample
from collegium.experts.card import parse_card
from collegium.experts.registry import Registry, SkillRecord

ASTROMLAB_QUESTIONS = 4425  # AstroMLab 1, the questions that AstroMLab 2 reports on
Answers = dict[str, list[tuple[str, bool, bool]]]


@pytest.mark.parametrize(
    ("expert", "base", "failed"),
    [(71.9, 72.9, "does not beat the generalist: -1.0 points"), (76.0, 70.7, None), (64.7, 70.7, "-6.0 points")],
)
def test_astromlab_2_pairs(expert: float, base: float, failed: str | None) -> None:
    right, base_right = (round(share * ASTROMLAB_QUESTIONS / 100) for share in (expert, base))
    verdict = judge_counts("astronomy", right, base_right, ASTROMLAB_QUESTIONS)
    assert verdict.admitted is (failed is None)
    if failed is not None:
        assert verdict.failed is not None
        assert failed in verdict.failed


def test_the_same_lead_on_few_questions_is_not_sure() -> None:
    verdict = judge_counts("astronomy", 76, 71, 100)
    assert verdict.failed is not None
    assert verdict.failed.startswith("its lead is not sure at 95%")


def answers(domains: Answers) -> tuple[list[Sample], list[Record]]:
    """Samples and records from domain -> [(subject, expert right, generalist right)]."""
    samples, records = [], []
    for domain, rows in domains.items():
        for number, (subject, expert, general) in enumerate(rows):
            sample = Sample(f"{domain}-{number}", f"{domain} question {number}", domain, "A", subject=subject)
            samples.append(sample)
            for name, right in (("med", expert), ("general", general)):
                records.append(Record(sample.id, domain, name, name, right, "A"))
    return samples, records


BETTER = [("x", True, False)] * 30 + [("x", True, True)] * 20
NO_BETTER = [("x", True, False)] * 10 + [("x", False, True)] * 10 + [("x", True, True)] * 30


def test_only_the_domains_it_wins_are_admitted() -> None:
    verdicts = {
        verdict.domain: verdict for verdict in judge_expert(*answers({"a": BETTER, "b": NO_BETTER}), "med", "general")
    }
    assert verdicts["a"].admitted
    assert (verdicts["a"].right, verdicts["a"].generalist_right, verdicts["a"].n) == (50, 20, 50)
    assert verdicts["b"].failed == "it does not beat the generalist: +0.0 points"


def test_too_few_questions_is_a_clause() -> None:
    (verdict,) = judge_expert(*answers({"a": BETTER[:29]}), "med", "general")
    assert verdict.failed == "only 29 questions, 30 are needed"


def test_a_loss_in_one_subject_is_a_clause() -> None:
    rows = [("wins", True, False)] * 100 + [("drops", False, True)] * 3 + [("drops", True, True)] * 27
    samples, records = answers({"a": rows})
    (verdict,) = judge_expert(samples, records, "med", "general", Gate(margin=0.05))
    assert verdict.failed == "it loses 10.0 points in drops, over the margin of 5.0"
    assert judge_expert(samples, records, "med", "general", Gate(margin=0.10))[0].admitted


def test_many_domains_make_the_gate_stricter() -> None:
    lucky = [("x", True, False)] * 12 + [("x", False, True)] * 4 + [("x", True, True)] * 30
    assert judge_expert(*answers({"a": lucky}), "med", "general")[0].admitted
    many = judge_expert(*answers({name: lucky if name == "a" else NO_BETTER for name in "abcdef"}), "med", "general")
    assert many[0].failed is not None
    assert "not sure" in many[0].failed


def test_unanswered_questions_are_left_out_and_none_left_is_an_error() -> None:
    samples, records = answers({"a": BETTER})
    dead = [
        Record(record.sample, "a", "med", "", None, error="gone") if record.target == "med" else record
        for record in records
    ]
    with pytest.raises(GateError, match="no question was answered by both"):
        judge_expert(samples, dead, "med", "general")
    with pytest.raises(GateError, match="is the generalist"):
        judge_expert(samples, records, "general", "general")


def test_admit_writes_counts_and_keeps_other_domains(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    backend = {"kind": "remote", "url": "http://127.0.0.1:9", "model": "m"}
    registry.add(parse_card({"name": "general", "generalist": True, "backend": backend}))
    registry.add(parse_card({"name": "med", "backend": backend}))
    registry.set_skills("med", [SkillRecord("med", "law", 3, 9, False), SkillRecord("med", "a", 1, 2, False)])
    admit(registry, "med", "general", *answers({"a": BETTER, "b": NO_BETTER}))
    assert registry.skills() == [
        SkillRecord("general", "a", 20, 50, True),
        SkillRecord("general", "b", 40, 50, True),
        SkillRecord("med", "a", 50, 50, True),
        SkillRecord("med", "b", 40, 50, False),
        SkillRecord("med", "law", 3, 9, False),
    ]
    registry.close()


def test_the_gates_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"confidence 1\.5"):
        Gate(confidence=1.5)
