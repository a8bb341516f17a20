"""The kinds that torch trains, on a small real encoder: static, finetuned, cascade; resumed, cached, refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from collegium.router.artefact import load_router
from collegium.router.calibration import Floats, softmax
from collegium.router.cascade import CascadeClassifier, Settings, settle
from collegium.router.encoder import EncoderError
from collegium.router.finetuned import FinetunedClassifier
from collegium.router.manifest import ArtefactError
from collegium.router.ngrams import NgramClassifier
from collegium.router.pieces import Ids
from collegium.router.static import StaticClassifier, pair_numbers
from collegium.training.data import DataError, Prompt
from collegium.training.finetune import finetune
from collegium.training.recipes import Options
from collegium.training.sampling import draw
from collegium.training.static_learner import pieces_of
from collegium.training.train import Trained, train
from collegium.training.tuning import Distilling, Tuning
from encoder_kit import tiny_encoder
from router_kit import labelled

PROMPTS = [Prompt(row, text, label) for row, (text, label) in enumerate(labelled(), start=1)]
QUICK = Distilling(least=6_000, steps=100)
BRIEF = Distilling(least=600, steps=12)  # where it matters that it learns, not what
SHORT = Tuning(prompts=320, repeats=99, batch=16, lr=1e-3, head_lr=1e-2, frozen_layers=0, evaluations=4)


def options(**changed: object) -> Options:
    return Options(**{"name": "tiny", "distilling": QUICK, "tuning": SHORT, **changed})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def static() -> Trained:
    return train(PROMPTS, "static", tiny_encoder(), options())


def test_a_static_router_learns_and_loads_as_it_was(static: Trained, tmp_path: Path) -> None:
    assert static.report.held_out.accuracy > 0.6
    static.save(tmp_path / "static")
    router = load_router(tmp_path / "static")
    asked = "my landlord keeps the deposit"
    assert router.posterior(asked).domain == "law"
    assert np.allclose(router.posterior(asked).probabilities, static.classifier.probabilities(asked), atol=1e-7)
    assert router.manifest.encoder is None  # numpy and the tokenizer are all that routing needs


def test_static_training_repeats_to_the_last_bit(tmp_path: Path) -> None:
    brief = options(distilling=BRIEF)
    versions = {train(PROMPTS, "static", tiny_encoder(), brief).save(tmp_path / str(run)).version for run in range(2)}
    assert len(versions) == 1


@pytest.mark.slow
def test_a_teacher_changes_what_a_static_router_learns() -> None:
    alone = train(PROMPTS, "static", tiny_encoder(), options()).classifier
    taught = train(PROMPTS, "static", tiny_encoder(), options(teacher="tfidf")).classifier
    texts = [prompt.text for prompt in PROMPTS]
    assert np.abs(alone.predict_proba(texts) - taught.predict_proba(texts)).max() > 0.01


def test_static_logits_are_what_the_formula_says(static: Trained) -> None:
    trained = static.classifier
    assert isinstance(trained, StaticClassifier)
    _, tensors = trained.state()
    text = "solve the equation for x"
    ids = trained.ids(text)
    assert trained.tokenizer.decode(ids.tolist()).startswith("solve")

    floats = {name: values.astype(np.float64) for name, values in tensors.items()}

    def said(name: str, rows: Ids) -> Floats:
        table = floats[name] * floats[f"{name}_scale"][:, None]
        total: Floats = table[rows].sum(axis=0) / np.sqrt(len(rows))
        return total

    mean = said("tokens", ids)
    inner = mean @ floats["inner"] + floats["inner_bias"]
    logits = (inner / (1 + np.exp(-inner))) @ floats["outer"] + mean @ floats["straight"] + floats["bias"]
    logits += said("piece", ids) + said("pair", pair_numbers(ids, len(tensors["pair"])))
    assert np.allclose(trained.logits(text), logits, atol=1e-4)
    assert np.isfinite(trained.probabilities("\u4e2d")).all()  # no piece of the vocabulary but the unknown one


def test_a_static_router_without_pairs_or_teacher_fits_by_itself() -> None:
    tokenizer, pieces = pieces_of(tiny_encoder())
    vectors = np.stack([tiny_encoder().encode(piece or " ") for piece in pieces])
    classifier = StaticClassifier(tokenizer, vectors, regularisation=1e3)
    classifier.fit([p.text for p in PROMPTS], [p.label for p in PROMPTS])
    right = classifier.predict([p.text for p in PROMPTS]) == np.array([p.label for p in PROMPTS])
    assert right.mean() > 0.8


def test_a_garbled_tokenizer_is_refused() -> None:
    with pytest.raises(ArtefactError, match="tokenizer cannot be read"):
        StaticClassifier(b"{}", np.zeros((4, 2), np.float32))


def test_a_fine_tuned_router_loads_and_stores_what_changed(tmp_path: Path) -> None:
    trained = train(PROMPTS, "finetuned", tiny_encoder(), options())
    trained.save(tmp_path / "tuned")
    router = load_router(tmp_path / "tuned")
    asked = "what is the derivative of x squared"
    assert np.allclose(router.posterior(asked).probabilities, trained.classifier.probabilities(asked), atol=1e-5)
    names = {name for name in trained.classifier.state()[1] if name.startswith("encoder.")}
    assert names and not any("embeddings" in name for name in names)


def test_fine_tuning_lowers_the_loss_of_prompts_that_it_does_not_read(tmp_path: Path) -> None:
    classifier = FinetunedClassifier(tiny_encoder())
    texts, labels = [prompt.text for prompt in PROMPTS], [prompt.label for prompt in PROMPTS]
    classifier.fit(texts, labels)
    targets = (np.array(labels)[:, None] == classifier.classes_).astype(float)
    tuning = Tuning(prompts=1_280, repeats=99, batch=16, lr=1e-3, head_lr=1e-2, frozen_layers=0, evaluations=8)
    held = np.arange(48, 72)  # the third shape of every subject
    found = finetune(classifier, texts, targets, [""] * 72, held, tuning, tmp_path / "work")
    assert found["held_out_loss"] <= found["first_loss"]
    before = FinetunedClassifier(tiny_encoder()).fit(texts[:48], labels[:48])
    right = targets[held].argmax(axis=1)
    losses, hits = [], []
    for one in (before, classifier):
        probabilities = one.predict_proba([texts[row] for row in held])
        losses.append(-np.log(probabilities[np.arange(len(held)), right]).mean())
        hits.append(np.mean(probabilities.argmax(axis=1) == right))
    assert losses[1] < losses[0] and hits[1] > hits[0]


def test_an_interrupted_fine_tuning_goes_on_and_what_is_tuned_is_kept(tmp_path: Path) -> None:
    def stop_late(done: int, total: int) -> None:
        if total == 320 and done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(PROMPTS, "finetuned", tiny_encoder(), options(), tmp_path, stop_late)
    assert list(tmp_path.glob("finetune-*/checkpoint-*"))
    steps: list[int] = []

    def count(done: int, total: int) -> None:
        if total == 320:
            steps.append(done)

    resumed = train(PROMPTS, "finetuned", tiny_encoder(), options(), tmp_path, count).classifier
    assert steps and steps[0] > 100 and not list(tmp_path.glob("finetune-*"))
    steps.clear()
    again = train(PROMPTS, "finetuned", tiny_encoder(), options(), tmp_path, count).classifier
    assert not steps and np.array_equal(again.probabilities("sue my boss"), resumed.probabilities("sue my boss"))
    whole = train(PROMPTS, "finetuned", tiny_encoder(), options(), tmp_path / "whole").classifier
    assert np.allclose(whole.probabilities("sue my boss"), resumed.probabilities("sue my boss"), atol=1e-3)


def test_a_run_that_diverges_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    wild = Tuning(prompts=320, repeats=99, batch=16, lr=1e30, head_lr=1e30, frozen_layers=0)
    with pytest.raises(DataError, match=r"the (eval_)?loss is (nan|inf)"):
        train(PROMPTS, "finetuned", tiny_encoder(), options(tuning=wild), tmp_path)
    assert not list(tmp_path.glob("finetune-*"))


def test_weights_that_the_encoder_does_not_have_are_refused() -> None:
    classifier = FinetunedClassifier(tiny_encoder())
    with pytest.raises(EncoderError, match="has no weight 'nonsense'"):
        classifier.tuned({"nonsense": np.zeros(3)}, np.zeros((2, 32)), np.zeros(2))


def test_a_cascade_asks_its_second_member_only_where_the_first_is_unsure() -> None:
    texts, labels = [p.text for p in PROMPTS], [p.label for p in PROMPTS]
    first, second = NgramClassifier().fit(texts, labels), NgramClassifier(seed=1).fit(texts[::2], labels[::2])
    cascade = CascadeClassifier([first, second])
    cascade.classes_ = first.classes_
    text = "can my landlord raise the rent"
    cascade.settings = Settings(margin=0.0, alone=0.5)
    assert np.allclose(softmax(cascade.logits(text)), softmax(first.logits(text), 0.5))
    cascade.settings = Settings(margin=1.1, together=2.0)
    joined = softmax(first.logits(text)) * softmax(second.logits(text))
    assert np.allclose(softmax(cascade.logits(text)), np.sqrt(joined) / np.sqrt(joined).sum(), atol=1e-6)


def test_the_margin_is_the_least_that_costs_no_more_than_allowed() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 2_000)
    sharp = np.eye(3)[targets] * 4 + rng.normal(0, 0.5, (2_000, 3))
    blurred = np.where((np.arange(2_000) < 1_000)[:, None], sharp, rng.normal(0, 0.3, (2_000, 3)))
    found = settle([blurred, sharp], targets, 0.003)
    assert 0.4 < found.asked < 0.6  # the blurred half, and only it
    assert settle([sharp, sharp], targets, 0.003).asked == 0.0
    assert settle([blurred, sharp], targets, 1.0).asked == 0.0


def test_a_cascade_trains_saves_and_loads(tmp_path: Path) -> None:
    trained = train(PROMPTS, "cascade", tiny_encoder(), options(members=("static", "tfidf"), distilling=BRIEF))
    manifest = trained.save(tmp_path / "cascade")
    router = load_router(tmp_path / "cascade")
    asked = "why does my python loop never end"
    assert np.allclose(router.posterior(asked).probabilities, trained.classifier.probabilities(asked), atol=1e-7)
    assert 0 <= float(str(manifest.settings["asked"])) <= 1


def test_members_and_teachers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="'cascade' cannot be a member; these can: finetuned, frozen, static, tfidf"):
        train(PROMPTS, "committee", tiny_encoder(), options(members=("cascade", "tfidf")))
    with pytest.raises(ValueError, match="teacher 'oracle' is not known"):
        train(PROMPTS, "static", tiny_encoder(), options(teacher="oracle"))
    with pytest.raises(ValueError, match="kind 'static' needs an encoder"):
        train(PROMPTS, "static", None, options())


def test_neither_a_large_source_nor_a_large_label_drowns_the_others() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    sources = ["big"] * 800 + ["small"] * 100 + ["other"] * 100
    targets = np.eye(2)[labels]
    drawn = draw(targets, sources, 10_000, np.random.default_rng(0))
    times = Counter(sources[row] for row in drawn)
    assert times["small"] / 100 > 2 * times["big"] / 800  # sqrt(8) as often a row
    assert Counter(drawn.tolist()).most_common(1)[0][1] <= 31  # MOST times the mean, rounded up
