"""The matrix of experts by domains and scored choices, on a tiny base with a trained adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from collegium.training.specialize import specialize
from collegium.training.specialize_data import SpecializeError, read_corpus
from collegium.training.specialize_model import Recipe
from collegium.training.specialize_report import Bench, accuracy_change, main, perplexity_change
from specialize_tiny import sums, tiny_model, write_rows

QUESTIONS = [
    {"question": f"What is {n} plus {n}?", "choices": [f"no {n}", f"the sum is {2 * n}"], "answer_index": 1}
    for n in range(12)
]
FOREIGN = [{"instruction": f"Name colour {n}.", "response": f"Colour {n} is blue."} for n in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """seed/, sums/ (adapter), and files of rows."""
    place = tmp_path_factory.mktemp("report")
    tiny_model(place / "seed")
    data = write_rows(place / "train.jsonl", sums())
    recipe = Recipe(
        str(place / "seed"), "math", rank=4, max_length=96, pack_tokens=96, lr=0.01, heldout_rows=6, evaluations=1,
        tokens_budget=6_000,
    )  # fmt: skip
    specialize(recipe, data, place / "sums", quiet=True)
    write_rows(place / "own.jsonl", [{**row, "instruction": f"So, {row['instruction']}"} for row in sums(20)])
    write_rows(place / "foreign.jsonl", FOREIGN)
    write_rows(place / "mcq.jsonl", [{**question, "split": "test"} for question in QUESTIONS])
    return place


def test_perplexity_change_weighs_rows_by_tokens() -> None:
    change = perplexity_change(np.array([10.0, 2.0]), np.array([5.0, 3.0]), np.array([10.0, 2.0]))
    assert change.value == pytest.approx(math.exp(-4 / 12) - 1)
    assert change.low == pytest.approx(math.exp(-5 / 10) - 1)
    assert change.high == pytest.approx(math.exp(1 / 2) - 1)


def test_an_even_accuracy_change_includes_zero() -> None:
    change = accuracy_change(np.array([1.0, 0.0] * 50), np.array([0.0, 1.0] * 50))
    assert change.value == 0
    assert change.low < 0 < change.high
    assert accuracy_change(np.zeros(40), np.ones(40)).low == 1


def test_the_adapter_gains_at_home_and_the_base_is_itself(folder: Path) -> None:
    bench = Bench(str(folder / "seed"), {"sums": folder / "sums"})
    base, own = bench.perplexities("math", read_corpus(folder / "own.jsonl").rows)
    assert (base.expert, base.change.value, base.loss) == ("base", 0, base.loss_base)
    assert own.loss_base == pytest.approx(base.loss)
    assert own.change.high < -0.1
    assert not own.forgot
    metrics = json.loads((folder / "sums" / "metrics.json").read_text())
    assert own.loss == pytest.approx(metrics["heldout"]["loss_after"], rel=0.3)


def test_the_base_is_the_same_with_and_without_adapters(folder: Path) -> None:
    rows = read_corpus(folder / "foreign.jsonl").rows
    (alone,) = Bench(str(folder / "seed"), {}).perplexities("colours", rows)
    beside = next(Bench(str(folder / "seed"), {"a": folder / "sums", "b": folder / "sums"}).perplexities("c", rows))
    assert alone.loss == pytest.approx(beside.loss, rel=1e-6)


def test_choices_are_scored_by_their_log_probability(folder: Path) -> None:
    bench = Bench(str(folder / "seed"), {"sums": folder / "sums"})
    rows = read_corpus(folder / "mcq.jsonl", "test").rows
    scores = bench.score([sample for row in rows if (sample := bench.form.sample(row, 999)[0])], "sums")
    by_sum, by_character = bench.accuracies("sums", rows, ["sums"])
    assert (by_sum.scoring, by_sum.questions) == ("sum", 12)
    assert by_sum.accuracy == sum(wrong < right for wrong, right in scores) / 12
    right = [w / len(row.choices[0]) < r / len(row.choices[1]) for row, (w, r) in zip(rows, scores, strict=True)]
    assert by_character.accuracy == sum(right) / 12
    assert by_character.change.value == pytest.approx(by_character.accuracy - by_character.base)


def test_the_command_writes_json_and_prints_the_matrix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "seed"), "--adapter", f"sums={folder / 'sums'}", "--rows", "8", "--split", "test"]
    files = [f"--heldout=math={folder / 'own.jsonl'}", f"--heldout=colours={folder / 'foreign.jsonl'}"]
    assert main([*arguments, *files, f"--mcq=quiz={folder / 'mcq.jsonl'}", "--json", str(folder / "r.json")]) == 0
    report = json.loads((folder / "r.json").read_text())
    cells = {(cell["expert"], cell["domain"]) for cell in report["cells"]}
    assert cells == {(expert, domain) for expert in ("base", "sums") for domain in ("math", "colours")}
    assert {cell["rows"] for cell in report["cells"]} == {8}
    assert len(report["accuracies"]) == 2
    assert "held-out perplexity" in capsys.readouterr().out


def test_what_cannot_be_measured_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "seed"), "--adapter", f"x={folder / 'nowhere'}"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main([str(folder / "seed"), "--heldout", "math"]) == 1
    assert "NAME=PATH" in capsys.readouterr().err
    with pytest.raises(SpecializeError, match="no question"):
        list(Bench(str(folder / "seed"), {}).accuracies("quiz", read_corpus(folder / "own.jsonl").rows, []))
