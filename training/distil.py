"""Teach a static student: piece vectors that begin as the encoder's, labels and a teacher's probabilities as targets.

The vectors of all pieces of the vocabulary come from the encoder, one by one, are reduced by principal components and
weighted down where frequent (model2vec; SIF, Arora et al. 2017). So words that no training prompt has still mean
something. Then vectors and head learn together on rewritten prompts that lose some of their pieces.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..router.calibration import Floats
from ..router.static import PIECES, StaticClassifier, Weights, pair_numbers
from .augment import augmented, mixed
from .data import DataError
from .features import Progress, quiet
from .sampling import draw
from .tuning import Distilling

SIF = 1e-3
SCALE = 0.3  # of the first vectors: prompts' means are then about as large as what the head's first weights expect
TABLE_GAIN = 3.0  # pieces and pairs learn so many times faster than their gradients say


class _Student(nn.Module):  # type: ignore[misc]  # torch is not type-checked
    """StaticClassifier in torch, in floats."""

    def __init__(self, tokens: NDArray[np.float32], classes: int, settings: Distilling) -> None:
        super().__init__()
        pieces, d = tokens.shape
        self.tokens = nn.EmbeddingBag.from_pretrained(torch.from_numpy(tokens), freeze=False, mode="sum")
        self.piece = nn.EmbeddingBag(pieces, classes, mode="sum")
        self.pair = nn.EmbeddingBag(settings.pairs, classes, mode="sum")
        nn.init.zeros_(self.piece.weight)
        nn.init.zeros_(self.pair.weight)
        self.inner = nn.Linear(d, settings.hidden)
        self.outer = nn.Linear(settings.hidden, classes, bias=False)
        self.straight = nn.Linear(d, classes)

    def forward(self, pieces: _Bags, pairs: _Bags) -> Tensor:
        mean = pieces.through(self.tokens)
        logits: Tensor = self.outer(nn.functional.silu(self.inner(mean))) + self.straight(mean)
        return logits + TABLE_GAIN * (pieces.through(self.piece) + pairs.through(self.pair))

    def weights(self) -> Weights:
        def array(tensor: Tensor) -> NDArray[np.float32]:
            values: NDArray[np.float32] = tensor.detach().numpy()
            return values

        return Weights(
            tokens=array(self.tokens.weight),
            piece=array(self.piece.weight) * TABLE_GAIN,
            pair=array(self.pair.weight) * TABLE_GAIN,
            inner=array(self.inner.weight).T,
            inner_bias=array(self.inner.bias),
            outer=array(self.outer.weight).T,
            straight=array(self.straight.weight).T,
            bias=array(self.straight.bias),
        )


class _Bags:
    """Numbers of several prompts, laid end to end; a prompt's numbers weigh 1 over the root of how many they are."""

    def __init__(self, bags: Sequence[NDArray[np.int64]]) -> None:
        sizes = np.array([len(bag) for bag in bags])
        self.numbers = torch.from_numpy(np.concatenate(bags))
        self.starts = torch.from_numpy(np.cumsum([0, *sizes[:-1]]))
        self.shares = torch.from_numpy(np.repeat(np.maximum(sizes, 1) ** -0.5, sizes).astype(np.float32))

    def through(self, table: nn.EmbeddingBag) -> Tensor:
        said: Tensor = table(self.numbers, self.starts, per_sample_weights=self.shares)
        return said


def first_vectors(
    vectors: NDArray[np.float32], classifier: StaticClassifier, texts: Sequence[str], dimensions: int
) -> NDArray[np.float32]:
    """Vectors to begin with, shape (V, dimensions), from the encoder's vector of every piece, shape (V, d)."""
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    reduced = centred @ directions[:dimensions].T
    seen: Counter[int] = Counter()
    for text in texts:
        seen.update(classifier.ids(text).tolist())
    counts = np.array([seen[number] + 0.5 for number in range(len(vectors))])
    rarity = SIF / (SIF + counts / counts.sum())
    scaled: NDArray[np.float32] = (SCALE * reduced / reduced.std() * rarity[:, np.newaxis]).astype(np.float32)
    return scaled


def distil(
    classifier: StaticClassifier,
    tokens: NDArray[np.float32],
    texts: Sequence[str],
    targets: Floats,
    sources: Sequence[str],
    settings: Distilling,
    progress: Progress = quiet,
) -> None:
    """Learn vectors and head of `classifier`, whose classes are set, from prepared texts and soft targets (n, k).

    Raises:
        DataError: the loss became NaN or infinite.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    student = _Student(tokens, targets.shape[1], settings)
    order = draw(targets, sources, settings.prompts or max(8 * len(texts), settings.least), rng)
    batch = int(np.clip(len(order) // settings.steps, *settings.batches))
    steps = max(1, len(order) // batch)
    optimizer = _optimizer(student, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1 - step / steps))
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        pieces, pairs, wanted = _batch(classifier, texts, targets, rows, settings, rng)
        loss = nn.functional.cross_entropy(student(pieces, pairs), wanted)
        if not math.isfinite(loss.item()):
            raise DataError(f"the loss is {loss.item()} at step {step}; nothing is written")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress((step + 1) * batch, steps * batch)
    classifier.learnt(classifier.classes_.tolist(), student.weights())


def _batch(
    classifier: StaticClassifier,
    texts: Sequence[str],
    targets: Floats,
    rows: NDArray[np.intp],
    settings: Distilling,
    rng: np.random.Generator,
) -> tuple[_Bags, _Bags, Tensor]:
    given = [augmented(texts[row], rng) for row in rows]
    wanted = targets[rows].astype(np.float32)
    for place in np.flatnonzero(rng.random(len(rows)) < settings.mixtures):
        other = int(rng.integers(len(texts)))
        given[place] = mixed(texts[rows[place]], texts[other], rng)
        wanted[place] = (targets[rows[place]] + targets[other]) / 2
    encoded = classifier.tokenizer.encode_batch_fast(given, add_special_tokens=False)
    whole = [np.array(text.ids[:PIECES], np.int64) for text in encoded]
    pairs = [_thinned(pair_numbers(ids, settings.pairs), settings.dropped, rng) for ids in whole]
    pieces = [_thinned(ids, settings.dropped, rng) for ids in whole]
    return _Bags(pieces), _Bags(pairs), torch.from_numpy(wanted)


def _thinned(numbers: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    if len(numbers) <= 3:
        return numbers
    kept = numbers[rng.random(len(numbers)) > share]
    return kept if len(kept) else numbers


def _optimizer(student: _Student, settings: Distilling) -> torch.optim.Optimizer:
    head = [*student.inner.parameters(), *student.outer.parameters(), *student.straight.parameters()]
    return torch.optim.AdamW(
        [
            {"params": student.tokens.parameters(), "lr": settings.token_lr, "weight_decay": 0.0},
            {"params": [student.piece.weight, student.pair.weight], "lr": settings.lr, "weight_decay": 1e-4},
            {"params": head, "lr": settings.lr, "weight_decay": 0.01},
        ]
    )
