"""Which distance tells strange prompts from ordinary ones? Area under the ROC curve of several, on MiniLM's vectors.

`python benchmarks/novelty.py --data DIR [--cache DIR]`: fitted on TRAINED rows of domain_prompts_train; ordinary
prompts are from domain_prompts_test, strange ones are our own (training/strange_prompts.json).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from collegium.experts.weights import locate
from collegium.router.calibration import Floats, Targets
from collegium.router.encoder import EncoderId, load_encoder
from collegium.router.frozen import FrozenClassifier
from collegium.router.novelty import Novelty
from collegium.training.data import Columns, load_prompts
from collegium.training.features import vectors_of
from collegium.training.novelty import STRANGE_PROMPTS, auroc

TRAINED, ORDINARY = 8_192, 2_048
Distance = Callable[[Floats], Floats]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    frozen = FrozenClassifier(load_encoder(EncoderId(), 160, locate))

    def read(prompts: list[str]) -> Floats:
        return vectors_of([frozen.prepare(text) for text in prompts], frozen.encoder, options.cache).astype(np.float64)

    trained = load_prompts(options.data / "domain_prompts_train.jsonl.gz", Columns(label="domain"))
    rows = _sample(len(trained), TRAINED)
    vectors, labels = read([prompt.text for prompt in trained])[rows], [trained[int(row)].label for row in rows]
    tested = load_prompts(options.data / "domain_prompts_test.jsonl.gz", Columns(label="domain"))
    ordinary = read([prompt.text for prompt in tested])[_sample(len(tested), ORDINARY)]
    strange = read([text for texts in json.loads(STRANGE_PROMPTS.read_text()).values() for text in texts])
    frozen.fit_vectors(vectors.astype(np.float32), labels)
    for name, distance in _distances(frozen, vectors, np.unique(labels, return_inverse=True)[1]).items():
        scores = np.concatenate([distance(ordinary), distance(strange)])
        print(f"{name:45}{auroc(scores, np.arange(len(scores)) >= len(ordinary)):.3f}", flush=True)


def _distances(frozen: FrozenClassifier, vectors: Floats, classes: Targets) -> dict[str, Distance]:
    means = np.stack([vectors[classes == k].mean(axis=0) for k in range(classes.max() + 1)])

    def confidence(asked: Floats) -> Floats:
        doubt: Floats = -frozen.calibrated(frozen.logits_of_vectors(asked.astype(np.float32))).max(axis=1)
        return doubt

    return {
        "low confidence": confidence,
        "cosine to the nearest class mean": lambda asked: -(asked @ _unit(means).T).max(axis=1),
        "Mahalanobis to the nearest class, 64 largest": _mahalanobis(vectors, means[classes], means, 64),
        "Mahalanobis to the nearest class, all": _mahalanobis(vectors, means[classes], means, 381),
        "least-variance directions, 64": Novelty.fit(vectors, 64).distances,
        "least-variance directions, 128 (kept)": Novelty.fit(vectors).distances,
        "distance to the 10th nearest training prompt": lambda asked: -np.sort(asked @ vectors.T, axis=1)[:, -10],
    }


def _mahalanobis(vectors: Floats, own: Floats, means: Floats, directions: int) -> Distance:
    variances, axes = np.linalg.eigh(np.cov(vectors - own, rowvar=False))
    whitening = axes[:, -directions:] / np.sqrt(variances[-directions:])
    placed = means @ whitening
    return lambda asked: np.linalg.norm((asked @ whitening)[:, np.newaxis] - placed, axis=-1).min(axis=1)


def _unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _sample(rows: int, count: int) -> Targets:
    return np.random.default_rng(0).permutation(rows)[:count]


if __name__ == "__main__":
    main()
