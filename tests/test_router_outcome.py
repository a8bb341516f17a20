"""The outcome router: regions kept only when proved, calibrated qualities, and the decision that uses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collegium.cli.main import main
from collegium.experts.weights import locate
from collegium.router.artefact import ArtefactError, load_router
from collegium.router.classifier import About
from collegium.router.decision import Candidate, decide
from collegium.router.manifest import read_artefact, write_artefact
from collegium.router.outcome import OutcomeClassifier
from collegium.router.outcome_model import fit_outcome_model
from collegium.router.posterior import Posterior
from collegium.router.regions import find_regions
from router_kit import labelled, minilm


def answered(rng: np.random.Generator, chances: np.ndarray) -> np.ndarray:
    return rng.random(chances.shape) < chances


def test_a_region_is_kept_where_another_expert_wins_and_not_where_chance_says_so() -> None:
    rng = np.random.default_rng(0)
    centre = rng.integers(0, 2, 800)
    vectors = np.eye(8)[centre] + rng.normal(0, 0.1, (800, 8))
    domain = np.zeros(800, np.int64)
    chances = np.where(centre[:, None] == 0, [0.9, 0.4], [0.3, 0.7])
    found = find_regions(vectors, domain, answered(rng, chances), 1)
    assert found.columns > 1
    columns = found.of(np.eye(8)[[0, 1]])[:, 0]
    assert columns[0] == 0 and columns[1] >= 1
    assert found.spread(np.eye(8)[[1]], np.ones((1, 1)))[0].tolist() == np.eye(found.columns)[columns[1]].tolist()
    same = find_regions(vectors, domain, answered(rng, np.full((800, 2), 0.5)), 1)
    assert same.columns == 1


def test_difficulty_is_learnt_apart_from_who_is_better() -> None:
    """The vector tells how hard a prompt is for both, and nothing about who is better: only the first is kept large."""
    rng = np.random.default_rng(1)
    domain = rng.integers(0, 2, 3_000)
    vectors = rng.normal(0, 1, (3_000, 6))
    hard = 0.25 * np.tanh(vectors[:, :1])
    chances = np.where(domain[:, None] == 0, [0.7, 0.4], [0.35, 0.6]) - hard
    right = answered(rng, chances)
    posterior = np.eye(2)[domain]
    fit = fit_outcome_model(vectors, posterior, domain, right, np.arange(3_000) % 3)
    assert fit.difficulty.best is not None
    quality = fit.model.qualities(vectors, posterior)
    assert np.abs(quality - chances).mean() < 0.04
    assert (quality.argmax(axis=1) == domain).mean() > 0.99
    assert fit.difficulty.error[fit.difficulty.best] < 0.98 * fit.difficulty.error[None]
    assert fit.difference.error[fit.difference.best] > 0.995 * fit.difference.error[None]


def test_qualities_replace_skills_and_keep_admission() -> None:
    general = Candidate("general", {}, default_skill=0.5, generalist=True)
    poet = Candidate("poet", {"law": 0.9}, default_skill=0.5, admitted=frozenset({"poetry"}))
    qualities = {"general": 0.4, "poet": 0.8}
    asked = Posterior(("law", "poetry"), (0.4, 0.6), qualities=qualities)
    decision = decide(asked, [general, poet])
    assert decision.expert == "poet"
    assert {score.expert: score.quality for score in decision.scores} == {
        "poet": pytest.approx(0.6 * 0.8 + 0.4 * 0.4),
        "general": pytest.approx(0.4),
    }
    assert decide(Posterior(("law", "poetry"), (0.6, 0.4), qualities=qualities), [general, poet]).expert == "general"
    with pytest.raises(ValueError, match="qualities"):
        Posterior(("law",), (1.0,), qualities={"poet": 1.2})


@pytest.fixture(scope="module")
def fitted() -> OutcomeClassifier:
    """A coder and a lawyer, each right at home."""
    rows = [row for row in labelled() if row[1] != "math"]
    classifier = OutcomeClassifier(minilm())
    texts, domains = [text for text, _ in rows], [label for _, label in rows]
    vectors = np.stack([classifier.encoder.encode(classifier.prepare(text)) for text in texts])
    correct = np.array([[label == "coding", label == "law"] for label in domains])
    classifier.fit_outcomes(vectors, domains, ("coder", "lawyer"), correct, np.arange(len(rows)) // 2 % 3)
    return classifier


def test_it_saves_loads_and_answers_alike(fitted: OutcomeClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "r", About(self_test=("explain a python null pointer",)))
    router = load_router(tmp_path / "r", locate)
    code = router.posterior("explain a python null pointer")
    law = router.posterior("my landlord has a problem")
    assert code.qualities["coder"] > 0.6 > code.qualities["lawyer"]
    assert law.qualities["lawyer"] > 0.6 > law.qualities["coder"]
    assert dict(code.qualities) == pytest.approx(dict(fitted.read("explain a python null pointer")[1]), abs=1e-4)
    assert router.posterior("").qualities == {}


def test_places_that_point_nowhere_are_refused(fitted: OutcomeClassifier, tmp_path: Path) -> None:
    manifest, tensors = read_artefact(_saved(fitted, tmp_path))
    wrong = {
        **tensors,
        "centroids": np.zeros((1, 384), np.float32),
        "domain_of": np.array([0]),
        "column_of": np.array([5]),
    }
    write_artefact(tmp_path / "wrong", manifest, wrong, {})
    with pytest.raises(ArtefactError, match="column_of"):
        load_router(tmp_path / "wrong", locate)
    write_artefact(tmp_path / "less", manifest, {**tensors, "skills": tensors["skills"][:1]}, {})
    with pytest.raises(ArtefactError, match="skills"):
        load_router(tmp_path / "less", locate)


def _saved(fitted: OutcomeClassifier, folder: Path) -> Path:
    fitted.save(folder / "kept")
    return folder / "kept"


def test_the_command_trains_from_recorded_answers_and_route_shows_qualities(tmp_path: Path) -> None:
    rows = [row for row in labelled() if row[1] != "math"]
    lines = [
        {
            "question_id": number, "category": domain, "src": "x", "question": text,
            "options": ["a", "b"], "answer": "A",
            "pred_uniform": {"coder": "A", "lawyer": "A"},
            "correct_uniform": {"coder": int(domain == "coding"), "lawyer": int(domain == "law")},
        }
        for number, (text, domain) in enumerate(rows)
    ]  # fmt: skip
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pool = ["--records", str(file), "--experts", "coder,lawyer", "--cache", str(tmp_path / "cache"), "--json"]
    made = CliRunner().invoke(main, ["train-outcome", *pool, "--out", str(tmp_path / "r")])
    assert made.exit_code == 0, made.output
    report = json.loads(made.stdout)
    assert report["routed"] > report["best_single"] and report["rows"] == len(rows)
    shown = CliRunner().invoke(main, ["route", "fix my python code", "--router", str(tmp_path / "r"), "--json"])
    quality = json.loads(shown.stdout)["qualities"]
    assert quality["coder"] > quality["lawyer"]
    one = CliRunner().invoke(
        main, ["train-outcome", "--records", str(file), "--experts", "coder", "--out", str(tmp_path / "q")]
    )
    assert one.exit_code != 0 and "2 or more" in one.output and not (tmp_path / "q").exists()
