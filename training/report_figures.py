"""Figures of a router's report: for the page as SVG, beside it as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .metrics import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .measure import RouterReport

INK, GOOD, BAD, REST = "#1f2937", "#0f766e", "#b91c1c", "#94a3b8"
INCH_A_ROW = 0.34

Drawer = Callable[["Axes"], None]


def figures(report: RouterReport) -> Mapping[str, Callable[[str], bytes]]:
    """Name -> a function that draws it in a format, `svg` or `png`; only those the report has data for."""
    count = len(report.labels)
    drawers: dict[str, tuple[Drawer, float, float]] = {
        "confusion": (lambda axes: _confusion(axes, report), 1.8 + 0.62 * count, 1.2 + 0.48 * count),
        "domains": (lambda axes: _domains(axes, report), 7.2, 1.0 + 0.42 * count),
        "reliability": (lambda axes: _reliability(axes, report), 4.6, 4.2),
        "coverage": (lambda axes: _coverage(axes, report), 6.0, 4.0),
    }
    if report.robustness:
        height = 1.0 + INCH_A_ROW * len(report.robustness)
        drawers["robustness"] = (lambda axes: _robustness(axes, report), 7.2, height)
    if report.sources:
        drawers["sources"] = (lambda axes: _sources(axes, report), 7.2, 1.0 + 0.26 * len(report.sources))
    return {name: _drawing(*drawer) for name, drawer in drawers.items()}


def _drawing(drawer: Drawer, width: float, height: float) -> Callable[[str], bytes]:
    def draw(kind: str) -> bytes:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        # Dollar signs in labels are no formulas; a fixed salt makes the same report the same bytes.
        with rc_context({"svg.hashsalt": "collegium", "text.parse_math": False}):
            figure = Figure(figsize=(width, height), layout="constrained")
            axes = figure.subplots()
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=INK)
            drawer(axes)
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        return out.getvalue()

    return draw


def _confusion(axes: Axes, report: RouterReport) -> None:
    counts = np.array(report.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="GnBu", vmin=0, vmax=1, aspect="auto")
    places = range(len(report.labels))
    axes.set_xticks(places, report.labels, rotation=35, ha="right")
    axes.set_yticks(places, [f"{label} ({int(row.sum())})" for label, row in zip(report.labels, counts, strict=True)])
    for i in places:
        for j in places:
            if shares[i, j] >= 0.005:
                colour = "white" if shares[i, j] > 0.6 else INK
                axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("routed to, % of the row")
    axes.set_ylabel("true domain (prompts)")
    axes.spines[:].set_visible(False)


def _domains(axes: Axes, report: RouterReport) -> None:
    rows = list(reversed(report.domains))
    for shift, name, colour in ((0.16, "precision", GOOD), (-0.16, "recall", INK)):
        shares = [getattr(row, name) for row in rows]
        _intervals(axes, shares, [place + shift for place in range(len(rows))], colour, name)
    axes.set_yticks(range(len(rows)), [f"{row.domain} ({row.rows})" for row in rows])
    axes.set_xlim(0, 102)
    axes.set_xlabel("%, with 95 % intervals")
    axes.legend(frameon=False, loc="lower left")


def _reliability(axes: Axes, report: RouterReport) -> None:
    axes.plot([0, 100], [0, 100], color=REST, linewidth=0.8)
    rows = sum(item.right.rows for item in report.reliability)
    for item in report.reliability:
        value, low, high = _percents(item.right)
        x = 100 * item.confidence
        axes.plot([x, x], [low, high], color=GOOD, linewidth=1.6)
        axes.plot(x, value, "o", color=GOOD, markersize=4 + 9 * (item.right.rows / rows) ** 0.5)
    axes.set_xlim(0, 103)
    axes.set_ylim(0, 103)
    axes.set_xlabel("said: confidence, %")
    axes.set_ylabel("came true: right, % (larger dot: more prompts)")


def _coverage(axes: Axes, report: RouterReport) -> None:
    points = report.coverage
    axes.plot([100 * point.coverage for point in points], [100 * point.accuracy for point in points], color=GOOD)
    if report.routed_right.value is not None:
        value, low, high = _percents(report.routed_right)
        x = 100 * (report.routed.value or 0.0)
        axes.plot([x, x], [low, high], color=INK, linewidth=1.6)
        axes.plot(x, value, "o", color=INK, label=f"as set: {x:.0f} % routed, {value:.1f} % of them right")
        axes.legend(frameon=False, loc="lower left")
    axes.set_xlabel("share of prompts routed, surest first, %")
    axes.set_ylabel("right among them, %")
    axes.set_xlim(0, 102)
    axes.set_ylim(top=100.5)


def _robustness(axes: Axes, report: RouterReport) -> None:
    rows = list(reversed(report.robustness))
    _intervals(axes, [row.flips for row in rows], range(len(rows)), BAD)
    axes.set_yticks(range(len(rows)), [f"{row.perturbation} ({row.flips.rows})" for row in rows])
    axes.set_xlim(left=0)
    axes.set_xlabel("prompts whose predicted domain flips, %, with 95 % intervals")


def _sources(axes: Axes, report: RouterReport) -> None:
    rows = list(reversed(report.sources))
    _intervals(axes, [row.accuracy for row in rows], range(len(rows)), GOOD, "right")
    axes.plot(
        [100 * row.confidence for row in rows], range(len(rows)), "|", color=BAD, markersize=9, label="confidence"
    )
    axes.set_yticks(range(len(rows)), [f"{row.source[:40]} ({row.accuracy.rows})" for row in rows])
    axes.set_xlim(0, 102)
    axes.set_xlabel("%, with 95 % intervals")
    axes.legend(frameon=False, loc="lower left")


def _intervals(
    axes: Axes, shares: Sequence[Share], places: Sequence[float], colour: str, label: str | None = None
) -> None:
    for place, share in zip(places, shares, strict=True):
        if share.value is not None:
            value, low, high = _percents(share)
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot(value, place, "o", color=colour, markersize=4.5, label=label)
            label = None


def _percents(share: Share) -> tuple[float, float, float]:
    value = 0.0 if share.value is None else share.value
    return 100 * value, 100 * share.low, 100 * share.high
