"""Extractors and tasks: what is read, what is not, and rows that are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from collegium.evals.records import Sample
from collegium.evals.scoring import brier, choice_probabilities, read_choice, read_number, wrong_mass
from collegium.evals.tasks import Style, TaskError, choice_prompt, load_samples, open_prompt
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("The answer is (B).", "B"),
        ("Answer: C", "C"),
        ("answer: d", "D"),
        ("First I thought answer: A. No. The answer is C", "C"),
        ("B", "B"),
        ("(D)", "D"),
        ("B. Paris", "B"),
        ("It must be option B because of x", "B"),
        ("A man walks in", None),
        ("I do not know", None),
        ("Answer: Z", None),
        ("", None),
        ("The answer is Berlin", None),
        ("A", "A"),
    ],
)
def test_choices_are_read_and_never_guessed(output: str, answer: str | None) -> None:
    assert read_choice(output, 4) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("so 3 + 4 = 7", "7"),
        ("It costs $1,234.50.", "1234.5"),
        ("#### 18", "18"),
        ("we get \\boxed{\\frac{3}{4}} in the end 9", "3/4"),
        ("\\boxed{x^{2} + 1}", "x^{2}+1"),
        ("twenty", None),
        ("about 50%", "50"),
        ("-0.50", "-0.5"),
        ("\\boxed{2", "2"),
    ],
)
def test_numbers_are_read(output: str, answer: str | None) -> None:
    assert read_number(output) == answer


@given(st.text())
def test_no_output_breaks_the_extractors(output: str) -> None:
    assert read_choice(output, 4) in (None, *"ABCD")
    read_number(output)


def test_probabilities_and_scores_of_log_probabilities() -> None:
    logprobs = [math.log(0.2), math.log(0.1), math.log(0.1)]
    assert choice_probabilities(logprobs) == pytest.approx([0.5, 0.25, 0.25])
    assert wrong_mass(logprobs, 0) == pytest.approx(0.5)
    assert brier(logprobs, 0) == pytest.approx(0.25 + 2 * 0.0625)
    assert brier([-1000.0, -2000.0], 1) == pytest.approx(2.0)


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


ROW: dict[str, object] = {"id": "1", "question": "2 + 2?", "choices": ["3", "4"], "answer_index": 1, "domain": "math"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer_index": 2}, "row 2: answer 2 is not one of the 2 choices"),
        ({"answer_index": None, "answer": "C"}, "row 2: answer 'C' is not one of the 2 choices"),
        ({"answer_index": None, "answer": None}, "row 2: answer None is not one of the 2 choices"),
        ({"choices": None}, r"row 2: none of the keys \['choices', 'options'\]"),
        ({"choices": ["one"]}, "row 2: choices must be a list of 2 to 26"),
        ({"question": "  "}, "row 2: the question is empty"),
        ({"id": "1"}, "row 2: id '1' appears twice"),
    ],
)
def test_broken_rows_are_refused_with_their_number(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    file = write(tmp_path / "task.jsonl", [ROW, ROW | {"id": "2"} | change])
    with pytest.raises(TaskError, match=reason):
        load_samples(file, "choice")


def test_the_same_rows_from_jsonl_csv_and_parquet(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"id": "2", "answer_index": 0}]
    jsonl = load_samples(write(tmp_path / "t.jsonl", rows), "choice")
    table = tmp_path / "t.csv"
    cells = "".join(f'{row["id"]},2 + 2?,"[""3"", ""4""]",{row["answer_index"]},math\n' for row in rows)
    table.write_text("id,question,choices,answer_index,domain\n" + cells)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert jsonl == load_samples(table, "choice") == load_samples(tmp_path / "t.parquet", "choice")
    assert [sample.target for sample in jsonl] == ["B", "A"]


def test_a_draw_is_the_same_again(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", [ROW | {"id": str(number)} for number in range(50)])
    first = load_samples(file, "choice", limit=5, seed=3)
    assert first == load_samples(file, "choice", limit=5, seed=3)
    assert first != load_samples(file, "choice", limit=5, seed=4)


def test_prompts() -> None:
    sample = Sample("1", "2 + 2?", "math", "B", ("3", "4"))
    other = Sample("2", "1 + 1?", "math", "A", ("2", "5"))
    assert (
        choice_prompt(sample, [other], Style(shots=1)) == "1 + 1?\nA. 2\nB. 5\nAnswer: A\n\n2 + 2?\nA. 3\nB. 4\nAnswer:"
    )
    assert "step by step" in choice_prompt(sample, style=Style(reasoning=True))
    assert open_prompt(Sample("3", "2 + 2?", "math", "4")) == "Question: 2 + 2?\nAnswer:"


def test_unknown_kinds_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="'essay' is unknown; accepted: choice, math, code, perplexity"):
        load_samples(tmp_path / "x", "essay")
    (tmp_path / "bad.jsonl").write_text("{nope\n")
    with pytest.raises(TaskError, match="cannot be read"):
        load_samples(tmp_path / "bad.jsonl", "choice")
    with pytest.raises(TaskError, match="is no file"):
        load_samples(tmp_path / "missing.jsonl", "choice")
