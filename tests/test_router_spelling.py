"""Slips of the keyboard: undone where a known word is near, and nothing else is touched."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
from collegium.experts.weights import locate
from collegium.router.artefact import ArtefactError, load_router
from collegium.router.ngrams import NgramClassifier
from collegium.router.spelling import ENOUGH, RARE, WORDS, Speller
from collegium.training.data import Prompt
from collegium.training.recipes import Options
from collegium.training.train import train
from hypothesis import given
from hypothesis import strategies as st
from router_kit import labelled, minilm

KNOWN = ["integral", "landlord", "function", "function", "returns", "deposit", "cart", "card", "card"]
TEXT = "Does the LANDLORD keep my deposit when this function returns an integral?"


def speller() -> Speller:
    """`card` is more frequent than `cart`; the words of TEXT, and `cars`, are known."""
    others = [f"other{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]}{'uvwxyz'[n // 100 % 6]}x" for n in range(600)]
    texts = [*KNOWN * 3, TEXT, "cars", "naïve"]
    made = Speller.of(texts, [*others, *(f"{a}{b}" for a in others[:60] for b in others[:100])])
    assert made is not None
    return made


@pytest.mark.parametrize(
    "slip",
    [
        TEXT.replace("LANDLORD", "LANLDORD"),
        TEXT.replace("deposit", "depsit"),
        TEXT.replace("function", "functiion"),
        TEXT.replace("integral", "imtegral"),
        TEXT.replace("LANDLORD", "LNDLORD").replace("integral", "integrla"),
    ],
)
def test_swapped_lost_doubled_and_neighbouring_letters_are_undone_and_case_is_kept(slip: str) -> None:
    assert slip != TEXT and speller().corrected(slip) == TEXT


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "my cars keep the deposit",  # known, though one slip away from a word that is more frequent
        "the naïve deposit",
        "keep the deposti2 of landlor_d, x@landlrd.com, /home/depsit",  # names, addresses, paths
        "depsit lanldord functiion imtegral",  # so many unknown words are another language
        "the de of my la",  # too short to tell
        "",
    ],
)
def test_what_is_no_slip_is_left_as_it_is(text: str) -> None:
    assert speller().corrected(text) == text


def test_the_more_frequent_word_is_meant() -> None:
    assert speller().corrected("keep the cardt") == "keep the card"


def test_few_words_teach_no_spelling() -> None:
    words = ["".join(letters) for letters in itertools.islice(itertools.product("abcdefgh", repeat=5), ENOUGH)]
    assert Speller.of([TEXT] * 10) is None
    assert Speller.of([TEXT] * 10, words) is not None


@given(st.text(alphabet="abcdeLNDinrst 'é", max_size=80))
def test_correcting_twice_is_correcting_once(text: str) -> None:
    once = SPELLER.corrected(text)
    assert SPELLER.corrected(once) == once


def test_a_trained_router_undoes_slips_and_keeps_doing_so_when_loaded(tmp_path: Path) -> None:
    prompts = [Prompt(row, text, label) for row, (text, label) in enumerate(labelled(), 2)]
    trained = train(prompts, "frozen", minilm(), Options(precision=0.5))
    trained.save(tmp_path / "r")
    loaded = load_router(tmp_path / "r", locate)
    right, slip = "explain integral to me", "explain integarl to me"
    assert loaded.classifier.prepare(slip) == right
    assert loaded.posterior(slip) == loaded.posterior(right)
    train(prompts, "frozen", minilm(), Options(precision=0.5, spelling=False)).save(tmp_path / "plain")
    assert load_router(tmp_path / "plain", locate).classifier.prepare(slip) == slip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({WORDS: np.frombuffer(b"no zlib", np.uint8)}, "not compressed text"),
        ({WORDS: np.frombuffer(zlib.compress(b"a" * 2**25), np.uint8)}, "over 16777216 bytes"),
        ({WORDS: np.frombuffer(zlib.compress(b"\xff"), np.uint8)}, "not compressed text"),
        ({RARE: np.zeros(3, np.float32)}, "must be"),
        ({RARE: None}, "must be"),
        ({"spelling.more": np.zeros(3, np.uint8)}, "must be"),
    ],
)
def test_a_broken_speller_is_refused(
    change: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]] | None], said: str, tmp_path: Path
) -> None:
    texts, labels = zip(*labelled(), strict=True)
    classifier = NgramClassifier().fit(texts, labels)

    class Broken(Speller):
        def tensors(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]]:
            whole = {**super().tensors(), **change}
            return {name: values for name, values in whole.items() if values is not None}

    classifier.speller = Broken(["deposit"], np.zeros(1, np.uint32))
    classifier.save(tmp_path / "r")
    with pytest.raises(ArtefactError, match=said):
        load_router(tmp_path / "r")


SPELLER = speller()
