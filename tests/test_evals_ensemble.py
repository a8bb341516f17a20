"""Ensembles of recorded runs: right answers, experts asked and cost, against values worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from collegium.evals.ensemble import ensemble_curve, read_choices
from collegium.evals.records import Record, RunFolder, Sample

EXPERTS = ["base", "math"]
# p(choice) of base and math for each question, and the right letter.
CASES = [
    ((0.6, 0.4), (0.1, 0.9), "B"),  # math alone and the mix are right
    ((0.9, 0.1), (0.4, 0.6), "A"),  # the mix is right, math alone is not
    ((0.5, 0.3, 0.2), (0.2, 0.2, 0.6), "C"),
    ((0.2, 0.8), (0.7, 0.3), "B"),
]
WEIGHTS = np.array([[0.2, 0.8], [0.4, 0.6], [0.5, 0.5], [1.0, 0.0]])


def run() -> tuple[list[Sample], list[Record]]:
    samples, records = [], []
    for number, (base, mathematician, target) in enumerate(CASES):
        choices = tuple("abc"[: len(base)])
        samples.append(Sample(f"q{number}", f"question {number}", "math", target, choices))
        for name, chances, cost in (("base", base, 1.0), ("math", mathematician, 3.0)):
            letter = "ABC"[chances.index(max(chances))]
            logs = tuple(math.log(chance) - 40 for chance in chances)
            records.append(Record(f"q{number}", "math", name, name, letter == target, letter, "", logs, cost=cost))
    return samples, records


def test_a_curve_worked_by_hand() -> None:
    alone, both = ensemble_curve(read_choices(*run(), EXPERTS), WEIGHTS, "base")
    assert (alone.k, alone.calls, alone.accuracy.value) == (1, 1.0, 0.5)  # right: 1 and 4; third goes to base by order
    assert alone.cost == pytest.approx((3 + 3 + 1 + 1) / 4)
    assert both.accuracy.value == 1.0 and both.calls == pytest.approx(7 / 4)
    assert both.cost == pytest.approx((4 + 4 + 4 + 1) / 4)
    assert both.against_routed.value == pytest.approx(0.5)
    assert both.against_generalist.value == pytest.approx(0.5)


def test_questions_that_one_expert_did_not_score_are_left_out() -> None:
    samples, records = run()
    kept = read_choices(samples, [one for one in records if (one.sample, one.target) != ("q1", "math")], EXPERTS)
    assert [sample.id for sample in kept.table.samples] == ["q0", "q2", "q3"]
    assert kept.logprobs.shape == (3, 2, 3) and kept.logprobs[0, 0, 2] == -math.inf
    with pytest.raises(ValueError, match="no sample has log-probabilities"):
        read_choices(samples, records, ["base", "nobody"])


def test_a_runs_folder_gives_the_same(tmp_path: Path) -> None:
    samples, records = run()
    folder = RunFolder(tmp_path / "run")
    with folder.open({}, samples) as writer:
        for record in records:
            writer.append(record)
    again = read_choices(folder.samples(), folder.records(), EXPERTS)
    np.testing.assert_array_equal(again.logprobs, read_choices(samples, records, EXPERTS).logprobs)
