"""Novelty: how unlike its training prompts a prompt is, in a kind's vector space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from .calibration import Floats
from .manifest import ArtefactError

NOVELTY = "novelty.safetensors"
DIRECTIONS = 128
LIMIT = 0.99
"""Above this share of held-out prompts a prompt is taken for novel."""
_SHARES = np.linspace(0, 1, 201)


@dataclass(frozen=True, slots=True)
class Novelty:
    """Distance from the training prompts' mean along the directions in which these vary least.

    What all training prompts have in common, strange prompts break; the directions of large variance, which tell the
    classes apart, tell nothing of that (last principal components: Jolliffe 2002, section 10.1). `directions`, shape
    (d, r), are scaled to unit variance; `centre`, shape (r,), is the mean along them; `quantiles`, shape (201,), are
    those of held-out prompts' distances.
    """

    directions: NDArray[np.float16]
    centre: NDArray[np.float32]
    quantiles: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors: Floats, count: int = DIRECTIONS) -> Self:
        """From vectors of training prompts, shape (n, d), along `count` directions. `percentiles` needs `measured`.

        Variances are shrunk towards their mean (Ledoit and Wolf 2004), the more the fewer prompts there are.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        mean = vectors.mean(axis=0)
        variances, axes = np.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
        real = variances > 1e-6 * variances.mean()  # an encoder's last layer can leave a direction without variance
        shrinkage = float(ledoit_wolf_shrinkage(vectors))
        shrunk = (1 - shrinkage) * variances[real] + shrinkage * variances[real].mean()
        directions = (axes[:, real][:, :count] / np.sqrt(shrunk[:count])).astype(np.float16)
        centre = (mean @ directions.astype(np.float64)).astype(np.float32)
        return cls(directions, centre, np.zeros(len(_SHARES), np.float32))

    def measured(self, distances: Floats) -> Novelty:
        """The same, with the quantiles of held-out prompts' distances."""
        return Novelty(self.directions, self.centre, np.quantile(distances, _SHARES).astype(np.float32))

    def distances(self, vectors: Floats) -> Floats:
        """Distance of each vector, shape (..., d), from the centre."""
        distance: Floats = np.linalg.norm(vectors @ self.directions.astype(np.float64) - self.centre, axis=-1)
        return distance

    def percentiles(self, vectors: Floats) -> Floats:
        """The share of held-out prompts that lie nearer to the centre than each vector does, in [0, 1]."""
        share: Floats = np.interp(self.distances(vectors), self.quantiles, _SHARES)
        return share

    def to_bytes(self) -> bytes:
        """The file that goes into an artefact."""
        tensors = {"directions": self.directions, "centre": self.centre, "quantiles": self.quantiles}
        return safetensors.numpy.save({name: np.ascontiguousarray(values) for name, values in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` gave.

        Raises:
            ArtefactError: tensors are missing, of another shape, or not finite.
        """
        try:
            tensors = safetensors.numpy.load(data)
            directions, centre, quantiles = (tensors[name] for name in ("directions", "centre", "quantiles"))
        except (safetensors.SafetensorError, KeyError) as error:
            raise ArtefactError(f"{NOVELTY} is no novelty file ({error})") from error
        if directions.ndim != 2 or centre.shape != directions.shape[1:] or quantiles.shape != _SHARES.shape:
            raise ArtefactError(f"{NOVELTY}: shapes {directions.shape}, {centre.shape}, {quantiles.shape} do not fit")
        if not all(np.isfinite(values).all() for values in (directions, centre, quantiles)):
            raise ArtefactError(f"{NOVELTY} holds NaN or infinite values")
        return cls(directions.astype(np.float16), centre.astype(np.float32), quantiles.astype(np.float32))
