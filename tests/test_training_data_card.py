"""The data card by hand, and as `collegium train` prints it; a retrained router names its parent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from collegium.cli.main import main
from collegium.router.manifest import read_artefact
from collegium.training.data import Prompt
from collegium.training.data_card import data_card
from router_kit import labelled

LONG = "how may a landlord who is late with the repairs of a flat end the contract of a tenant who pays in time"


def rows(path: Path, extra: list[dict[str, str]]) -> Path:
    found = [{"text": text, "label": label, "source": f"source of {label}"} for text, label in labelled()]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*found, *extra]))
    return path


def train(data: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["train", str(data), "--out", str(out), "--kind", "tfidf", *more])


def test_a_card_by_hand() -> None:
    texts = [LONG, LONG.upper(), LONG.replace("in time", "on time"), "What is a tort?", "what is  a tort?", "add 2"]
    labels = ["law", "law", "finance", "law", "law", "math"]
    sources = ["a", "a", "b", None, None, "b"]
    prompts = [
        Prompt(row, text, label, source)
        for row, (text, label, source) in enumerate(zip(texts, labels, sources, strict=True), start=1)
    ]
    card = data_card(prompts)
    assert card.labels == {"finance": 1, "law": 4, "math": 1} and card.rows == 6
    assert card.sources == {"": {"law": 2}, "a": {"law": 2}, "b": {"finance": 1, "math": 1}}
    assert (card.duplicates, card.near_duplicates) == (2, 3)
    assert (card.conflicts, card.conflicting_rows) == (1, 3)
    assert card.first_conflicts[0].rows == {"law": ["row 1", "row 2"], "finance": ["row 3"]}
    assert card.lengths[0] == 5 and card.lengths[-1] == len(LONG)
    assert data_card(prompts, np.arange(6)).near_duplicates == 0
    with pytest.raises(ValueError, match="no prompts"):
        data_card([])


def test_train_prints_the_card_first(tmp_path: Path) -> None:
    conflict = [{"text": "git rebase: where do i START", "label": "law"}]
    data = rows(tmp_path / "data.jsonl", conflict)
    shown = train(data, tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    assert "73 prompts" in shown.stderr and "1 exact duplicates" in shown.stderr
    assert "'git rebase: where do i start': coding (row 51), law (row 73)" in shown.stderr
    found = json.loads(train(data, tmp_path / "out", "--json").stdout)["data"]
    assert found["labels"] == {"coding": 24, "law": 25, "math": 24} and found["conflicts"] == 1
    assert found["sources"][""] == {"law": 1} and found["sources"]["source of math"] == {"math": 24}


def test_columns_and_labels_are_named_by_options(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("q,team,origin\n" + "".join(f'"{text}",{label},s1\n' for text, label in labelled()))
    columns = ["--text-column", "q", "--label-column", "team", "--source-column", "origin", "--json"]
    found = json.loads(train(data, tmp_path / "out", *columns).stdout)
    assert list(found["data"]["sources"]) == ["s1"]
    refused = train(data, tmp_path / "out", *columns, "--labels", "coding,law")
    assert refused.exit_code == 1 and "label 'math' is none of coding, law" in refused.stderr


def test_a_router_names_the_version_it_follows(tmp_path: Path) -> None:
    first, second = rows(tmp_path / "a.jsonl", []), rows(tmp_path / "b.jsonl", [{"text": "new tort", "label": "law"}])
    assert json.loads(train(first, tmp_path / "out", "--json").stdout)["parent"] is None
    before = read_artefact(tmp_path / "out")[0].version
    assert json.loads(train(first, tmp_path / "out", "--json").stdout)["version"] == before
    after = json.loads(train(second, tmp_path / "out", "--json").stdout)
    assert after["parent"] == before != after["version"]
    other = json.loads(train(first, tmp_path / "other", "--parent", str(tmp_path / "out"), "--json").stdout)
    assert other["parent"] == after["version"]
    (tmp_path / "out" / "head.safetensors").write_bytes(b"broken")
    assert json.loads(train(second, tmp_path / "out", "--json").stdout)["parent"] is None
    refused = train(first, tmp_path / "other", "--parent", str(tmp_path / "none"))
    assert refused.exit_code == 1 and "is no folder" in refused.stderr
