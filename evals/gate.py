"""The admission gate: an expert gets a domain's traffic only where records show that it beats the generalist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..experts.registry import Registry, SkillRecord
from .records import Record, Sample
from .statistics import Interval, compare, holm, mcnemar_greater, unpaired_gain, unpaired_greater


class GateError(ValueError):
    """There is nothing to judge; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The clauses. All must hold in a domain.

    `min_samples` questions that both answered; the expert is better than the generalist at `confidence` (one-sided
    exact McNemar, Holm-corrected over the domains judged together); and in no subject of the domain with `min_samples`
    questions does it lose more than `margin` of accuracy.
    """

    confidence: float = 0.95
    margin: float = 0.05
    min_samples: int = 30

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1 or not 0 <= self.margin <= 1 or self.min_samples < 1:
            raise ValueError(
                f"confidence {self.confidence}, margin {self.margin}, min_samples {self.min_samples}: "
                "need 0.5 <= confidence < 1, 0 <= margin <= 1, min_samples of 1 or more"
            )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One domain: the counts, the gain, Holm's p, and the clause that failed, or None: admitted."""

    domain: str
    n: int
    right: int
    generalist_right: int
    gain: Interval
    p: float
    failed: str | None

    @property
    def admitted(self) -> bool:
        return self.failed is None


def judge_expert(
    samples: Sequence[Sample], records: Sequence[Record], expert: str, generalist: str, gate: Gate = Gate()
) -> list[Verdict]:
    """Compare on the questions that both answered, domain by domain.

    Raises:
        GateError: both are the same, or no question was answered by both.
    """
    if expert == generalist:
        raise GateError(f"{expert!r} is the generalist; it is admitted everywhere")
    right = {(record.sample, record.target): record.correct for record in records if record.correct is not None}
    shared = [sample for sample in samples if (sample.id, expert) in right and (sample.id, generalist) in right]
    if not shared:
        raise GateError(f"no question was answered by both {expert!r} and {generalist!r}")
    verdicts = []
    for domain in sorted({sample.domain for sample in shared}):
        of_domain = [sample for sample in shared if sample.domain == domain]
        pairs = [(bool(right[sample.id, expert]), bool(right[sample.id, generalist])) for sample in of_domain]
        worst = _worst_subject([sample.subject for sample in of_domain], pairs, gate)
        verdicts.append((_measured(domain, pairs), worst))
    corrected = holm([verdict.p for verdict, _ in verdicts])
    return [
        _decided(replace(verdict, p=p), worst, gate) for (verdict, worst), p in zip(verdicts, corrected, strict=True)
    ]


def judge_counts(domain: str, right: int, generalist_right: int, n: int, gate: Gate = Gate()) -> Verdict:
    """Judge published accuracies on the same `n` questions, whose pairs are unknown: two proportions, one-sided."""
    gain = unpaired_gain(right, generalist_right, n)
    verdict = Verdict(domain, n, right, generalist_right, gain, unpaired_greater(right, generalist_right, n), None)
    return _decided(verdict, None, gate)


def admit(
    registry: Registry,
    name: str,
    generalist: str,
    samples: Sequence[Sample],
    records: Sequence[Record],
    gate: Gate = Gate(),
) -> list[Verdict]:
    """Judge `name` and write both experts' measured skills; what was measured in other domains stays.

    Raises:
        GateError: there is nothing to judge.
        RegistryError: an expert is not registered, or the registry cannot be written.
    """
    registry.expert(name), registry.expert(generalist)
    verdicts = judge_expert(samples, records, name, generalist, gate)
    rows = [
        (SkillRecord(name, verdict.domain, verdict.right, verdict.n, verdict.admitted),
         SkillRecord(generalist, verdict.domain, verdict.generalist_right, verdict.n, True))
        for verdict in verdicts
    ]  # fmt: skip
    for expert, fresh in ((name, [own for own, _ in rows]), (generalist, [other for _, other in rows])):
        measured = {skill.domain for skill in fresh}
        kept = [skill for skill in registry.skills() if skill.expert == expert and skill.domain not in measured]
        registry.set_skills(expert, [*kept, *fresh])
    return verdicts


def _measured(domain: str, pairs: Sequence[tuple[bool, bool]]) -> Verdict:
    own, general = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    result = compare(own, general)
    p = mcnemar_greater(result.only_a, result.only_b)
    return Verdict(domain, len(pairs), int(own.sum()), int(general.sum()), result.gain, p, None)


def _decided(verdict: Verdict, worst: tuple[str, float] | None, gate: Gate) -> Verdict:
    """The verdict with the first clause that fails."""
    lead = f"{100 * verdict.gain.value:+.1f} points"
    failed = None
    if verdict.n < gate.min_samples:
        failed = f"only {verdict.n} questions, {gate.min_samples} are needed"
    elif verdict.gain.value <= 0:
        failed = f"it does not beat the generalist: {lead}"
    elif verdict.p > 1 - gate.confidence:
        failed = f"its lead is not sure at {gate.confidence:.0%}: {lead}, p = {verdict.p:.2g}"
    elif worst is not None and worst[1] > gate.margin:
        failed = f"it loses {100 * worst[1]:.1f} points in {worst[0]}, over the margin of {100 * gate.margin:.1f}"
    return replace(verdict, failed=failed)


def _worst_subject(subjects: Sequence[str], pairs: Sequence[tuple[bool, bool]], gate: Gate) -> tuple[str, float] | None:
    """The subject with the greatest loss of accuracy among those with enough questions."""
    losses = {}
    for subject in sorted(set(subjects) - {""}):
        own = [pair for pair, name in zip(pairs, subjects, strict=True) if name == subject]
        if len(own) >= gate.min_samples:
            losses[subject] = sum(general - expert for expert, general in own) / len(own)
    return max(losses.items(), key=lambda item: item[1], default=None)
