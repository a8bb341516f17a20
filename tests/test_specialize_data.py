"""Rows: what is read, what is left out and named, what is held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from collegium.training.specialists import as_choices
from collegium.training.specialize_data import Row, SpecializeError, read_corpus, split_rows
from specialize_tiny import write_rows

GOOD = {"instruction": "Say yes.", "response": "Yes.", "source": "own", "licence": "MIT"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "is list, not an object"),
        ({"instruction": "a"}, "response is missing"),
        ({"instruction": " ", "response": "b"}, "instruction is empty"),
        ({"instruction": 3, "response": "b"}, "no text"),
        ({"instruction": "\ud800", "response": "b"}, "lone surrogate"),
        ({"question": "q", "choices": ["a"], "answer_index": 0}, "two or more"),
        ({"question": "q", "choices": ["a", "a"], "answer_index": 0}, "the same"),
        ({"question": "q", "choices": ["a", "b"], "answer_index": 2}, "0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer_index": True}, "0 to 1"),
    ],
)
def test_a_bad_row_is_left_out_and_named(tmp_path: Path, row: object, reason: str) -> None:
    corpus = read_corpus(write_rows(tmp_path / "rows.jsonl", [GOOD, row, {**GOOD, "response": "No."}]))
    assert [r.response for r in corpus.rows] == ["Yes.", "No."]
    (bad,) = corpus.bad
    assert bad.number == 2
    assert reason in str(bad)


def test_lines_that_are_no_json_keep_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"\n{json.dumps(GOOD)}\n{{broken\n")
    corpus = read_corpus(file)
    assert [bad.number for bad in corpus.bad] == [3]
    assert "not JSON" in corpus.bad[0].reason


def test_duplicates_are_counted_and_sources_kept(tmp_path: Path) -> None:
    corpus = read_corpus(write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD, {"text": "plain"}]))
    assert corpus.duplicates == 1
    assert corpus.sources() == {"own": {"rows": 1, "licence": "MIT"}, "unnamed": {"rows": 1, "licence": ""}}


def test_other_splits_are_passed_over(tmp_path: Path) -> None:
    rows = [{**GOOD, "split": "test"}, {"instruction": "b", "response": "c", "split": "train"}]
    corpus = read_corpus(write_rows(tmp_path / "rows.jsonl", rows), split="test")
    assert [row.prompt for row in corpus.rows] == ["Say yes."]
    assert not corpus.bad


def test_gzip_and_plain_text(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert read_corpus(packed).rows == (Row("Say yes.", "Yes.", (), "own", "MIT"),)
    text = tmp_path / "book.txt"
    text.write_text("\n\n".join(f"{n} " + "word " * 100 for n in range(10)))
    blocks = read_corpus(text).rows
    assert all(row.prompt == "" and len(row.response) < 3_000 for row in blocks)
    assert sum(row.response.count("word") for row in blocks) == 1_000


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b""), ("a.jsonl", b"[]\n"), ("a.csv", b"x"), ("a.jsonl.gz", b"x")]
)
def test_a_file_without_a_usable_row_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecializeError, match=name):
        read_corpus(tmp_path / name)


def test_held_out_rows_share_no_prompt_with_training() -> None:
    rows = [Row(f"prompt {n // 3}", f"response {n}") for n in range(90)]
    train, held = split_rows(rows, 20, seed=1)
    assert 20 <= len(held) <= 22
    assert not {row.prompt for row in train} & {row.prompt for row in held}
    assert set(train) | set(held) == set(rows)
    assert set(split_rows(rows[::-1], 20, seed=1)[1]) == set(held)
    assert set(split_rows(rows, 20, seed=2)[1]) != set(held)


def test_a_lettered_question_becomes_choices() -> None:
    asked = "Which is wet?\nA. sand\nB. water\nAnswer with the letter and the text of the right choice."
    row = {"instruction": asked, "response": "B. water", "source": "s", "licence": "MIT"}
    assert as_choices(row) == {
        "question": "Which is wet?", "choices": ["sand", "water"], "answer_index": 1, "source": "s", "licence": "MIT"
    }  # fmt: skip
    assert as_choices({**row, "response": "B. Water"}) is None
    assert as_choices({**row, "instruction": "Which is wet?"}) is None
