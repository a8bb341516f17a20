"""Artefacts kept by version: whole copies only, and none is touched by what happens to the original."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from collegium.router.classifier import About
from collegium.router.manifest import ArtefactError, read_artefact
from collegium.router.ngrams import NgramClassifier
from collegium.router.store import artefacts, held_out_accuracy, keep
from router_kit import labelled


@pytest.fixture
def made(tmp_path: Path) -> Path:
    texts, labels = zip(*labelled(), strict=True)
    about = About(name="made", metrics={"held_out": {"accuracy": 0.75}}, extra={"seen.safetensors": b"x"})
    NgramClassifier().fit(texts, labels).save(tmp_path / "made", about)
    return tmp_path / "made"


def test_a_copy_is_whole_and_stays(made: Path, tmp_path: Path) -> None:
    manifest = read_artefact(made)[0]
    kept = keep(made, tmp_path / "store")
    assert kept == tmp_path / "store" / manifest.version == keep(made, tmp_path / "store")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }
    shutil.rmtree(made)
    assert read_artefact(kept)[0] == manifest and held_out_accuracy(manifest) == 0.75
    assert [path.name for path in (tmp_path / "store").iterdir()] == [manifest.version]


def test_a_broken_copy_is_made_anew(made: Path, tmp_path: Path) -> None:
    kept = keep(made, tmp_path / "store")
    (kept / "head.safetensors").write_bytes(b"half")
    assert read_artefact(keep(made, tmp_path / "store"))[0] == read_artefact(made)[0]


def test_what_is_no_router_or_cannot_be_copied_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is no folder"):
        keep(tmp_path / "none", tmp_path / "store")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot be copied"):
        keep(made, tmp_path / "file")


def test_artefacts_of_a_folder(made: Path, tmp_path: Path) -> None:
    assert [path for path, _ in artefacts(made)] == [made] == [path for path, _ in artefacts(tmp_path)]
    (made / "head.safetensors").unlink()
    assert isinstance(next(artefacts(tmp_path))[1], ArtefactError)
    assert list(artefacts(tmp_path / "none")) == []
