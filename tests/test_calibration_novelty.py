"""Novelty: distances by hand, percentiles of held-out prompts, abstention, and what the artefact refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collegium.router.artefact import ArtefactError, load_router
from collegium.router.calibration import Floats
from collegium.router.decision import Candidate, decide
from collegium.router.manifest import read_artefact, write_artefact
from collegium.router.ngrams import SKETCH, NgramClassifier
from collegium.router.novelty import NOVELTY, Novelty
from collegium.router.posterior import Posterior
from report_kit import known, trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained().save(tmp_path / "tiny")
    return tmp_path / "tiny"


def cloud(rows: int, seed: int = 0) -> Floats:
    """Wide along the first axis, narrow along the second, flat along the third."""
    drawn: Floats = np.random.default_rng(seed).normal(size=(rows, 3)) * [5.0, 0.1, 0.0] + [1.0, 2.0, 3.0]
    return drawn


def test_distance_is_along_the_direction_of_least_variance() -> None:
    found = Novelty.fit(cloud(100_000), count=1)
    distances = found.distances(np.array([[1.0, 2.0, 3.0], [40.0, 2.0, 3.0], [1.0, 2.3, 3.0], [9.0, 1.8, 9.0]]))
    assert distances == pytest.approx([0.0, 0.0, 3.0, 2.0], abs=0.1)


def test_percentile_is_the_share_of_held_out_rows_nearer() -> None:
    fitted = Novelty.fit(cloud(20_000))
    found = fitted.measured(fitted.distances(cloud(20_000, seed=1)))
    assert np.mean(found.percentiles(cloud(20_000, seed=2)) > 0.95) == pytest.approx(0.05, abs=0.01)
    assert found.percentiles(np.array([1.0, 5.0, 3.0])) == 1.0


def test_it_survives_its_file() -> None:
    fitted = Novelty.fit(cloud(500))
    found = fitted.measured(fitted.distances(cloud(500)))
    again = Novelty.from_bytes(found.to_bytes())
    assert (again.percentiles(cloud(500)) == found.percentiles(cloud(500))).all()
    with pytest.raises(ArtefactError, match="no novelty file"):
        Novelty.from_bytes(b"nothing")


def test_a_novel_prompt_abstains_however_confident() -> None:
    sure = Posterior(("law", "math"), (0.01, 0.99), threshold=0.5, novelty=0.995, novelty_limit=0.99)
    assert (
        sure.abstained and not Posterior(("law", "math"), (0.01, 0.99), 0.5, novelty=0.99, novelty_limit=0.99).abstained
    )
    pool = [Candidate("all", {}, generalist=True), Candidate("maths", {"math": 0.9}, admitted=frozenset({"math"}))]
    decision = decide(sure, pool)
    assert decision.expert == "all" and decision.abstained
    assert decision.reason == (
        "novel: less like the training prompts than 99.5% of prompts, math at 0.99; the generalist answers"
    )


def test_training_measures_novelty_and_loading_uses_it(folder: Path) -> None:
    router = load_router(folder)
    assert router.novelty is not None and router.novelty_limit == 0.99
    read = [router.posterior(prompt.text) for prompt in known()]
    assert np.mean([posterior.novel for posterior in read]) < 0.03
    assert router.posterior("wubble grx vlork zzyzx ptang gnirts nurr").novelty > np.median(
        [one.novelty for one in read]
    )
    nothing = router.posterior(" ")
    assert nothing.novelty == 1.0 and nothing.abstained
    plain = router.classifier.probabilities("who wrote my last will")
    assert router.posterior("who wrote my last will").probabilities == tuple(plain.tolist())


@pytest.mark.slow
def test_few_rows_say_nothing_of_what_is_novel(tmp_path: Path) -> None:
    from collegium.training.train import train

    manifest = train(known()[:300], "tfidf").save(tmp_path / "small")
    assert manifest.novelty_limit is None and load_router(tmp_path / "small").novelty is None


@pytest.mark.parametrize(
    ("width", "value", "sentence"),
    [(7, 0.1, "another vector space"), (SKETCH, np.nan, "NaN"), (SKETCH, None, "do not fit")],
)
def test_another_novelty_is_refused(folder: Path, width: int, value: float | None, sentence: str) -> None:
    manifest, tensors = read_artefact(folder)
    directions = np.full((width, 2), 0.0 if value is None else value, np.float16)
    centre = np.zeros(3 if value is None else 2, np.float32)
    wrong = Novelty(directions, centre, np.zeros(201, np.float32)).to_bytes()
    write_artefact(folder, manifest, tensors, {NOVELTY: wrong})
    with pytest.raises(ArtefactError, match=sentence):
        load_router(folder)


def test_an_artefact_without_novelty_never_abstains_for_it(tmp_path: Path) -> None:
    prompts = known()[:60]
    NgramClassifier().fit([p.text for p in prompts], [p.label for p in prompts]).save(tmp_path / "old")
    assert not load_router(tmp_path / "old").posterior("wubble grx vlork").abstained
