"""Novelty: how unlike its training prompts a prompt is, by the distance to the nearest class in vector space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from .calibration import Floats, Targets
from .manifest import ArtefactError

NOVELTY = "novelty.safetensors"
RANK = 64
LIMIT = 0.99
"""Above this share of held-out prompts a prompt is taken for novel."""
_SHARES = np.linspace(0, 1, 201)


@dataclass(frozen=True, slots=True)
class Novelty:
    """Mahalanobis distance to the nearest class mean under one covariance shared by all (Lee et al. 2018).

    `whitening`, shape (d, r), makes that covariance, cut to its r main directions, the identity; `means`, shape
    (k, r), are the classes' there; `quantiles`, shape (201,), are those of held-out prompts' distances.
    """

    whitening: NDArray[np.float16]
    means: NDArray[np.float32]
    quantiles: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors: Floats, classes: Targets, rank: int = RANK) -> Self:
        """From vectors of training prompts, shape (n, d), and their classes. `percentile` needs `measured` first."""
        present = np.unique(classes)
        means = np.stack([vectors[classes == k].mean(axis=0) for k in present])
        centred = vectors - means[np.searchsorted(present, classes)]
        values, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
        top = np.argsort(-values)[: min(rank, int((values > 1e-8).sum()))]
        whitening = (directions[:, top] / np.sqrt(values[top])).astype(np.float16)
        whitened = (means @ whitening.astype(np.float64)).astype(np.float32)
        return cls(whitening, whitened, np.zeros(len(_SHARES), np.float32))

    def measured(self, distances: Floats) -> Novelty:
        """The same, with the quantiles of held-out prompts' distances."""
        return Novelty(self.whitening, self.means, np.quantile(distances, _SHARES).astype(np.float32))

    def distances(self, vectors: Floats) -> Floats:
        """Distance of each vector, shape (..., d), to the nearest class mean."""
        placed = vectors @ self.whitening.astype(np.float64)
        squares = ((placed[..., np.newaxis, :] - self.means) ** 2).sum(axis=-1)
        nearest: Floats = np.sqrt(squares.min(axis=-1))
        return nearest

    def percentiles(self, vectors: Floats) -> Floats:
        """The share of held-out prompts that lie nearer to their class than each vector does, in [0, 1]."""
        share: Floats = np.interp(self.distances(vectors), self.quantiles, _SHARES)
        return share

    def to_bytes(self) -> bytes:
        """The file that goes into an artefact."""
        tensors = {"whitening": self.whitening, "means": self.means, "quantiles": self.quantiles}
        return safetensors.numpy.save({name: np.ascontiguousarray(values) for name, values in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` gave.

        Raises:
            ArtefactError: tensors are missing, of another shape, or not finite.
        """
        try:
            tensors = safetensors.numpy.load(data)
            whitening, means, quantiles = (tensors[name] for name in ("whitening", "means", "quantiles"))
        except (safetensors.SafetensorError, KeyError) as error:
            raise ArtefactError(f"{NOVELTY} is no novelty file ({error})") from error
        shapes = (whitening.ndim, means.ndim, quantiles.shape)
        if shapes != (2, 2, _SHARES.shape) or whitening.shape[1] != means.shape[1] or not len(means):
            raise ArtefactError(f"{NOVELTY}: shapes {whitening.shape}, {means.shape}, {quantiles.shape} do not fit")
        if not all(np.isfinite(values).all() for values in (whitening, means, quantiles)):
            raise ArtefactError(f"{NOVELTY} holds NaN or infinite values")
        return cls(whitening.astype(np.float16), means.astype(np.float32), quantiles.astype(np.float32))
