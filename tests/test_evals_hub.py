"""Known data sets of the hub as tasks: rows as the hub has them, from a hub on a real socket."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from collegium.evals.hub import known_tasks
from collegium.evals.tasks import TaskError, load_samples
from hub_kit import hub

ARC = {"id": "Q1", "choices": {"text": ["up", "down"], "label": ["1", "2"]}, "answerKey": "2"}
MMLU = {"question": "2+2?", "subject": "elementary_mathematics", "choices": ["3", "4", "5", "6"], "answer": 1}
ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "arc-challenge": ("allenai/ai2_arc/ARC-Challenge/test-0.jsonl", {"question": "Where to?", **ARC}),
    "arc-easy": ("allenai/ai2_arc/ARC-Easy/test-0.jsonl", {"question": "Where to?", **ARC}),
    "medmcqa": (
        "openlifescienceai/medmcqa/data/validation-0.jsonl",
        {"id": "m", "question": "Q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3, "subject_name": "Skin"},
    ),
    "medqa": (
        "GBaker/MedQA-USMLE-4-options/phrases_no_exclude_test.jsonl",
        {"question": "Q", "options": {"A": "w", "B": "x", "C": "y"}, "answer": "y", "answer_idx": "C"},
    ),
    "mmlu": ("cais/mmlu/all/test-0.parquet", MMLU),
    "mmlu-pro": (
        "TIGER-Lab/MMLU-Pro/data/test-0.jsonl",
        {"question_id": 7, "question": "Q", "options": list("abcde"), "answer_index": 4, "category": "law"},
    ),
    "openbookqa": ("allenai/openbookqa/main/test-0.jsonl", {"question_stem": "Where to?", **ARC}),
    "truthfulqa": (
        "truthfulqa/truthful_qa/multiple_choice/validation-0.jsonl",
        {"question": "Q", "mc1_targets": {"choices": ["true", "false", "wrong"], "labels": [1, 0, 0]}},
    ),
}  # fmt: skip
RIGHT = {
    "arc-challenge": "down", "arc-easy": "down", "medmcqa": "d", "medqa": "y", "mmlu": "4", "mmlu-pro": "e",
    "openbookqa": "down", "truthfulqa": "true",
}  # fmt: skip


@pytest.fixture
def data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place, row in ROWS.values():
        file = tmp_path / "hub" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist([row]), file)
        else:
            file.write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the hub is here
    return tmp_path / "hub"


def test_every_known_name_is_read(data_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(ROWS) == known_tasks()
    with hub(data_sets) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        for name, right in RIGHT.items():
            (sample,) = load_samples(name, "choice")
            assert sample.choices["ABCDEFGHIJ".index(sample.target)] == right, name
        (sample,) = load_samples("hf:cais/mmlu", "choice")
        assert (sample.domain, sample.prompt, len(sample.choices)) == ("elementary_mathematics", "2+2?", 4)
        assert load_samples("hf:allenai/ai2_arc/ARC-Easy:test", "choice")[0].domain == "science"


def test_what_cannot_be_had_or_read_is_said_in_a_sentence(data_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_sets / ROWS["medqa"][0]).write_text(json.dumps({"question": "Q", "options": {"A": "w"}, "answer_idx": "D"}))
    with hub(data_sets) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(TaskError, match="row 1: not as this data set's rows are"):
            load_samples("medqa", "choice")
    with pytest.raises(TaskError, match="cannot be fetched from the hub"):
        load_samples("mmlu", "choice")
    with pytest.raises(TaskError, match=r"questions\.jsonl is no file; give one, hf:.*, or arc-challenge, arc-easy"):
        load_samples("questions.jsonl", "choice")
