"""Training with a guarantee: the prompts set aside are in nothing else, and a version can be given a new promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collegium.cli.main import main
from collegium.router.artefact import load_router
from collegium.router.calibration import NEVER
from collegium.router.seen import seen_rows
from collegium.training.data import DataError, Prompt
from collegium.training.guarantee import recalibrated, train_with_guarantee
from collegium.training.recipes import Options
from report_kit import fresh, known, trained, write_prompts

OPTIONS = Options(name="safe")


@pytest.mark.slow
def test_wrong_routes_stay_under_alpha_on_prompts_never_seen(tmp_path: Path) -> None:
    prompts = known()
    found = train_with_guarantee(prompts, "tfidf", OPTIONS, 0.1, 0.9)
    assert found.risk is not None and found.risk.possible and found.risk.bound is not None and found.risk.bound <= 0.1
    assert found.risk.rows < 0.25 * len(prompts) and found.report.rows + found.risk.rows <= len(prompts)
    manifest = found.save(tmp_path / "safe")
    assert manifest.threshold == found.risk.threshold and "at most 10.0%" in str(manifest.metrics["risk"])
    assert sum(manifest.data.rows.values()) == len(prompts)
    router = load_router(tmp_path / "safe")
    routed = [(p, router.posterior(p.text)) for p in fresh() if not router.posterior(p.text).abstained]
    assert routed and np.mean([one.domain != prompt.label for prompt, one in routed]) <= 0.1
    assert len(seen_rows(tmp_path / "safe", [prompt.text for prompt in prompts])) == len(prompts)


def test_labels_that_cannot_be_learned_route_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation([prompt.label for prompt in known()])
    shuffled = [Prompt(p.row, p.text, str(label)) for p, label in zip(known(), labels, strict=True)]
    found = train_with_guarantee(shuffled, "tfidf", OPTIONS, 0.05, 0.9)
    assert found.risk is not None and not found.risk.possible and found.about.threshold == NEVER
    found.save(tmp_path / "lost")
    router = load_router(tmp_path / "lost")
    assert all(router.posterior(prompt.text).abstained for prompt in shuffled[:50])
    assert "Nothing is routed" in str(router.manifest.metrics["risk"])


def test_a_version_gets_a_new_promise_on_fresh_prompts(tmp_path: Path) -> None:
    trained().save(tmp_path / "tiny")
    before = load_router(tmp_path / "tiny")
    manifest, risk = recalibrated(tmp_path / "tiny", tmp_path / "mine", fresh(), 0.2, 0.8)
    after = load_router(tmp_path / "mine")
    assert after.version == manifest.version != before.version and manifest.parent == before.version
    assert after.threshold == risk.threshold and risk.rows <= len(fresh())
    text = "sue my landlord over the contract"
    assert after.posterior(text).probabilities == before.posterior(text).probabilities
    with pytest.raises(DataError, match="are training prompts of"):
        recalibrated(tmp_path / "mine", tmp_path / "again", fresh(), 0.2, 0.8)


def test_guarantees_from_the_command_line(tmp_path: Path) -> None:
    run = CliRunner()
    data, out = write_prompts(tmp_path / "data.jsonl", known()), str(tmp_path / "safe")
    made = run.invoke(main, ["train", str(data), "--kind", "tfidf", "--out", out, "--alpha", "0.1", "--json"])
    assert made.exit_code == 0, made.output
    risk = json.loads(made.stdout)["risk"]
    assert risk["alpha"] == 0.1 and risk["level"] == 0.9 and "exchangeable" in risk["guarantee"]
    own = write_prompts(tmp_path / "own.jsonl", fresh())
    again = run.invoke(
        main, ["router", "calibrate", out, "--data", str(own), "--alpha", "0.001", "--out", str(tmp_path / "b")]
    )
    assert again.exit_code == 0 and "Nothing is routed" in again.stdout and "wrote safe-" in again.stdout
    bad = run.invoke(main, ["train", str(data), "--kind", "tfidf", "--out", out, "--alpha", "1.5"])
    assert bad.exit_code == 1 and "alpha is 1.5; it must be over 0 and under 1" in bad.stderr
