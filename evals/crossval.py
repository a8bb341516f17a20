"""Cross-validated quality: every question is judged by a router and by skills that never saw it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..router.encoder import Encoder
from ..router.outcome import OutcomeClassifier
from ..router.skills import PSEUDO_COUNT, soft_skills
from .table import Floats, Ints, Table, fold_of

PosteriorsOfFold = Callable[[Ints, Ints], tuple[Floats, Floats]]
"""(training rows, test rows) -> p(label | question) of both, (rows, labels) each."""

QualitiesOfFold = Callable[[Ints, Ints], Floats]
"""(training rows, test rows) -> q(expert | question) of the test rows, (rows, experts)."""

INNER_FOLDS = 3


@dataclass(frozen=True, eq=False, slots=True)
class CrossValidated:
    """What the folds predict for n questions and m experts, each question by the folds it is not in.

    `quality` is posterior times skill, or what an outcome model says; `by_domain` and `by_subject` are the skill in the
    question's true domain and subject (perfect routing), `overall` is the accuracy on the training folds,
    `relative_cost` the mean cost there with the best single expert's as 1; (n, m) each. `posterior` is (n, labels), its
    columns named by `labels`.
    """

    fold: Ints
    labels: tuple[str, ...]
    posterior: Floats
    quality: Floats
    by_domain: Floats
    by_subject: Floats
    overall: Floats
    relative_cost: Floats


def cross_validate(
    table: Table,
    fold: Ints,
    labels: tuple[str, ...],
    posteriors: PosteriorsOfFold,
    pseudo_count: float = PSEUDO_COUNT,
    qualities: QualitiesOfFold | None = None,
) -> CrossValidated:
    """Measure skills on all folds but one, predict that one; `fold` is (n,).

    Skills are counted softly: a training question counts for each label as much as its posterior says, so that a router
    with labels of its own is judged as it is. They are shrunk towards the expert's own accuracy. `qualities` replace
    posterior times skill.
    """
    correct = table.correct.astype(np.float64)
    shape = correct.shape
    posterior = np.zeros((shape[0], len(labels)))
    quality, by_domain, by_subject, overall, cost = (np.zeros(shape) for _ in range(5))
    subject = _index([f"{sample.domain}/{sample.subject}" for sample in table.samples])
    for held_out in np.unique(fold):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        of_train, of_test = posteriors(train, test)
        prior = correct[train].mean(axis=0)
        posterior[test] = of_test
        if qualities is None:
            quality[test] = of_test @ soft_skills(of_train, correct[train], prior, pseudo_count).T
        else:
            quality[test] = qualities(train, test)
        for target, index in ((by_domain, table.domain_index), (by_subject, subject)):
            classes = np.eye(index.max() + 1)[index]
            target[test] = classes[test] @ soft_skills(classes[train], correct[train], prior, pseudo_count).T
        overall[test] = prior
        mean_cost = table.cost[train].mean(axis=0)
        cost[test] = mean_cost / (mean_cost[prior.argmax()] or 1.0)
    return CrossValidated(fold, labels, posterior, quality, by_domain, by_subject, overall, cost)


def trained_posteriors(table: Table, vectors: Floats, seed: int = 0) -> PosteriorsOfFold:
    """Frozen encoder + multinomial logistic regression on the true domains of the training folds.

    For the skills of the training questions their true domain is taken, since the head has fitted them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    index, count = table.domain_index, len(table.domains)

    def posteriors(train: Ints, test: Ints) -> tuple[Floats, Floats]:
        of_train, of_test = np.eye(count)[index[train]], np.zeros((len(test), count))
        present = np.unique(index[train])
        if len(present) == 1:
            of_test[:, present[0]] = 1.0
            return of_train, of_test
        with warnings.catch_warnings(), threadpool_limits(1):  # on a busy box more threads only wait for each other
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits do not move a route
            head = LogisticRegression(C=10.0, max_iter=100, tol=1e-3, random_state=seed)
            head.fit(vectors[train].astype(np.float32), index[train])
        of_test[:, head.classes_] = head.predict_proba(vectors[test].astype(np.float32))
        return of_train, of_test

    return posteriors


def trained_outcomes(table: Table, vectors: Floats, encoder: Encoder, seed: int = 0) -> QualitiesOfFold:
    """An outcome router learnt from the answers to the training folds."""

    def qualities(train: Ints, test: Ints) -> Floats:
        samples = [table.samples[row] for row in train]
        classifier = OutcomeClassifier(encoder, seed=seed)
        classifier.fit_outcomes(
            vectors[train].astype(np.float32),
            [sample.domain for sample in samples],
            table.experts,
            table.correct[train],
            fold_of(samples, INNER_FOLDS, seed),
        )
        return classifier.qualities_of_vectors(vectors[test].astype(np.float32))

    return qualities


def given_qualities(quality: Floats) -> QualitiesOfFold:
    """Those of a finished outcome router, (n, experts)."""
    return lambda train, test: quality[test]


def given_posteriors(posterior: Floats) -> PosteriorsOfFold:
    """Those of a finished router: the same in every fold."""
    return lambda train, test: (posterior[train], posterior[test])


def choose(quality: Floats, relative_cost: Floats, cost_weight: float = 0.0) -> Ints:
    """(n,) expert with the highest utility, the cheaper one of equals: what `router.decision.decide` chooses."""
    utility = quality - cost_weight * relative_cost
    tied = utility >= utility.max(axis=1, keepdims=True)
    return np.asarray(np.where(tied, relative_cost, np.inf).argmin(axis=1), dtype=np.int64)


def _index(names: list[str]) -> Ints:
    return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)
