"""Spelling: a word that training never saw, one slip away from a word that it often saw, is read as that word."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .manifest import ArtefactError, Tensors

SHORTEST = 2  # letters of a word; what is unknown and as short has too many neighbours
OFTEN = 3  # prompts that a word must be in to be a correction
FREQUENT = 100  # prompts that a word must be in for a rare word beside it to be a slip
ENOUGH = 5_000  # words; with fewer known, most unknown words are no slips
MOST_UNKNOWN = 0.6  # of a prompt's words
MOST_CORRECTED = 24  # words of a prompt
RARE_LETTER = 1e-3  # share of a language's letters; rarer ones are not tried
LONGEST = 30  # letters
MAX_BYTES = 16 * 2**20
PREFIX = "spelling."
WORDS, RARE = f"{PREFIX}words", f"{PREFIX}rare"

_WORD = re.compile(r"(?<![\w@/\\])[^\W\d_]+(?![\w@/\\])")


class Speller:
    """`words` are corrections, the most frequent first; `rare` are checksums of words that are left as they are.

    Only a prompt with few unknown words is corrected: one with many is code, names, or of another language.
    """

    def __init__(self, words: Sequence[str], rare: NDArray[np.uint32]) -> None:
        self._ranks = {word: rank for rank, word in enumerate(words)}
        self._rare = frozenset(rare.tolist())
        letters = Counter("".join(words))
        self._alphabet = [letter for letter, count in letters.items() if count >= RARE_LETTER * letters.total()]

    @classmethod
    def of(cls, texts: Iterable[str], known: Iterable[str] = ()) -> Self | None:
        """From prepared training prompts, and other `known` words; None where these are too few to tell.

        A rare word of the prompts that stands beside a frequent one is taken for a slip itself.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(set(_words(text)))
        often = sorted((word for word in counts if counts[word] >= OFTEN), key=lambda word: (-counts[word], word))
        words = list(dict.fromkeys([*often, *(word for word in known if [word] == _words(word))]))
        rare = {*counts}.difference(words)
        if len(words) + len(rare) < ENOUGH:
            return None
        frequent = cls([word for word in often if counts[word] >= FREQUENT], np.empty(0, np.uint32))
        right = [word for word in rare if len(word) <= SHORTEST or not frequent._nearest(word)]
        return cls(words, np.unique(np.array([_checksum(word) for word in right], np.uint32)))

    def corrected(self, text: str) -> str:
        """The text with its slips undone; the same text where there are none."""
        words = dict.fromkeys(_words(text))
        unknown = [word for word in words if len(word) > SHORTEST and not self._is_known(word)]
        if not unknown or len(unknown) > max(2, MOST_UNKNOWN * len(words)):
            return text
        found = {word: better for word in unknown[:MOST_CORRECTED] if (better := self._nearest(word))}
        if not found:
            return text
        return _WORD.sub(lambda match: _cased(found.get(match[0].lower()), match[0]), text)

    def tensors(self) -> Tensors:
        """What `from_tensors` makes the same speller of."""
        packed = np.frombuffer(zlib.compress("\n".join(self._ranks).encode(), 9), np.uint8)
        return {WORDS: packed, RARE: np.array(sorted(self._rare), np.uint32)}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """The speller of an artefact.

        Raises:
            ArtefactError: its tensors are not what `tensors` makes.
        """
        found = {name: (values.dtype.name, values.ndim) for name, values in tensors.items()}
        if found != {WORDS: ("uint8", 1), RARE: ("uint32", 1)}:
            raise ArtefactError(f"spelling tensors are {found}; they must be {WORDS} (uint8) and {RARE} (uint32)")
        reader = zlib.decompressobj()
        try:
            words = reader.decompress(tensors[WORDS].tobytes(), MAX_BYTES).decode()
        except (zlib.error, UnicodeDecodeError) as error:
            raise ArtefactError(f"tensor {WORDS!r} is not compressed text ({error})") from error
        if not reader.eof:
            raise ArtefactError(f"tensor {WORDS!r} is cut off, or over {MAX_BYTES} bytes")
        return cls(words.split("\n"), tensors[RARE].astype(np.uint32))

    def _is_known(self, word: str) -> bool:
        return word in self._ranks or _checksum(word) in self._rare

    def _nearest(self, word: str) -> str | None:
        """The most frequent word one slip away (Norvig 2007)."""
        return min(self._ranks.keys() & self._slips(word), key=self._ranks.__getitem__, default=None)

    def _slips(self, word: str) -> set[str]:
        """Every word that is this one with a letter lost, two swapped, one replaced or one added."""
        parts = [(word[:place], word[place:]) for place in range(len(word) + 1)]
        slips = {head + tail[1:] for head, tail in parts if tail}
        slips.update([head + tail[1] + tail[0] + tail[2:] for head, tail in parts if len(tail) > 1])
        slips.update([head + letter + tail[1:] for head, tail in parts if tail for letter in self._alphabet])
        slips.update([head + letter + tail for head, tail in parts for letter in self._alphabet])
        return slips


def spelling_apart(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """An artefact's tensors without those of spelling, and those."""
    spelling = {name: values for name, values in tensors.items() if name.startswith(PREFIX)}
    return {name: values for name, values in tensors.items() if name not in spelling}, spelling


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if SHORTEST <= len(word) <= LONGEST]


def _checksum(word: str) -> int:
    return zlib.crc32(word.encode())


def _cased(better: str | None, given: str) -> str:
    if better is None:
        return given
    if given.isupper():
        return better.upper()
    return better.capitalize() if given[0].isupper() else better
