"""The table of word pieces gives what the tokenizer gives."""

from __future__ import annotations

import pytest
from collegium.router.artefact import STARTER
from collegium.router.pieces import Pieces
from collegium.router.static import StaticClassifier
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

STATIC = StaticClassifier.load(STARTER)
PIECES = Pieces(STATIC.tokenizer)
ASCII = "".join(map(chr, range(128)))


@given(st.text(alphabet=ASCII, max_size=60))
@example("[MASK] a[SEP]b [mask]")
@example("x" * 120 + "_y")
@example("don't e-mail; f(x)=a_1\t\n#include<z>")
def test_ascii_text_gets_the_tokenizers_numbers(text: str) -> None:
    numbers = STATIC.tokenizer.encode(text, add_special_tokens=False).ids
    assert PIECES.of(text).tolist() == numbers
    assert PIECES.of(text).tolist() == numbers  # now by the table


@given(st.text(max_size=40))
@example("naïve İstanbul 数学 ½ e\u0301")
def test_any_text_gets_the_tokenizers_numbers(text: str) -> None:
    if text.isprintable():
        assert PIECES.of(text).tolist() == STATIC.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["The cat", "the CAT_sat"])
def test_a_tokenizer_that_splits_otherwise_is_asked_every_time(text: str) -> None:
    words = {"[UNK]": 0, "The": 1, "the": 2, "cat": 3, "CAT_sat": 4}
    other = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Pieces(other).of(text).tolist() == [words[word] for word in text.split()]
