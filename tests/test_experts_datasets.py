"""Data sets by name: which files are meant, and fetching them from a hub on a real socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from collegium.experts.datasets import DatasetError, HubDataset, chosen_files, hub_files, parse_hub_name
from collegium.training.data import DataError, load_prompts
from hub_kit import hub


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("me/mine", HubDataset("me/mine")),
        ("hf:me/mine:dev", HubDataset("me/mine", split="dev")),
        ("hf:me/mine/small@v1:test", HubDataset("me/mine", "small", "v1", "test")),
        ("hf:me/mine@refs/convert/parquet", HubDataset("me/mine", None, "refs/convert/parquet")),
        ("folder/rows.jsonl", None),
        ("rows", None),
        ("/folder/rows", None),
        ("../rows/a", None),
    ],
)
def test_names(name: str, meant: HubDataset | None) -> None:
    assert parse_hub_name(name) == meant


def test_a_name_that_goes_on_wrongly_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"is not hf:owner/name"):
        parse_hub_name("hf:me")


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet"], {}, ["data/train-0.parquet"]),
        (["data/train-0.parquet", "data/test-0.parquet"], {"split": "test"}, ["data/test-0.parquet"]),
        (["rows.csv", "rows.parquet", "README.md"], {}, ["rows.parquet"]),
        (["a/train/0.parquet", "b/train/0.parquet"], {"configuration": "b"}, ["b/train/0.parquet"]),
        (["train.csv", "trainers.csv"], {}, ["train.csv"]),
    ],
)
def test_files_are_chosen(names: list[str], wanted: dict[str, str], chosen: list[str]) -> None:
    assert chosen_files(names, HubDataset("me/mine", **wanted))[:1] == chosen


@pytest.mark.parametrize(
    ("names", "wanted", "sentence"),
    [
        (["README.md", "mine.py"], {}, "holds no file of"),
        (["test.csv"], {}, "has no file of 'train'; it has test.csv"),
        (["train.csv"], {"split": "dev"}, "has no file of 'dev'"),
        (
            ["a/train/0.csv", "b/train/0.csv"],
            {},
            r"several configurations \(a/train, b/train\); name one: hf:me/mine/a",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(names: list[str], wanted: dict[str, str], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        chosen_files(names, HubDataset("me/mine", **wanted))


def test_rows_come_from_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"prompt {i} about {label}", "label": label} for label in ("law", "math") for i in range(8)]
    for folder in ("me/mine/data", "me/scripted@refs-convert-parquet/default/train", "me/scripted"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "me/mine/data/train-0.jsonl").write_text(lines)
    (tmp_path / "me/scripted/scripted.py").write_text("raise SystemExit")
    (tmp_path / "me/scripted@refs-convert-parquet/default/train/0.jsonl").write_text(lines)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the hub is here
    with hub(tmp_path) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert [(p.text, p.label) for p in load_prompts("me/mine")] == [(r["text"], r["label"]) for r in rows]
        assert len(load_prompts("hf:me/scripted")) == 16
        for name, sentence in {
            "me/none": "knows no data set 'me/none', or it is gated",
            "me/mine@v9": "has no revision 'v9'",
            "hf:me/mine:dev": "has no file of 'dev'",
        }.items():
            with pytest.raises(DataError, match=sentence):
                load_prompts(name)
    with pytest.raises(DatasetError, match=r"cannot be fetched from the hub .*; give a file or a folder instead"):
        hub_files(HubDataset("me/mine"))
