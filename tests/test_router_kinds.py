"""One contract for every kind: fit, predict, save, load, and a route that depends on the prompt alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from collegium.experts.weights import locate
from collegium.router.artefact import ArtefactError, load_router
from collegium.router.classifier import About, Classifier
from collegium.router.committee import CommitteeClassifier
from collegium.router.frozen import FrozenClassifier
from collegium.router.kinds import KINDS, class_of
from collegium.router.manifest import Manifest, read_artefact, write_artefact
from collegium.router.ngrams import NgramClassifier, ngram_counts
from collegium.training.learners import logits_of
from hypothesis import given
from hypothesis import strategies as st
from router_kit import labelled, minilm

TEXTS, LABELS = [text for text, _ in labelled()], [label for _, label in labelled()]
ASKED = [
    "my landlord has a problem",
    "explain a python null pointer",
    "the integral of a fraction",
    "",
    "\ud800é" * 400,
]


def unfitted(kind: str) -> Classifier:
    if kind == "tfidf":
        return NgramClassifier()
    if kind == "frozen":
        return FrozenClassifier(minilm())
    return CommitteeClassifier([FrozenClassifier(minilm()), NgramClassifier()])


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: pytest.FixtureRequest) -> Classifier:
    return unfitted(request.param).fit(TEXTS, LABELS)


def test_a_kind_learns_saves_and_loads(fitted: Classifier, tmp_path: Path) -> None:
    fitted.temperature = 0.7
    manifest = fitted.save(tmp_path / "r", About(self_test=ASKED[:3]))
    assert manifest.kind == fitted.kind and fitted.predict(ASKED[:3]).tolist() == ["law", "coding", "math"]
    loaded = class_of(fitted.kind).load(tmp_path / "r", locate)
    assert loaded.classes_.tolist() == ["coding", "law", "math"] and loaded.temperature == 0.7
    assert np.abs(loaded.predict_proba(ASKED) - fitted.predict_proba(ASKED)).max() < 1e-5


def test_probabilities_are_the_same_in_any_company(fitted: Classifier) -> None:
    together = fitted.predict_proba(ASKED)
    assert together.shape == (5, 3) and np.allclose(together.sum(axis=1), 1)
    assert all((fitted.probabilities(text) == row).all() for text, row in zip(ASKED, together, strict=True))
    assert (fitted.predict_proba(ASKED[::-1]) == together[::-1]).all()
    assert fitted.predict_proba([]).shape == (0, 3)


def test_many_at_once_agree_with_one_alone(fitted: Classifier) -> None:
    texts = [fitted.prepare(text) for text in TEXTS[:5]]
    alone = np.stack([fitted.logits(text) for text in texts])
    assert np.abs(logits_of(fitted, texts) - alone).max() < 1e-4


def test_logits_and_vector_are_those_of_one_reading(fitted: Classifier) -> None:
    for text in map(fitted.prepare, TEXTS[:5]):
        logits, vector = fitted.logits_and_vector(text)
        assert (logits == fitted.logits(text)).all() and (vector == fitted.vector(text)).all()
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_two_labels_are_enough_for_every_kind() -> None:
    rows = [(text, label) for text, label in labelled() if label != "math"]
    for kind in KINDS:
        classifier = unfitted(kind).fit([text for text, _ in rows], [label for _, label in rows])
        assert classifier.predict(["git rebase", "divorce contract"]).tolist() == ["coding", "law"]


def test_another_kind_is_refused(tmp_path: Path) -> None:
    NgramClassifier().fit(TEXTS, LABELS).save(tmp_path / "r")
    with pytest.raises(ArtefactError, match="is of kind 'tfidf', not 'frozen'"):
        FrozenClassifier.load(tmp_path / "r", locate)


def test_ngrams_route_without_torch_and_stay_small(tmp_path: Path) -> None:
    NgramClassifier().fit(TEXTS, LABELS).save(tmp_path / "r")
    assert sum(path.stat().st_size for path in (tmp_path / "r").iterdir()) < 200_000
    program = (
        "import sys, pathlib; from collegium.router.artefact import load_router; "
        f"print(load_router(pathlib.Path({str(tmp_path / 'r')!r})).posterior('divorce contract').domain); "
        "print(sorted({'torch', 'sklearn', 'scipy', 'sentence_transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split("\n")[:2] == ["law", "[]"]


@pytest.mark.parametrize(
    ("fields", "weight", "sentence"),
    [
        ({"settings": {}}, None, "settings buckets and regularisation must be numbers"),
        (
            {"settings": {"buckets": 64, "regularisation": 1}},
            None,
            r"tensor 'weight' has shape \(3, 32768\), not \(3, 64\)",
        ),
        ({}, np.zeros((3, 32768), np.float32), "tensor 'weight' is float32, not int8"),
        ({"kind": "committee", "settings": {}}, None, "a committee names its members"),
        ({"kind": "committee", "settings": {"members": [{"kind": "committee", "settings": {}}]}}, None, "member 0"),
        ({"kind": "committee", "settings": {"members": [{"kind": "tfidf", "settings": {}}]}}, None, "must be numbers"),
    ],
)
def test_settings_that_fit_no_kind_are_refused(
    tmp_path: Path,
    fields: dict[str, object],
    weight: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None,
    sentence: str,
) -> None:
    NgramClassifier().fit(TEXTS, LABELS).save(tmp_path / "r")
    manifest, tensors = read_artefact(tmp_path / "r")
    changed = tensors if weight is None else {**tensors, "weight": weight}
    write_artefact(tmp_path / "r", Manifest.model_validate({**manifest.model_dump(), **fields}), changed, {})
    with pytest.raises(ArtefactError, match=sentence):
        load_router(tmp_path / "r", locate)


def test_buckets_must_be_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="buckets is 1000"):
        NgramClassifier(buckets=1000)


@given(st.text(max_size=200))
def test_ngrams_of_any_text_are_ascending_buckets(text: str) -> None:
    found, counts = ngram_counts(text.encode("utf-8", "ignore").decode(), 2**12)
    assert len(found) == len(counts) and (np.diff(found) > 0).all() and (counts >= 1).all()
    assert not len(found) or (found.min() >= 0 and found.max() < 2**12)


def test_ngrams_count_words_and_their_pairs() -> None:
    assert set(ngram_counts("red car", 2**20)[0]) < set(ngram_counts("red car red", 2**20)[0])
    assert (ngram_counts("Red CAR", 2**20)[0] == ngram_counts("red  car", 2**20)[0]).all()
    assert ngram_counts("", 2**10)[0].tolist() == ngram_counts(" ", 2**10)[0].tolist()
