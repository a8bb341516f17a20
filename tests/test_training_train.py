"""Training on the real encoder: held-out scores, calibration, the cache, interruption, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collegium.cli.main import main
from collegium.experts.weights import locate
from collegium.router.artefact import load_router
from collegium.training.data import DataError, Prompt
from collegium.training.features import SHARD, vectors_of
from collegium.training.metrics import score
from collegium.training.recipes import Options
from collegium.training.train import train
from router_kit import labelled, minilm

PROMPTS = [Prompt(row, text, label) for row, (text, label) in enumerate(labelled(), start=1)]


def data_file(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in labelled()))
    return path


def test_training_learns_and_reports_held_out_rows(tmp_path: Path) -> None:
    trained = train(PROMPTS, "frozen", minilm(), Options(name="tiny", precision=0.8))
    report = trained.report
    assert report.rows == report.held_out.rows == len(PROMPTS) and report.held_out.accuracy > 0.6
    assert report.held_out.precision is not None and report.held_out.precision >= 0.8
    manifest = trained.save(tmp_path / "tiny")
    router = load_router(tmp_path / "tiny", locate)
    assert router.version == manifest.version and router.threshold == report.held_out.threshold
    assert manifest.data.rows == {"coding": 24, "law": 24, "math": 24} and manifest.temperature == report.temperature
    assert router.posterior("my landlord wants my deposit").domain == "law"


def test_the_same_data_and_seed_give_the_same_version(tmp_path: Path) -> None:
    versions = {
        train(PROMPTS, "frozen", minilm(), Options(name="tiny", seed=seed)).save(tmp_path / str(run)).version
        for run, seed in enumerate([1, 1])
    }
    assert len(versions) == 1


def test_shuffled_labels_score_like_chance() -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation([prompt.label for prompt in PROMPTS])
    shuffled = [Prompt(prompt.row, prompt.text, str(label)) for prompt, label in zip(PROMPTS, labels, strict=True)]
    assert train(shuffled, "frozen", minilm()).report.held_out.accuracy < 0.55


def test_a_label_of_one_prompt_is_refused() -> None:
    copies = [Prompt(100 + i, "always the very same prompt", "same") for i in range(8)]
    with pytest.raises(DataError, match="all rows of label 'same' are near-duplicates of one prompt"):
        train([*PROMPTS, *copies], "frozen", minilm())


def test_vectors_are_cached_and_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    texts = [f"prompt number {i}" for i in range(5)]
    first = vectors_of(texts, minilm(), tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 1 and SHARD >= 5
    seen: list[tuple[int, int]] = []
    assert (vectors_of(texts, minilm(), tmp_path, lambda done, total: seen.append((done, total))) == first).all()
    assert seen == [(5, 5)]  # nothing was encoded on the way
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert np.abs(vectors_of(texts, minilm(), tmp_path) - first).max() < 1e-6
    vectors_of([*texts, "one more"], minilm(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_batches_agree_with_one_prompt_alone() -> None:
    texts = ["short", "a much longer prompt " * 20, "", "fix my code"]
    alone = np.stack([minilm().encode(text) for text in texts])
    assert np.abs(vectors_of(texts, minilm()) - alone).max() < 1e-5


def test_scores_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    scores = score(probabilities, np.array([0, 0, 1, 1]), ("a", "b", "c"), threshold=0.65)
    first, second = scores.domains
    assert (first.precision, first.recall, second.precision, second.recall) == (2 / 3, 1.0, 1.0, 0.5)
    assert scores.accuracy == 0.75 and scores.coverage == 0.75 and scores.precision == 2 / 3
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)


def test_train_and_route_from_the_command_line(tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "mine"
    data = data_file(tmp_path / "data.jsonl")
    trained = run.invoke(main, ["train", str(data), "--out", str(out), "--cache", str(tmp_path / "cache"), "--json"])
    assert trained.exit_code == 0, trained.output
    report = json.loads(trained.stdout)
    assert report["version"].startswith("mine-") and report["rows"] == 72 and report["held_out"]["accuracy"] > 0.6

    rows = tmp_path / "prompts.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ["sue my landlord", "git rebase error", "ok"])
    )
    routed = run.invoke(main, ["route", "--router", str(out), "--file", str(rows), "--json"])
    lines = [json.loads(line) for line in routed.stdout.splitlines()]
    assert [line["domain"] for line in lines[:2]] == ["law", "coding"] and len(lines) == 3
    assert all(set(line) == {"domain", "confidence", "abstained", "novelty", "posterior"} for line in lines)
    assert lines[0]["confidence"] == max(lines[0]["posterior"].values())

    alone = run.invoke(main, ["route", "--router", str(out), "--json", "sue my landlord"])
    assert json.loads(alone.stdout) == lines[0]


def test_route_explains_a_pool(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["route", "--pool", "demo", "--json", "Find the derivative of x^3 sin x"])
    assert shown.exit_code == 0, shown.output
    decision = json.loads(shown.stdout)
    assert decision["domain"] == "math" and decision["expert"] == "math" and decision["runner_up"]
    excluded = {score["expert"]: score["excluded"] for score in decision["scores"]}
    assert excluded["math"] is None and excluded["coding"] == "not admitted to math"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ('{"text": "fine"}\n{"text": "broken\n', "row 2: broken JSON"),
        ('{"text": "fine"}\n{"txt": "misnamed"}\n', "row 2: there is no column 'text'"),
        ('{"text": "fine"}\n{"text": ""}\n', "row 2: 'text' is no text, or empty"),
        ('{"text": "fine"}\n{"text": 5}\n', "row 2: 'text' is no text, or empty"),
    ],
)
def test_bad_rows_are_told_before_anything_is_printed(tmp_path: Path, rows: str, sentence: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(rows)
    result = CliRunner().invoke(main, ["route", "--file", str(path), "--json"])
    assert result.exit_code != 0 and sentence in result.stderr and result.stdout == ""


@pytest.mark.parametrize("arguments", [["route"], ["route", "a", "--file", "b"]])
def test_route_wants_one_kind_of_input(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "give either a PROMPT or --file" in result.stderr


def test_train_refuses_with_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    data, out = data_file(tmp_path / "data.jsonl"), tmp_path / "out"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "", "label": "a"}\n')
    cases = {
        "row 1: 'text' is empty": [str(bad), "--out", str(out)],
        "precision is 2.0": [str(data), "--out", str(out), "--precision", "2"],
        "exists and is no router": [str(data), "--out", str(tmp_path)],
        "there is no column 'topic'": [str(data), "--out", str(out), "--label-column", "topic"],
        "cannot be opened": [str(data), "--out", str(out), "--encoder", str(tmp_path / "none")],
    }
    for sentence, arguments in cases.items():
        result = CliRunner().invoke(main, ["train", *arguments])
        assert result.exit_code == 1 and sentence in result.stderr, (sentence, result.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "data.jsonl"]
