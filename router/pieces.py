"""Word pieces of a text: by the tokenizers library, or faster, by a table, where the text is plain ASCII."""

from __future__ import annotations

import json
import re

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int64]

MOST_WORDS = 50_000  # in the table
LONGEST = 40  # letters of a word in the table
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f]"  # a tokenizer may drop these inside a word
_PART = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")


class Pieces:
    """Numbers of a text's pieces, the same by either way.

    A BERT tokenizer splits a lower-cased ASCII text at blanks and around every punctuation mark, and then each part on
    its own: so what a part gave once it gives again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table: dict[str, list[int]] = {}
        self._splits_plainly = _splits_plainly(tokenizer)
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._special = re.compile("|".join([_CONTROL, *map(re.escape, added)]))

    def of(self, text: str) -> Ids:
        """Piece numbers, shape (n,), without special ones."""
        if not self._splits_plainly or not text.isascii() or self._special.search(text):
            return np.array(self._encoded(text), np.int64)
        table = self._table
        found: list[int] = []
        for part in _PART.findall(text.lower()):
            numbers = table.get(part)
            found += self._looked_up(part) if numbers is None else numbers
        return np.array(found, np.int64)

    def _looked_up(self, part: str) -> list[int]:
        numbers = self._encoded(part)
        if len(part) <= LONGEST and len(self._table) < MOST_WORDS:
            self._table[part] = numbers
        return numbers

    def _encoded(self, text: str) -> list[int]:
        numbers: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return numbers


def _splits_plainly(tokenizer: Tokenizer) -> bool:
    """Whether it is BERT's, lower-casing."""
    made = json.loads(tokenizer.to_str())
    normaliser, splitter, model = (made.get(part) or {} for part in ("normalizer", "pre_tokenizer", "model"))
    lowers = normaliser.get("type") == "BertNormalizer" and normaliser.get("lowercase")
    return bool(lowers) and (splitter.get("type"), model.get("type")) == ("BertPreTokenizer", "WordPiece")
