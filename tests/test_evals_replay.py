"""Replay on a pool made so that the right answers are known, and the parts it is computed from."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collegium.cli.eval import command
from collegium.evals.calls import equal_vote, has_answers, walk
from collegium.evals.crossval import choose, cross_validate, given_posteriors
from collegium.evals.curve import aiq, apgr, pareto_hull
from collegium.evals.outcomes import OutcomesError, read_outcomes
from collegium.evals.records import Record, Sample
from collegium.evals.replay import Judgement, judge
from collegium.evals.report import write_report
from collegium.evals.table import Price, Table, build_table, fold_of, parse_prices
from collegium.router.consensus import CallPolicy, Vote, consensus, next_call
from collegium.router.decision import Candidate, Policy, decide
from collegium.router.posterior import Posterior
from collegium.router.skills import soft_skills
from hypothesis import given
from hypothesis import strategies as st

DATA = Path(os.environ.get("COLLEGIUM_DATA", Path(__file__).parents[2] / "shared" / "data"))
EXPERTS = ("specialist", "all-rounder", "weak")


def pool(count: int = 400, seed: int = 0) -> Table:
    """Two domains: the specialist is right 90 % of the time in maths and 20 % elsewhere, the all-rounder 60 %."""
    rng = np.random.default_rng(seed)
    samples, records = [], []
    skill = {"math": (0.9, 0.6, 0.1), "law": (0.2, 0.6, 0.1)}
    for number in range(count):
        domain = "math" if number % 2 else "law"
        sample = Sample(f"s{number}", f"{domain} question {number}", domain, "A", ("w", "x", "y", "z"), f"{domain}-1")
        samples.append(sample)
        for expert, chance in zip(EXPERTS, skill[domain], strict=True):
            right = bool(rng.random() < chance)
            answer = "A" if right else "BCD"[rng.integers(3)]
            records.append(
                Record(sample.id, domain, expert, expert, right, answer, cost={"weak": 1.0}.get(expert, 10.0))
            )
    return build_table(samples, records, EXPERTS)


def judged(table: Table, posterior: np.ndarray | None = None) -> Judgement:
    known = np.eye(2)[table.domain_index] if posterior is None else posterior
    crossed = cross_validate(table, fold_of(table.samples, 5), table.domains, given_posteriors(known))
    return judge(table, crossed, {"router": "test"})


def test_a_known_specialist_is_found_and_the_baselines_are_in_order() -> None:
    judgement = judged(pool())
    accuracy = judgement.accuracies
    assert judgement.traffic.keys() == {"specialist", "all-rounder"}
    assert accuracy["random"] < accuracy["best_single"] < accuracy["routed"] < accuracy["oracle"]
    assert accuracy["routed"] == accuracy["perfect_domain"]
    assert judgement.against_best.gain.low > 0
    assert judgement.regret.router_error.value == 0
    assert sum((1 - accuracy["oracle"], judgement.regret.within_domains)) == pytest.approx(1 - accuracy["routed"])
    assert judgement.advice.startswith("A better expert for law")


def test_a_blind_router_is_told_from_a_poor_pool() -> None:
    table = pool()
    blind = judged(table, np.full((400, 2), 0.5))
    assert blind.accuracies["routed"] == blind.accuracies["best_single"]
    assert blind.advice.startswith("Better labels")
    wrong = judged(table, np.random.default_rng(1).permutation(np.eye(2)[table.domain_index]))
    assert wrong.advice.startswith("Better labels")
    one = build_table(table.samples, [r for r in records_of(table) if r.target != "specialist"], EXPERTS[1:])
    assert judged(one).advice.startswith("Stop")


def records_of(table: Table) -> list[Record]:
    return [
        Record(sample.id, sample.domain, expert, expert, bool(table.correct[row, column]), table.answers[row][column])
        for row, sample in enumerate(table.samples)
        for column, expert in enumerate(table.experts)
    ]


def test_questions_never_judge_themselves() -> None:
    """An expert that is right exactly once gets no skill from that question: folds share no text."""
    samples = [
        Sample(f"s{n}", f"Same, text? {n // 2}" if n % 2 else f"same text {n // 2}", "d", "A") for n in range(20)
    ]
    fold = fold_of(samples, 5)
    assert all(fold[n] == fold[n + 1] for n in range(0, 20, 2))
    assert set(fold) == set(range(5))
    records = [Record(s.id, "d", e, e, (e == "a") == (s.id in ("s0", "s1")), "A") for s in samples for e in ("a", "b")]
    table = build_table(samples, records, ("a", "b"))
    crossed = cross_validate(table, fold, table.domains, given_posteriors(np.ones((20, 1))), pseudo_count=0)
    own = crossed.quality[fold == fold[0]]
    assert (own[:, 0] == 0).all()
    assert (own[:, 1] == 1).all()


@given(st.data())
def test_choose_is_what_decide_chooses(data: st.DataObject) -> None:
    grid = st.integers(0, 4).map(lambda value: value / 4)
    skills = np.array(data.draw(st.lists(st.lists(grid, min_size=2, max_size=2), min_size=3, max_size=3)))
    costs = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=3, max_size=3, unique=True))
    p, weight = data.draw(grid), data.draw(st.sampled_from([0.0, 0.25, 0.5]))
    candidates = [
        Candidate(f"e{n}", {"x": float(row[0]), "y": float(row[1])}, generalist=True, cost=costs[n])
        for n, row in enumerate(skills)
    ]
    chosen = decide(Posterior(("x", "y"), (p, 1 - p)), candidates, Policy(weight)).expert
    quality = np.array([[p, 1 - p]]) @ skills.T
    assert f"e{choose(quality, np.array([costs]), weight)[0]}" == chosen


def test_soft_skills_share_a_question_among_labels() -> None:
    skills = soft_skills(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[1.0], [0.0]]), np.array([0.5]), pseudo_count=1)
    assert skills.tolist() == [[pytest.approx((1 + 0.5) / 2.5), pytest.approx(0.5 / 1.5)]]


def test_walks_stop_where_the_policy_does() -> None:
    table = pool(60)
    quality = np.tile([0.55, 0.6, 0.4], (60, 1))
    cost = np.ones_like(quality)
    walks = walk(table, quality, cost, CallPolicy(max_calls=3))
    for price in (0.0, 0.01, 0.05):
        polled, policy = walks.stopped(price), CallPolicy(call_price=price, max_calls=3)
        for row in range(60):
            decision = decide(Posterior(("d",), (1.0,)), [
                Candidate(name, {"d": float(q)}, generalist=True) for name, q in zip(EXPERTS, quality[row], strict=True)
            ])  # fmt: skip
            votes: list[Vote] = []
            while (expert := next_call(decision.scores, votes, 4, policy)) is not None:
                votes.append(Vote(expert, table.answers[row][EXPERTS.index(expert)]))
            answer = consensus(decision.scores, votes, 4, policy).answer
            assert polled.calls[row] == len(votes)
            assert polled.right[row] == (answer == "A")


def test_equal_vote_and_missing_answers() -> None:
    samples = [Sample("a", "q", "d", "A"), Sample("b", "r", "d", "A")]
    given_answers = {"a": ("A", "B", "B"), "b": ("A", None, "A")}
    records = [
        Record(s.id, "d", e, e, answer == "A", answer)
        for s in samples
        for e, answer in zip(EXPERTS, given_answers[s.id], strict=True)
    ]
    table = build_table(samples, records, EXPERTS)
    assert equal_vote(table).tolist() == [False, True]
    assert table.unread == (0, 1, 0)
    assert has_answers(table)


def test_questions_that_an_expert_lacks_are_dropped_for_all() -> None:
    table = pool(10)
    records = [record for record in records_of(table) if (record.sample, record.target) != ("s3", "weak")]
    assert build_table(table.samples, records, EXPERTS).dropped == 1
    with pytest.raises(ValueError, match="no record of nobody"):
        build_table(table.samples, records, ("nobody",))


def test_areas_of_papers() -> None:
    assert pareto_hull([(1, 0.2), (2, 0.8), (3, 0.5), (2, 0.1), (4, 0.9)]) == [(1, 0.2), (2, 0.8), (4, 0.9)]
    assert aiq([(0, 0.0), (1, 1.0)]) == 0.5
    assert aiq([(1, 0.5)]) == 0.5
    strong, weak = np.array([True, True, True, False]), np.array([True, False, False, False])
    perfect, worst = (
        apgr(np.array([0.0, 1.0, 1.0, 0.0]), strong, weak),
        apgr(np.array([1.0, 0.0, 0.0, 1.0]), strong, weak),
    )
    assert (perfect, worst) == (0.75, 0.25)
    with pytest.raises(ValueError, match="no gap"):
        apgr(np.ones(4), strong, strong)


def test_cost_curve_knows_the_cheap_point() -> None:
    curve = judged(pool()).curve
    assert curve is not None
    assert curve.points[0].cost == pytest.approx(1.0)
    assert curve.points[-1].cost == pytest.approx(0.1)
    assert curve.best_within is not None
    assert curve.best_within.gain.low > 0


def test_prices() -> None:
    prices = parse_prices("a=8,b=0.5/2")
    record = Record("s", "d", "b", "b", True, prompt_tokens=1_000_000, completion_tokens=500_000)
    assert (prices["a"].of(record), prices["b"].of(record)) == (8, 1.5)
    assert prices["a"] == Price(question=8)
    for wrong in ("a", "a=x", "a=-1", "a=1/x"):
        with pytest.raises(ValueError, match="price"):
            parse_prices(wrong)


def test_the_report_is_one_page_with_its_interval_first(tmp_path: Path) -> None:
    page = write_report(judged(pool(100)), tmp_path, "collegium eval replay <x>").read_text()
    assert "Routing pays" in page
    assert "<svg" in page
    assert "&lt;x&gt;" in page
    assert not [attribute for attribute in ('src="http', 'href="http', "<script") if attribute in page]
    assert {file.name for file in tmp_path.glob("*.png")} == {
        f"{n}.png" for n in ("accuracy", "domains", "cost", "calls", "calibration")
    }


def outcome_row(number: int, **changes: object) -> dict[str, object]:
    row = {
        "question_id": number, "category": "math", "src": "x", "question": f"q{number}",
        "options": ["one", "two"], "answer": "A",
        "correct_uniform": {"m": 1, "n": 0}, "pred_uniform": {"m": "A", "n": None},
    }  # fmt: skip
    return row | changes


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"x": 1}], "no known format"),
        ([outcome_row(1), outcome_row(1)], "'mmlupro-1' appears twice"),
        ([outcome_row(1), {"question_id": 2}], ":2: row does not fit the format"),
        ([outcome_row(1, correct_uniform={"m": 2, "n": 0})], "correct of m is 2, not 0 or 1"),
        ([], "has no rows"),
    ],
)
def test_broken_outcomes_are_refused(tmp_path: Path, rows: list[dict[str, object]], reason: str) -> None:
    file = tmp_path / "outcomes.jsonl.gz"
    with gzip.open(file, "wt") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(OutcomesError, match=reason):
        read_outcomes(file)


def test_null_rows_and_unread_answers_of_an_import(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    rows = [outcome_row(1), outcome_row(2, correct_uniform={"m": None, "n": 1}, pred_uniform={"m": None, "n": "A"})]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = build_table(*read_outcomes(file), ("m", "n"))
    assert (len(table.samples), table.dropped, table.unread) == (1, 1, (0, 1))
    assert table.correct.tolist() == [[True, False]]


def test_recorded_answers_replay_as_published() -> None:
    file = DATA / "outcomes_mmlu.jsonl.gz"
    if not file.exists():
        pytest.skip(f"recorded answers are not at {DATA}; name their folder by COLLEGIUM_DATA")
    table = build_table(*read_outcomes(file), ("gpt4", "mixtral"))
    assert table.correct.mean(axis=0).round(3).tolist() == [0.806, 0.681]  # RouteLLM's README: 80.6 and 68.1
    assert not has_answers(table)


def test_errors_of_the_command_are_sentences(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text("".join(json.dumps(outcome_row(number)) + "\n" for number in range(10)))
    for options, reason in (
        (["--experts", "m,nobody"], "no record of nobody; there are m"),
        (["--experts", "m,n", "--prices", "m=free"], "price 'm=free'"),
        (["--experts", "m,n", "--folds", "1"], "1 folds"),
    ):
        result = CliRunner().invoke(command, ["replay", "--outcomes", str(file), *options])
        assert result.exit_code == 1
        assert reason in result.output
