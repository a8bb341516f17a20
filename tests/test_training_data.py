"""Reading labelled prompts: formats, and a sentence with the row number for every bad one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from collegium.training.data import Columns, DataError, data_hash, load_prompts

GOOD = [{"text": f"prompt {i} about {label}", "label": label} for label in ("law", "math") for i in range(8)]


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_csv_and_gzip_read_alike(tmp_path: Path) -> None:
    plain = load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD]))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    table = tmp_path / "a.csv"
    table.write_text("\ufefflabel,text\n" + "".join(f'{row["label"]},"{row["text"]}"\n' for row in GOOD))
    assert load_prompts(packed) == load_prompts(table) == plain
    assert [prompt.row for prompt in plain] == list(range(1, 17))


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    rows: list[object] = [{"question": row["text"], "topic": row["label"], "source": "s"} for row in GOOD]
    prompts = load_prompts(jsonl(tmp_path / "a.jsonl", rows), Columns("question", "topic"))
    assert {prompt.label for prompt in prompts} == {"law", "math"} and prompts[0].source == "s"


def test_texts_are_normalised_and_bounded(tmp_path: Path) -> None:
    rows = [*GOOD, {"text": "\ud800\u200bsue " + "x" * 1_000_000, "label": "law"}]
    last = load_prompts(jsonl(tmp_path / "a.jsonl", rows))[-1].text
    assert last.startswith("sue xxx") and len(last) == 8_000


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "  \u200b", "label": "law"}, "row 17: 'text' is empty"),
        ({"text": "x", "label": " "}, "row 17: 'label' must be 1 to 100 printable characters"),
        ({"text": "x", "label": "a\u0007b"}, "row 17: 'label' must be"),
        ({"text": "x", "label": "l" * 101}, "row 17: 'label' must be"),
        ({"text": 3, "label": "law"}, "row 17: 'text' is int, not text"),
        ({"text": "x"}, "row 17: there is no column 'label'; there are 'text'"),
        ([1], "row 17: list, not a JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD, row]))


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: .*; row 5: .*; and 4 more"):
        load_prompts(jsonl(tmp_path / "a.jsonl", [{"text": "", "label": "law"}] * 9))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"text": "a", "label": "b"}\n{"text": "a"', r"row 2: broken JSON"),
        (b'{"text": "a", "label": "b"}\n{"text": "\xff"}', r"row 2: not UTF-8"),
        (b"[" * 100_000, r"row 1: broken JSON"),
        (b"", r"has 0 labels; a router needs at least 2"),
    ],
)
def test_broken_jsonl_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=sentence):
        load_prompts(path)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"text,label\na,b\nc\n", r"row 2: it has not as many fields as the header"),
        (b"text,label\na,b,c\n", r"row 1: it has not as many fields as the header"),
        (b'text,label\n"a"b,c\n', r"broken CSV"),
        (b"text,label\n\xe9,b\n", r"row 2: not UTF-8"),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=sentence):
        load_prompts(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        load_prompts(tmp_path / "missing.jsonl")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="unknown format"):
        load_prompts(tmp_path / "a.xlsx")
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        load_prompts(tmp_path / "a.jsonl.gz")


def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 1 label; a router needs at least 2"):
        load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD[:8]]))
    with pytest.raises(DataError, match="at least 8 rows; 'math' has 7"):
        load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD[:15]]))
    twins: list[object] = [*GOOD, *({"text": f"t{i}", "label": "Law "} for i in range(8))]
    with pytest.raises(DataError, match="'Law' and 'law' differ in case or blanks only"):
        load_prompts(jsonl(tmp_path / "a.jsonl", twins))


def test_data_hash_follows_content_not_order(tmp_path: Path) -> None:
    prompts = load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD]))
    assert data_hash(prompts) == data_hash(prompts[::-1]) != data_hash(prompts[1:])
