"""A judgement as text: Markdown tables for the terminal and for docs, headlines always with their interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .calls import CallPoint
from .curve import CostCurve, CurvePoint
from .matrix import ExpertCell
from .records import Record
from .replay import Judgement
from .runner import totals
from .statistics import Comparison, Interval

NAMES = {
    "routed": "routed",
    "generalist": "the generalist",
    "best_single": "best single (training folds)",
    "perfect_domain": "perfect domain",
    "perfect_subject": "perfect subject",
    "oracle": "oracle",
    "random": "random",
}


def markdown(judgement: Judgement) -> str:
    """The whole judgement: headline, baselines, domains, regret, cost, calls."""
    parts = [
        headline(judgement),
        _table(("choice", "accuracy"), ((NAMES[key], _pct(value)) for key, value in judgement.accuracies.items())),
        _table(("expert", "alone", "traffic", "unread"), _experts(judgement)),
        _domains(judgement),
        *([_matrix(judgement)] if judgement.matrix else []),
        _regret(judgement),
    ]
    if judgement.curve is not None:
        parts.append(_curve(judgement.curve))
    if judgement.calls:
        parts.append(_calls(judgement.calls, judgement.equal_vote))
    return "\n\n".join(parts) + "\n"


def run_markdown(records: Sequence[Record], judgement: Judgement | None) -> str:
    """A live run: totals of every target, accuracy where answers were judged, perplexity where texts were."""
    parts = [_totals(records)]
    if any(record.logprobs and record.correct is None and not record.error for record in records):
        parts.append(_perplexities(records))
    if judgement is not None:
        parts.append(markdown(judgement).rstrip())
    return "\n\n".join(parts) + "\n"


def _totals(records: Sequence[Record]) -> str:
    right: dict[str, list[bool]] = {}
    for record in records:
        if record.correct is not None:
            right.setdefault(record.target, []).append(record.correct)
    rows = (
        (
            target, f"{_pct(sum(right[target]) / len(right[target]))}" if target in right else "-",
            *(f"{row[key]:,.0f}" for key in ("questions", "failed", "unread", "tokens")),
            f"{row['seconds']:,.1f}", f"{row['cost']:.4g}",
        )
        for target, row in totals(records).items()
    )  # fmt: skip
    return _table(("target", "accuracy", "questions", "failed", "unread", "tokens", "seconds", "cost"), rows)


def _perplexities(records: Sequence[Record]) -> str:
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for record in records:
        if record.logprobs and not record.error:
            total, tokens = sums.get((record.target, record.domain), (0.0, 0))
            sums[record.target, record.domain] = (total + record.logprobs[0], tokens + record.prompt_tokens)
    rows = (
        (target, domain, f"{math.exp(-total / tokens):.3f}", f"{tokens:,}")
        for (target, domain), (total, tokens) in sorted(sums.items())
    )
    return _table(("target", "domain", "perplexity", "tokens"), rows)


def headline(judgement: Judgement) -> str:
    """What a person must see in ten seconds."""
    gain = judgement.against_best
    verdict = "Routing pays" if gain.gain.low > 0 else "Routing does not clearly pay"
    if gain.gain.high < 0:
        verdict = "Routing loses"
    kept = f"{judgement.n:,} questions" + (f" ({judgement.dropped:,} left out)" if judgement.dropped else "")
    routed, best = _pct(judgement.accuracies["routed"]), _pct(judgement.accuracies["best_single"])
    against = f"{difference(gain)}; against the generalist {difference(judgement.against_generalist)}"
    return f"{verdict}: {routed} % against {best} % of the best single expert, {against}. {kept}.\n{judgement.advice}"


def difference(comparison: Comparison) -> str:
    """`+2.6 points [+1.8, +3.4], p = 0.001`."""
    return f"{interval(comparison.gain)}, McNemar p = {comparison.p:.2g}"


def interval(value: Interval) -> str:
    """A difference in points with its 95 % interval."""
    return f"{100 * value.value:+.1f} points [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def _experts(judgement: Judgement) -> Iterable[tuple[str, ...]]:
    for name, accuracy in sorted(judgement.experts.items(), key=lambda item: -item[1]):
        yield name, _pct(accuracy), _pct(judgement.traffic.get(name, 0.0)), str(judgement.unread[name])


def _domains(judgement: Judgement) -> str:
    header = ("domain", "n", "routed", "95 %", "v. generalist", "p", "v. best single", "p", "perfect domain", "oracle")
    rows = (
        (
            row.domain, str(row.n), _pct(row.routed.value), f"{_pct(row.routed.low)}-{_pct(row.routed.high)}",
            _signed(row.against_generalist.gain.value), f"{row.against_generalist.p:.2g}",
            _signed(row.against_best.gain.value), f"{row.against_best.p:.2g}",
            _pct(row.perfect_domain), _pct(row.oracle),
        )
        for row in judgement.domains
    )  # fmt: skip
    return _table(header, rows) + "\n\np: exact McNemar, Holm-corrected over the rows."


def _matrix(judgement: Judgement) -> str:
    """Experts by domains; the gain over the generalist stands behind every accuracy but its own."""
    domains = list(dict.fromkeys(cell.domain for cell in judgement.matrix))
    rows = []
    for expert in dict.fromkeys(cell.expert for cell in judgement.matrix):
        cells = {cell.domain: cell for cell in judgement.matrix if cell.expert == expert}
        rows.append((expert, *(_against(cells[domain]) for domain in domains)))
    return _table(("right, and v. generalist", *domains), rows)


def _against(cell: ExpertCell) -> str:
    gain, right = cell.against_generalist.gain, _pct(cell.right.value)
    if not cell.against_generalist.only_a and not cell.against_generalist.only_b:
        return right
    return f"{right} ({_signed(gain.value)} [{_signed(gain.low)}, {_signed(gain.high)}])"


def _regret(judgement: Judgement) -> str:
    lost = judgement.regret
    rows = (
        ("router error (perfect domain - routed)", interval(lost.router_error)),
        ("beyond perfect domains (oracle - perfect domain)", f"{100 * lost.within_domains:.1f} points"),
        ("no expert answers (100 - oracle)", f"{100 * lost.unanswered:.1f} points"),
    )
    return _table(("lost to", "share"), rows)


def _curve(curve: CostCurve) -> str:
    lines = [f"AIQ {_pct(curve.aiq)}" + (f", APGR {curve.apgr:.3f}" if curve.apgr is not None else "")]
    for label, point in (
        ("Same accuracy as the best single at", curve.cheapest_equal),
        ("Most accurate at no more cost:", curve.best_within),
    ):
        lines.append(f"{label} {_point(point)}" if point else f"{label} - no such point")
    return "\n".join(lines)


def _point(point: CurvePoint) -> str:
    share = f"{100 * point.cost:.0f} % of its cost, {_pct(point.accuracy)} %"
    return f"{share}, {interval(point.gain)} (cost_weight {point.setting:.3g})"


def _calls(points: list[CallPoint], equal: Interval | None) -> str:
    rows = (
        (f"{point.policy.call_price:g}", f"{point.calls:.2f}", _pct(point.accuracy), interval(point.gain))
        for point in points
    )
    table = _table(("call_price", "calls", "accuracy", "v. best single"), rows)
    return table + (f"\n\nEqual vote of all: {interval(equal)}." if equal else "")


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _pct(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"
