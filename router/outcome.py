"""Kind `outcome`: trained on which expert answered right; besides the posterior it gives each expert's quality."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import Floats, fit_temperature
from .classifier import tensor_of_shape
from .encoder import Locate
from .frozen import FrozenClassifier
from .manifest import ArtefactError, Manifest, Tensors
from .outcome_model import Fit, OutcomeModel, fit_outcome_model
from .regions import Bools, Ints, Regions


class OutcomeClassifier(FrozenClassifier):
    """A frozen encoder, logistic regression on the domains, and an `OutcomeModel` of `experts`."""

    kind: ClassVar[str] = "outcome"

    experts: tuple[str, ...] = ()
    model: OutcomeModel | None = None

    def fit_vectors(self, vectors: NDArray[np.float32], labels: Sequence[str], weights: Floats | None = None) -> Self:
        """Learn the domains, shape (n, d); unlike its parent's, a posterior as frequent as the domains are.

        Skills are averaged over it, so its probabilities must be those of the prompts that were recorded.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        model = LogisticRegression(C=self.regularisation, max_iter=100, tol=1e-3, random_state=self.seed)
        with warnings.catch_warnings(), threadpool_limits(1):  # small matrices: more threads only wait for each other
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits do not move a route
            model.fit(vectors.astype(np.float32), np.asarray(labels), sample_weight=weights)
        self.classes_ = np.asarray(model.classes_, dtype=str)
        self._weight, self._bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        if len(self.classes_) == 2:  # scikit-learn keeps the second class's row only
            self._weight = np.vstack([np.zeros_like(self._weight), self._weight])
            self._bias = np.concatenate([[0.0], self._bias])
        return self

    def fit_outcomes(
        self,
        vectors: NDArray[np.float32],
        domains: Sequence[str],
        experts: Sequence[str],
        correct: Bools,
        fold: Ints,
    ) -> Fit:
        """Learn domains, skills and corrections from (n, d) vectors and `correct` (n, experts).

        `fold` (n,) keeps like prompts together: posteriors that the model learns from, its penalties and its
        calibration come from folds without the prompt.

        Raises:
            ValueError: fewer than 2 domains or experts, or a domain that one fold holds whole.
        """
        labels = np.asarray(domains)
        names = np.unique(labels)
        _check(names, labels, experts, fold)
        logits = np.zeros((len(labels), len(names)))
        for held in np.unique(fold):
            self.fit_vectors(vectors[fold != held], labels[fold != held].tolist())
            logits[fold == held] = self.logits_of_vectors(vectors[fold == held])
        index = np.searchsorted(names, labels).astype(np.int64)
        self.fit_vectors(vectors, labels.tolist())
        self.temperature = fit_temperature(logits, index)
        fit = fit_outcome_model(vectors.astype(np.float64), self.calibrated(logits), index, correct, fold, self.seed)
        self.experts, self.model = tuple(experts), fit.model
        return fit

    def read(self, text: str) -> tuple[Floats, Mapping[str, float]]:
        prepared = self.prepare(text)
        if not prepared or self.model is None:
            return self.probabilities(text), {}
        logits, vector = self.logits_and_vector(prepared)
        posterior = self.calibrated(logits)
        quality = self.model.qualities(vector[np.newaxis], posterior[np.newaxis])[0]
        return posterior, dict(zip(self.experts, quality.tolist(), strict=True))

    def qualities_of_vectors(self, vectors: NDArray[np.float32]) -> Floats:
        """q(e | x), (n, experts), from vectors made before.

        Raises:
            ValueError: `fit_outcomes` was not called.
        """
        if self.model is None:
            raise ValueError("this classifier knows no outcomes; call fit_outcomes first")
        return self.model.qualities(vectors.astype(np.float64), self.calibrated(self.logits_of_vectors(vectors)))

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        if self.model is None:
            raise ArtefactError("a router of kind 'outcome' is saved after fit_outcomes")
        settings, tensors = super().state()
        model, regions = self.model, self.model.regions
        floats = {
            "skills": model.skills, "outcome_weight": model.weight, "mean": model.mean, "shift": model.shift,
            "slope": model.slope, "centroids": regions.centroids,
        }  # fmt: skip
        tensors |= {name: values.astype(np.float32) for name, values in floats.items()}
        tensors |= {"domain_of": regions.domain_of, "column_of": regions.column_of}
        return {**settings, "experts": list(self.experts)}, tensors

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        classifier = super().from_state(manifest, tensors, locate)
        experts = manifest.settings.get("experts")
        if not isinstance(experts, list) or len(experts) < 2:
            raise ArtefactError(f"setting experts is {experts!r}, not a list of 2 names or more")
        classifier.experts = tuple(map(str, experts))
        classifier.model = _model(tensors, len(manifest.labels), len(experts), classifier.encoder.dimensions)
        return classifier


def _check(names: NDArray[np.str_], labels: NDArray[np.str_], experts: Sequence[str], fold: Ints) -> None:
    if len(names) < 2 or len(experts) < 2:
        raise ValueError(
            f"{len(names)} domains and {len(experts)} experts; outcomes need 2 or more of both to choose between"
        )
    for name in names:
        if len(np.unique(fold[labels == name])) < 2:
            raise ValueError(f"domain {str(name)!r} lies in one fold; it needs more unlike prompts")


def _model(tensors: Tensors, domains: int, experts: int, dimensions: int) -> OutcomeModel:
    def floats(name: str, shape: tuple[int | None, ...]) -> Floats:
        return tensor_of_shape(tensors, name, shape).astype(np.float64)

    centroids = floats("centroids", (None, dimensions))
    places = [tensor_of_shape(tensors, name, (len(centroids),)) for name in ("domain_of", "column_of")]
    if not all(np.issubdtype(place.dtype, np.integer) for place in places):
        raise ArtefactError("tensors domain_of and column_of must hold whole numbers")
    domain_of, column_of = (place.astype(np.int64) for place in places)
    regions = Regions(domains, centroids, domain_of, column_of)
    kept = np.sort(column_of[column_of >= domains])
    own = domain_of[column_of < domains]
    if (kept != np.arange(domains, regions.columns)).any() or (own != column_of[column_of < domains]).any():
        raise ArtefactError("tensor column_of points to columns that are none of its domains and regions")
    if len(domain_of) and not 0 <= domain_of.min() <= domain_of.max() < domains:
        raise ArtefactError(f"tensor domain_of points outside the {domains} domains")
    return OutcomeModel(
        regions=regions,
        skills=floats("skills", (experts, regions.columns)),
        weight=floats("outcome_weight", (experts, dimensions)),
        mean=floats("mean", (dimensions,)),
        shift=floats("shift", (experts,)),
        slope=floats("slope", (experts,)),
    )
