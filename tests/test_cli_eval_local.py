"""`collegium eval local` on a model of a few thousand weights: the scores are the model's own, and a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from collegium.cli.eval import command
from collegium.training.specialize import specialize
from collegium.training.specialize_model import Recipe
from peft import PeftModel
from specialize_tiny import sums, tiny_model, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

CHOICES = ["one", "twenty-two", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter of it that changes its answers, and a task."""
    folder = tmp_path_factory.mktemp("local")
    tiny_model(folder / "model")
    recipe = Recipe(
        str(folder / "model"), "math", rank=4, max_length=96, pack_tokens=96, lr=0.01, heldout_rows=6, evaluations=1,
        tokens_budget=2_000,
    )  # fmt: skip
    specialize(recipe, write_rows(folder / "sums.jsonl", sums()), folder / "sums", quiet=True)
    rows = [
        {"id": f"q{n}", "question": f"How many is {n}?", "choices": CHOICES, "answer": "ABC"[n % 3], "domain": "math"}
        for n in range(40)
    ]
    write_rows(folder / "task.jsonl", rows)
    return folder


def run(folder: Path, out: Path, *more: str, model: str = "model") -> Result:
    task = str(folder / "task.jsonl")
    arguments = ["local", str(folder / model), "--task", task, "--out", str(out), *more]
    return CliRunner().invoke(command, arguments)


def records(out: Path) -> dict[tuple[str, str], dict[str, object]]:
    lines = (out / "records.jsonl").read_text().splitlines()
    found = {(row["sample"], row["target"]): row for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def test_scores_are_the_models_own_of_base_and_adapter(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path, "--adapter", f"sums={folder / 'sums'}")
    assert result.exit_code == 0, result.output
    found = records(tmp_path)
    assert {target for _, target in found} == {"general", "sums"}
    assert len(found) == 80

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    for target in ("general", "sums"):
        model = PeftModel.from_pretrained(base, str(folder / "sums")).eval() if target == "sums" else base
        for number in (0, 39):
            row = found[f"q{number}", target]
            prefix = tokenizer.encode(f"Question: How many is {number}?\nAnswer:", add_special_tokens=False)
            sums_of = []
            for choice in CHOICES:
                branch = tokenizer.encode(f" {choice}", add_special_tokens=False)
                with torch.no_grad():
                    logs = torch.log_softmax(model(torch.tensor([prefix + branch])).logits[0].double(), -1)
                places = range(len(prefix) - 1, len(prefix) + len(branch) - 1)
                sums_of.append(float(sum(logs[place, token] for place, token in zip(places, branch, strict=True))))
            assert row["logprobs"] == pytest.approx(sums_of, abs=1e-3)
            assert row["answer"] == "ABC"[sums_of.index(max(sums_of))]
            assert row["correct"] is (row["answer"] == "ABC"[number % 3])
    assert found["q0", "general"]["logprobs"] != found["q0", "sums"]["logprobs"]


def test_a_run_that_was_cut_off_goes_on(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "whole").exit_code == 0
    cut = tmp_path / "cut"
    assert run(folder, cut).exit_code == 0
    lines = (cut / "records.jsonl").read_text().splitlines(keepends=True)
    first = {**json.loads(lines[0]), "prompt_tokens": 1}  # would be 2 or more, were it scored again
    (cut / "records.jsonl").write_text(json.dumps(first) + "\n" + "".join(lines[1:5]) + lines[5][:20])
    assert run(folder, cut).exit_code == 0
    again = records(cut)
    assert again.pop(("q0", "general"))["prompt_tokens"] == 1
    whole = records(tmp_path / "whole")
    assert {key: (row["answer"], row["prompt_tokens"]) for key, row in again.items()} == {
        key: (row["answer"], row["prompt_tokens"]) for key, row in whole.items() if key[0] != "q0"
    }


@pytest.mark.parametrize(
    ("more", "model", "said"),
    [
        (("--adapter", "sums=nowhere"), "model", "nowhere"),
        (("--adapter", "no-equals"), "model", "NAME=DIR"),
        (("--adapter", "general=sums"), "model", "two experts are called general"),
        ((), "no-model", "no-model"),
    ],
)
def test_what_cannot_be_used_is_named(
    folder: Path, tmp_path: Path, more: tuple[str, ...], model: str, said: str
) -> None:
    result = run(folder, tmp_path, *more, model=model)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_another_plan_does_not_go_on_in_the_same_folder(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path).exit_code == 0
    before = (tmp_path / "records.jsonl").read_bytes()
    result = run(folder, tmp_path, "--base", "other")
    assert result.exit_code == 1
    assert (tmp_path / "records.jsonl").read_bytes() == before
