"""Artefacts: a real tiny router on the real encoder, every refusal of the loader, and whole-or-nothing writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from collegium.experts.weights import locate
from collegium.router.artefact import STARTER, ArtefactError, Router, load_router
from collegium.router.classifier import About
from collegium.router.encoder import EncoderError, EncoderId, load_encoder
from collegium.router.frozen import FrozenClassifier
from collegium.router.manifest import MAX_MANIFEST_BYTES, Manifest, read_artefact, write_artefact
from router_kit import minilm

PROMPTS = {
    "coding": [
        "reverse a list in python",
        "fix this null pointer exception",
        "sql join of two tables",
        "git undo commit",
    ],
    "law": ["can my landlord evict me", "is this contract binding", "what is a tort", "how do i appeal a court fine"],
    "math": ["integrate x squared", "what is 12 times 7", "prove that root two is irrational", "solve 3x + 1 = 10"],
}
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    texts = [text for group in PROMPTS.values() for text in group]
    return FrozenClassifier(minilm(), seed=3).fit(texts, [label for label, group in PROMPTS.items() for _ in group])


@pytest.fixture(scope="module")
def saved(classifier: FrozenClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routers") / "small"
    classifier.save(
        folder, About(name="small", threshold=0.4, self_test=["add 2 and 2"], extra={"README.md": b"# small"})
    )
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def router(saved: Path) -> Router:
    return load_router(saved, locate)


def rewrite(
    folder: Path, tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], **fields: object
) -> None:
    """Write the artefact anew, well formed, with other contents."""
    manifest, present = read_artefact(folder)
    changed = Manifest.model_validate({**manifest.model_dump(), **fields})
    write_artefact(folder, changed, {**present, **tensors}, {})


def edit_manifest(folder: Path, **fields: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_loaded_router_routes_like_the_fitted_one(classifier: FrozenClassifier, router: Router) -> None:
    texts = ["how do i sort a dict in python", "my landlord kept the deposit", "derivative of sin x"]
    assert [router.posterior(text).domain for text in texts] == ["coding", "law", "math"]
    loaded = [router.posterior(text).probabilities for text in texts]
    assert np.abs(np.array(loaded) - classifier.predict_proba(texts)).max() < 1e-5
    assert classifier.predict(texts).tolist() == ["coding", "law", "math"]
    assert router.labels == ("coding", "law", "math") and router.threshold == 0.4
    assert router.version.startswith("small-") and len(router.version) == len("small-") + 8


def test_a_route_is_the_same_alone_and_in_any_company(router: Router) -> None:
    texts = ["integrate x", "", "law " * 2_000, "\ud800 tort?", "fix my python code", "é" * 50, "integrate x"]
    alone = [router.posterior(text) for text in texts]
    assert router.posteriors(texts) == alone
    assert router.posteriors(texts[::-1]) == alone[::-1]


def test_files_that_change_under_a_loaded_router_change_nothing(saved: Path, copy: Path) -> None:
    loaded = load_router(copy, locate)
    before = [loaded.posterior(text) for text in PROMPTS["law"]]
    for path in copy.iterdir():
        path.write_bytes(b"\xff" * path.stat().st_size)  # in place: the same inode
    assert [loaded.posterior(text) for text in PROMPTS["law"]] == before
    assert loaded.version == load_router(saved, locate).version


def test_text_that_shows_nothing_abstains(router: Router) -> None:
    for text in ["", "  \n", "\u200b\ufeff", "\ud800"]:
        posterior = router.posterior(text)
        assert posterior.abstained and set(posterior.probabilities) == {1 / 3}


def test_invisible_characters_change_no_route(router: Router) -> None:
    assert router.posterior("in\u200bte\u00adgrate x") == router.posterior("integrate x")


def test_same_fit_has_the_same_version(classifier: FrozenClassifier, saved: Path, tmp_path: Path) -> None:
    about = About(name="small", threshold=0.4, self_test=["add 2 and 2"], extra={"README.md": b"# small"})
    assert classifier.save(tmp_path / "again", about).version == load_router(saved, locate).version
    assert classifier.save(tmp_path / "other", About(name="small")).version != load_router(saved, locate).version


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: flip_byte(f / "head.safetensors"), r"head\.safetensors was changed"),
        (lambda f: flip_byte(f / "README.md"), r"README\.md was changed"),
        (lambda f: (f / "README.md").write_bytes(b"# small and more"), r"README\.md has 16 bytes, 7 were written"),
        (lambda f: (f / "head.safetensors").unlink(), r"head\.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda f: (f / "manifest.json").write_bytes(b"{"), r"manifest\.json is not JSON"),
        (lambda f: (f / "manifest.json").write_bytes(b"[1]"), r"manifest\.json is not a JSON object"),
        (lambda f: (f / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1)), r"manifest\.json is over"),
        (lambda f: edit_manifest(f, format=2), r"format version 2 is not known; this collegium reads 1"),
        (lambda f: edit_manifest(f, threshold=0.1), r"manifest\.json was changed"),
        (lambda f: edit_manifest(f, metrics={"accuracy": float("inf")}), r"manifest\.json was changed"),
        (lambda f: edit_manifest(f, threshold=7), r"field threshold"),
        (lambda f: edit_manifest(f, surprise=1), r"field surprise"),
        (lambda f: (f / "notes.txt").write_text("x"), r"notes\.txt is not listed"),
        (lambda f: (f / "head.pkl").write_text("x"), r"head\.pkl is of a type that can hold code"),
        (lambda f: (f / "link.txt").symlink_to("/etc/passwd"), r"link\.txt is a symbolic link"),
        (lambda f: rewrite(f, {}, kind="oracle"), r"kind 'oracle' is not known; known: .*frozen"),
        (lambda f: rewrite(f, {}, labels=["a", "b"]), r"tensor 'weight' has shape \(3, 384\), not \(2, None\)"),
        (lambda f: rewrite(f, {}, labels=["b", "a", "c"]), r"labels .* are not sorted and distinct"),
        (lambda f: rewrite(f, {"weight": np.ones((3, 7), np.float32)}), r"tensor 'weight' has shape \(3, 7\)"),
        (lambda f: rewrite(f, {"bias": np.full(3, np.nan, np.float32)}), r"tensor bias .* NaN"),
        (lambda f: rewrite(f, {"bias": np.array([9, 0, 0], np.float32)}), r"fails its self-test: 'add 2 and 2'"),
        (lambda f: rewrite(f, {}, encoder=None), r"names no encoder"),
    ],
)
def test_what_is_not_whole_is_refused(copy: Path, change: Change, sentence: str) -> None:
    change(copy)
    with pytest.raises(ArtefactError, match=sentence):
        load_router(copy, locate)


def test_a_linked_head_is_refused(copy: Path) -> None:
    shutil.move(copy / "head.safetensors", copy.parent / "elsewhere")
    (copy / "head.safetensors").symlink_to(copy.parent / "elsewhere")
    with pytest.raises(ArtefactError, match="symbolic link"):
        load_router(copy, locate)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is no folder"):
        load_router(tmp_path / "nothing", locate)


def test_another_encoder_is_refused(copy: Path) -> None:
    manifest, _ = read_artefact(copy)
    assert manifest.encoder
    rewrite(copy, {}, encoder={**manifest.encoder.model_dump(), "checksum": "0" * 64})
    with pytest.raises(EncoderError, match="other weights than the router was trained with"):
        load_router(copy, locate)


def test_a_missing_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="cannot be opened"):
        load_encoder(EncoderId(str(tmp_path)), 160)


def test_a_truncated_head_is_refused_by_its_own_format(copy: Path) -> None:
    manifest, _ = read_artefact(copy)
    tensors = safetensors.numpy.load((copy / "head.safetensors").read_bytes())
    assert set(tensors) == {"weight", "bias"} and manifest.files["head.safetensors"].size < 20_000


def test_writing_replaces_a_router_and_nothing_else(classifier: FrozenClassifier, copy: Path, tmp_path: Path) -> None:
    before = load_router(copy, locate).version
    classifier.save(copy, About(name="newer"))
    assert load_router(copy, locate).version.startswith("newer-") and before.startswith("small-")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    with pytest.raises(ArtefactError, match="exists and is no router"):
        classifier.save(precious)
    with pytest.raises(ArtefactError, match="is a file"):
        classifier.save(precious / "thesis.txt")
    assert (precious / "thesis.txt").read_text() == "words"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "precious"]


def test_a_failed_write_leaves_the_old_router(classifier: FrozenClassifier, copy: Path) -> None:
    before = load_router(copy, locate).version
    with pytest.raises(ArtefactError, match="cannot be written"):
        classifier.save(copy, About(name="newer", extra={"x" * 300 + ".md": b""}))
    assert load_router(copy, locate).version == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_what_a_killed_writer_left_is_swept(classifier: FrozenClassifier, copy: Path) -> None:
    copy.rename(copy.parent / ".copy.old-4194305")  # no process has that id
    (copy.parent / ".copy.partial-4194305").mkdir()
    with pytest.raises(ArtefactError):
        classifier.save(copy, About(extra={"x" * 300 + ".md": b""}))
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert load_router(copy, locate).version.startswith("small-")


def test_two_labels_are_enough(tmp_path: Path) -> None:
    texts, labels = PROMPTS["law"] + PROMPTS["math"], ["law"] * 4 + ["math"] * 4
    FrozenClassifier(minilm()).fit(texts, labels).save(tmp_path / "two")
    router = load_router(tmp_path / "two", locate)
    assert router.posterior("what is 3 times 9").domain == "math" and router.posterior("sue my boss").domain == "law"


def test_the_starter_routes_one_prompt_of_each_domain() -> None:
    router = load_router(STARTER, locate)
    prompts = {
        "math": "Find the derivative of x^3 sin x",
        "coding": "Why does my Python loop raise IndexError?",
        "health": "What are the side effects of ibuprofen?",
        "science": "How do plants turn sunlight into sugar?",
        "law": "Can my landlord keep my deposit without giving a reason?",
        "finance": "Should I refinance my mortgage at 5 percent interest?",
        "humanities": "What caused the fall of the Roman Republic?",
        "writing": "Write a short story about a lighthouse keeper",
        "general": "hi there, how are you doing?",
    }
    assert {domain: router.posterior(text).domain for domain, text in prompts.items()} == {d: d for d in prompts}
    assert sum(path.stat().st_size for path in STARTER.rglob("*")) < 4_000_000


def test_weights_are_written_in_their_own_order(tmp_path: Path, saved: Path) -> None:
    manifest, _ = read_artefact(saved)
    columns_first = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    write_artefact(tmp_path / "new", manifest, {"weight": columns_first}, {})
    assert (read_artefact(tmp_path / "new")[1]["weight"] == columns_first).all()
