"""From a kind's name to its learner: what each kind is made of, and the settings that say how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..router.cascade import CascadeClassifier
from ..router.committee import CommitteeClassifier
from ..router.encoder import Encoder
from ..router.finetuned import FinetunedClassifier
from ..router.frozen import FrozenClassifier
from ..router.manifest import TextRecord
from ..router.ngrams import BUCKETS, NgramClassifier
from ..router.spelling import Speller
from ..router.static import StaticClassifier
from .data import Prompt
from .features import Progress, quiet, vectors_of
from .learners import CascadeLearner, CommitteeLearner, FinetunedLearner, FrozenLearner, Learner, NgramLearner
from .static_learner import StaticLearner, pieces_of
from .tuning import Distilling, Tuning

MANY_PROMPTS, MANY_BUCKETS = 20_000, 2**18  # n-grams of so many prompts crowd a small table
COMMITTEE = ("static", "frozen")
SINGLE = ("finetuned", "frozen", "static", "tfidf")
"""Kinds that can be members."""
TRAINED = ("cascade", "committee", *SINGLE)
"""Kinds that labelled prompts make."""
TEACHERS = ("finetuned", "frozen", "tfidf")


@dataclass(frozen=True, slots=True)
class Options:
    """`precision` is what the threshold aims at: the share of routed held-out prompts that reach the right domain.

    `members` are the kinds of a committee, the first and the second stage of a cascade, which may lose `allowed_loss`
    of its accuracy; `teacher` is the kind whose probabilities a static router learns besides the labels.
    `hold_out_sources` holds out whole sources, so that scores, temperature and threshold are those of unlike prompts.
    `spelling` has the router undo slips of the keyboard in words that it does not know.
    """

    name: str = "router"
    seed: int = 0
    regularisation: float = 10.0
    precision: float = 0.9
    hold_out_sources: bool = False
    spelling: bool = True
    members: tuple[str, ...] = COMMITTEE
    teacher: str | None = None
    allowed_loss: float = 0.003
    tuning: Tuning = Tuning()  # noqa: RUF009
    distilling: Distilling = Distilling()  # noqa: RUF009
    text: TextRecord = TextRecord()  # noqa: RUF009

    def __post_init__(self) -> None:
        if not 0 < self.precision <= 1:
            raise ValueError(f"precision is {self.precision}; it must be over 0 and at most 1")
        if not 0 < self.regularisation < float("inf"):
            raise ValueError(f"regularisation is {self.regularisation}; it must be a positive number")


DEFAULTS = Options()


def learner_of(
    kind: str,
    prompts: Sequence[Prompt],
    encoder: Encoder | None,
    options: Options,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> Learner:
    """An unfitted router of a kind, with the features of the prompts.

    Raises:
        ValueError: the kind is not known, or needs an encoder, or cannot be a member.
    """
    recipes = _Recipes(prompts, encoder, options, cache, progress)
    learner = recipes.of(kind)
    learner.classifier.speller = recipes.speller
    return learner


@dataclass(frozen=True)
class _Recipes:
    prompts: Sequence[Prompt]
    given: Encoder | None
    options: Options
    cache: Path | None
    progress: Progress
    made: dict[str, Learner] = field(default_factory=dict)

    def of(self, kind: str) -> Learner:
        if kind not in self.made:
            self.made[kind] = self._made(kind)
        return self.made[kind]

    def _made(self, kind: str) -> Learner:
        makers = {
            "tfidf": self._tfidf,
            "frozen": self._frozen,
            "finetuned": self._finetuned,
            "static": self._static,
            "committee": self._committee,
            "cascade": self._cascade,
        }
        if kind not in makers:
            raise ValueError(f"kind {kind!r} is not one that labelled prompts make; these are: {', '.join(TRAINED)}")
        if kind != "tfidf" and self.given is None:
            raise ValueError(f"kind {kind!r} needs an encoder")
        return makers[kind]()

    @cached_property
    def speller(self) -> Speller | None:
        if not self.options.spelling:
            return None
        numbers = self.given.module.tokenizer.get_vocab() if self.given else {}
        return Speller.of(self.texts, sorted(numbers, key=numbers.__getitem__))

    @cached_property
    def labels(self) -> NDArray[np.str_]:
        return np.array([prompt.label for prompt in self.prompts])

    @cached_property
    def texts(self) -> list[str]:
        """Texts as every kind prepares them."""
        reader = NgramClassifier(self.options.text)
        return [reader.prepare(prompt.text) for prompt in self.prompts]

    @cached_property
    def sources(self) -> list[str]:
        return [prompt.source or "" for prompt in self.prompts]

    @property
    def encoder(self) -> Encoder:
        assert self.given is not None  # noqa: S101 - `of` saw to it
        return self.given

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        return vectors_of(self.texts, self.encoder, self.cache, self.progress)

    def _tfidf(self) -> Learner:
        buckets = BUCKETS if len(self.prompts) < MANY_PROMPTS else MANY_BUCKETS
        ngrams = NgramClassifier(self.options.text, self.options.seed, self.options.regularisation, buckets)
        return NgramLearner(ngrams, ngrams.features(self.texts), self.labels)

    def _frozen(self) -> Learner:
        frozen = FrozenClassifier(self.encoder, self.options.text, self.options.seed, self.options.regularisation)
        return FrozenLearner(frozen, self.vectors, self.labels)

    def _finetuned(self) -> Learner:
        tuned = FinetunedClassifier(self.encoder, self.options.text, self.options.seed, self.options.regularisation)
        tuning = replace(self.options.tuning, seed=self.options.seed)
        return FinetunedLearner(
            tuned, self.texts, self.vectors, self.labels, self.sources, tuning, self.cache, self.progress
        )

    def _static(self) -> Learner:
        tokenizer, pieces = pieces_of(self.encoder)
        vectors = vectors_of(pieces, self.encoder, self.cache, self.progress)
        student = StaticClassifier(
            tokenizer, vectors, self.options.text, self.options.seed, self.options.regularisation
        )
        if self.options.teacher not in (None, *TEACHERS):
            raise ValueError(f"teacher {self.options.teacher!r} is not known; known: {', '.join(TEACHERS)}")
        teacher = self.of(self.options.teacher) if self.options.teacher else None
        settings = replace(self.options.distilling, seed=self.options.seed)
        return StaticLearner(student, vectors, self.texts, self.labels, self.sources, teacher, settings, self.progress)

    def _members(self) -> list[Learner]:
        for member in self.options.members:
            if member not in SINGLE:
                raise ValueError(f"{member!r} cannot be a member; these can: {', '.join(SINGLE)}")
        return [self.of(member) for member in self.options.members]

    def _committee(self) -> Learner:
        members = self._members()
        joined = CommitteeClassifier([m.classifier for m in members], self.options.text, self.options.seed)
        return CommitteeLearner(joined, members)

    def _cascade(self) -> Learner:
        members = self._members()
        joined = CascadeClassifier([m.classifier for m in members], self.options.text, self.options.seed)
        return CascadeLearner(joined, members, self.labels, self.options.allowed_loss)
