"""Reading labelled prompts: formats, and a sentence with the row number for every bad one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from collegium.training.data import Columns, DataError, data_hash, load_prompts, read_prompts
from collegium.training.labels import edit_distance, spelt_alike

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
        ({"text": "x", "label": None}, "row 17: 'label' is missing, not a label"),
        ({"text": "x", "label": ["law"]}, "row 17: 'label' is list, not a label"),
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
        (b"text,label\n\xe9,b\n", r"row 1: not UTF-8"),
        (b'text,label\n"two\nlines",b\n\xe9,b\n', r"row 2: not UTF-8"),
        (b"t\xe9xt,label\na,b\n", r"the header is not UTF-8"),
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
    with pytest.raises(DataError, match=r"at least 8 rows; 'math' has 7 \(row 9\)"):
        load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD[:15]]))
    twins: list[object] = [*GOOD, *({"text": f"t{i}", "label": "Law "} for i in range(8))]
    with pytest.raises(DataError, match="'Law' and 'law' differ in case, blanks or hyphens only"):
        load_prompts(jsonl(tmp_path / "a.jsonl", twins))


def test_data_hash_follows_content_not_order(tmp_path: Path) -> None:
    prompts = load_prompts(jsonl(tmp_path / "a.jsonl", [*GOOD]))
    assert data_hash(prompts) == data_hash(prompts[::-1]) != data_hash(prompts[1:])


def test_labels_that_look_like_another_one_are_named_with_their_row(tmp_path: Path) -> None:
    rows = [{"text": f"about {label} {i}", "label": label} for label in ("health", "law", "level 1") for i in range(12)]
    rows += [{"text": f"level {i}", "label": "level 2"} for i in range(8)]
    slip: list[object] = [*rows, {"text": "my knee hurts", "label": "helath"}]
    path = jsonl(tmp_path / "a.jsonl", slip)
    with pytest.raises(
        DataError, match=r"row 45: label 'helath' \(1 row\) looks like 'health' \(12 rows\); correct it"
    ):
        load_prompts(path)
    many = [*rows, *({"text": f"knee {i}", "label": "health"} for i in range(80))]
    many += [{"text": f"elbow {i}", "label": "helath"} for i in range(9)]
    with pytest.raises(DataError, match=r"'helath' \(9 rows\) looks like 'health' \(92 rows\)"):
        load_prompts(jsonl(path, many))
    listed = ["health", "helath", "law", "level 1", "level 2"]
    assert len(load_prompts(jsonl(path, many), labels=listed)) == len(many)
    with pytest.raises(DataError, match=r"row 25: label 'level 2' is none of health, level 1; row 26"):
        read_prompts(jsonl(path, rows[:12] + rows[24:]), labels=["health", "level 1"])


@pytest.mark.parametrize(
    ("first", "second", "distance", "alike"),
    [
        ("helath", "health", 1, True),
        ("math", "maths", 1, True),
        ("humanitis", "humanities", 1, True),
        ("humnaitis", "humanities", 2, True),
        ("audio", "radio", 2, False),
        ("art", "arts", 1, False),
        ("tier 1", "tier 12", 1, False),
        ("", "law", 3, False),
    ],
)
def test_distance_between_labels(first: str, second: str, distance: int, alike: bool) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance
    assert spelt_alike(first, second) is alike


def test_many_labels_and_long_texts(tmp_path: Path) -> None:
    rows: list[object] = [
        {"text": f"{i} of {label}", "label": f"label {label}"} for label in range(200) for i in range(8)
    ]
    assert len({prompt.label for prompt in load_prompts(jsonl(tmp_path / "a.jsonl", rows))}) == 200
    table = tmp_path / "long.csv"
    table.write_text("text,label\n" + "".join(f"{'x' * 1_000_000},{label}\n" for label in "ab" for _ in range(8)))
    assert {len(prompt.text) for prompt in load_prompts(table)} == {8_000}


def parquet(path: Path, columns: Mapping[str, object], metadata: Mapping[str, object] | None = None) -> Path:
    table = pyarrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_reads_like_jsonl_and_classes_by_name(tmp_path: Path) -> None:
    texts, labels = [row["text"] for row in GOOD], [row["label"] for row in GOOD]
    assert load_prompts(parquet(tmp_path / "a.parquet", {"text": texts, "label": labels})) == load_prompts(
        jsonl(tmp_path / "a.jsonl", [*GOOD])
    )
    classes = {"info": {"features": {"label": {"names": ["law", "math"], "_type": "ClassLabel"}}}}
    numbers = [["law", "math"].index(label) for label in labels]
    named = load_prompts(parquet(tmp_path / "b.parquet", {"text": texts, "label": numbers}, classes))
    assert [prompt.label for prompt in named] == labels
    unnamed = load_prompts(parquet(tmp_path / "c.parquet", {"text": texts, "label": numbers}))
    assert {prompt.label for prompt in unnamed} == {"0", "1"}
    with pytest.raises(DataError, match="row 2: 'label' is class 2 of 2"):
        load_prompts(parquet(tmp_path / "d.parquet", {"text": ["a", "b"], "label": [0, 2]}, classes))
    with pytest.raises(DataError, match="row 1: 'label' is missing"):
        load_prompts(parquet(tmp_path / "d.parquet", {"text": ["a"], "label": [-1]}, classes))


def test_broken_parquet_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["a"] * 50, "label": ["b"] * 50})
    whole = path.read_bytes()
    for broken in (b"", b"PAR1", whole[: len(whole) // 2], b"\0" * 500, whole[:8] + b"\xff" * 40 + whole[48:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.parquet is no readable Parquet file|row \d+"):
            load_prompts(path)
    bad = pyarrow.array([b"good", b"\xe9\xe9"]).view(pyarrow.string())
    with pytest.raises(DataError, match="row 2: not UTF-8"):
        load_prompts(parquet(path, {"text": bad, "label": ["b", "b"]}))


def test_a_folder_and_several_files_name_their_rows_and_sources(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "law.jsonl", [*GOOD[:8]])
    jsonl(folder / "math.jsonl", [{**row, "source": "exam"} for row in GOOD[8:]])
    (folder / "README.md").write_text("not read")
    together = load_prompts(folder)
    assert together == load_prompts([folder / "law.jsonl", str(folder / "math.jsonl")])
    assert {(p.source, p.label) for p in together} == {("law.jsonl", "law"), ("exam", "math")}
    assert [p.where for p in together][7:9] == ["law.jsonl row 8", "math.jsonl row 1"]
    with pytest.raises(DataError, match="is given twice"):
        load_prompts([folder, folder / "law.jsonl"])
    with pytest.raises(DataError, match=r"holds no file of \.jsonl"):
        load_prompts(tmp_path)
    jsonl(folder / "slip.jsonl", [{"text": "x", "label": "mat"}])
    with pytest.raises(DataError, match=r"'mat' has 1 \(slip\.jsonl row 1\)"):
        load_prompts(folder)
