"""Vector scaling: recovered where it is true, left out where it is not, kept in the artefact, unknown to old ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collegium.router.artefact import STARTER, ArtefactError, load_router
from collegium.router.calibration import (
    Floats,
    Targets,
    VectorScaling,
    choose_vector_scaling,
    classwise_ece,
    fit_temperature,
    fit_vector_scaling,
    nll,
    softmax,
)
from collegium.router.manifest import Manifest, ScalingRecord, read_artefact, write_artefact
from collegium.router.ngrams import NgramClassifier
from router_kit import labelled

TRUE = VectorScaling((0.5, 1.0, 1.6), (0.0, 0.8, -0.8))


def sample(scaling: VectorScaling | None, rows: int, seed: int = 0) -> tuple[Floats, Targets]:
    """Logits, and targets drawn from the probabilities that `scaling` makes of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 3)) * 2
    cumulative = softmax(scaling.applied(logits) if scaling else logits).cumsum(axis=1)[:, :-1]
    return logits, (rng.random((rows, 1)) > cumulative).sum(axis=1)


def test_true_scaling_is_recovered() -> None:
    logits, targets = sample(TRUE, 40_000)
    found = fit_vector_scaling(logits, targets)
    assert found.factors == pytest.approx(TRUE.factors, abs=0.08)
    assert np.subtract(found.shifts, found.shifts[0]) == pytest.approx(TRUE.shifts, abs=0.12)


def test_it_is_chosen_where_it_helps_and_helps_on_fresh_rows() -> None:
    logits, targets = sample(TRUE, 4_000)
    temperature = fit_temperature(logits, targets)
    found = choose_vector_scaling(logits, targets, np.arange(len(targets)), temperature)
    assert found is not None
    fresh, truth = sample(TRUE, 20_000, seed=1)
    before, after = fresh / temperature, found.applied(fresh / temperature)
    assert nll(after, truth) < 0.97 * nll(before, truth)
    assert classwise_ece(softmax(after), truth) < 0.5 * classwise_ece(softmax(before), truth)


@pytest.mark.parametrize("draw", range(5))
def test_it_is_left_out_where_temperature_is_enough(draw: int) -> None:
    logits, targets = sample(None, 600, draw)
    assert choose_vector_scaling(logits, targets, np.arange(600), fit_temperature(logits, targets)) is None


def test_what_helps_within_each_source_only_is_left_out() -> None:
    """Each source has shifts of its own, which say nothing of the next source's."""
    rng = np.random.default_rng(0)
    parts = [sample(VectorScaling((1.0, 1.0, 1.0), tuple(rng.normal(size=3).tolist())), 500, seed) for seed in range(6)]
    logits, targets = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    temperature = fit_temperature(logits, targets)
    assert choose_vector_scaling(logits, targets, np.repeat(np.arange(6), 500), temperature) is None
    assert choose_vector_scaling(logits, targets, np.zeros(3_000, int), temperature) is None  # one source tells nothing


def test_classwise_ece_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    expected = 0.5 * abs(0.5 - 0.9) + 0.5 * abs(0.0 - 0.4)
    assert classwise_ece(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(expected)


def test_an_artefact_keeps_its_scaling(tmp_path: Path) -> None:
    classifier = NgramClassifier().fit([text for text, _ in labelled()], [label for _, label in labelled()])
    logits = classifier.logits("sue my landlord")
    classifier.scaling = TRUE
    classifier.temperature = 2.0
    classifier.save(tmp_path / "scaled")
    loaded = NgramClassifier.load(tmp_path / "scaled")
    assert loaded.scaling == TRUE
    expected = softmax(TRUE.applied(logits / 2))
    assert loaded.probabilities("sue my landlord") == pytest.approx(expected, abs=1e-6)


def test_scaling_of_other_labels_is_refused(tmp_path: Path) -> None:
    NgramClassifier().fit([text for text, _ in labelled()], [label for _, label in labelled()]).save(tmp_path / "r")
    manifest, tensors = read_artefact(tmp_path / "r")
    short = manifest.model_copy(update={"scaling": ScalingRecord(factors=[1.0], shifts=[0.0])})
    write_artefact(tmp_path / "r", short, tensors, {})
    with pytest.raises(ArtefactError, match="a factor and a shift for each label"):
        load_router(tmp_path / "r")


def test_artefacts_from_before_keep_their_version() -> None:
    manifest, _ = read_artefact(STARTER)
    assert b"scaling" not in Manifest(format=1, kind="tfidf", name="x", labels=["a", "b"]).canonical()
    assert manifest.version == manifest.content_version()


def test_scaling_must_be_finite() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        VectorScaling((1.0, float("nan")), (0.0, 0.0))
