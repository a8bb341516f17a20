"""Figures of a judgement: for the page as SVG, for papers as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .replay import Judgement
from .text import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GAIN, LOSS, REST = "#1f2937", "#0f766e", "#b91c1c", "#94a3b8"


def figures(judgement: Judgement) -> Mapping[str, Callable[[str], bytes]]:
    """Name -> a function that draws it in a format, `svg` or `png`; only those the judgement has data for."""
    drawers: dict[str, Callable[[Axes], None]] = {
        "accuracy": lambda axes: _accuracy(axes, judgement),
        "domains": lambda axes: _domains(axes, judgement),
    }
    if judgement.curve is not None:
        drawers["cost"] = lambda axes: _cost(axes, judgement)
    if judgement.calls:
        drawers["calls"] = lambda axes: _calls(axes, judgement)
    if judgement.calibration:
        drawers["calibration"] = lambda axes: _calibration(axes, judgement)
    rows = {"accuracy": len(judgement.accuracies), "domains": len(judgement.domains)}
    return {name: _drawing(drawer, 1.2 + 0.32 * rows.get(name, 8)) for name, drawer in drawers.items()}


def _drawing(drawer: Callable[[Axes], None], height: float) -> Callable[[str], bytes]:
    def draw(kind: str) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        drawer(axes)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        return out.getvalue()

    return draw


def _accuracy(axes: Axes, judgement: Judgement) -> None:
    items = sorted(judgement.accuracies.items(), key=lambda item: item[1])
    names, values = [NAMES[key] for key, _ in items], [100 * value for _, value in items]
    bars = axes.barh(names, values, color=[GAIN if key == "routed" else REST for key, _ in items])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("questions answered right, %")


def _domains(axes: Axes, judgement: Judgement) -> None:
    rows = list(reversed(judgement.domains))
    gains = [row.against_best.gain for row in rows]
    for position, gain in enumerate(gains):
        colour = GAIN if gain.low > 0 else LOSS if gain.high < 0 else REST
        axes.plot([100 * gain.low, 100 * gain.high], [position, position], color=colour, linewidth=3)
        axes.plot(100 * gain.value, position, "o", color=colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row.domain} ({row.n})" for row in rows])
    axes.set_xlabel("routed minus best single expert, points, with 95 % intervals (not corrected)")


def _cost(axes: Axes, judgement: Judgement) -> None:
    if judgement.curve is None:
        return
    points = judgement.curve.points
    axes.plot(
        [point.cost for point in points], [100 * point.accuracy for point in points], ".-", color=GAIN, label="routed"
    )
    best = 100 * judgement.accuracies["best_single"]
    axes.plot(1.0, best, "s", color=INK, label="best single expert")
    axes.axhline(best, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("cost a question, the best single expert's = 1")
    axes.set_ylabel("right, %")
    axes.legend(frameon=False)


def _calls(axes: Axes, judgement: Judgement) -> None:
    calls = [point.calls for point in judgement.calls]
    axes.plot(
        calls, [100 * point.accuracy for point in judgement.calls], ".-", color=GAIN, label="weighted, stopping early"
    )
    axes.fill_between(
        calls,
        [100 * (point.accuracy - point.gain.value + point.gain.low) for point in judgement.calls],
        [100 * (point.accuracy - point.gain.value + point.gain.high) for point in judgement.calls],
        color=GAIN, alpha=0.15, linewidth=0,
    )  # fmt: skip
    best = 100 * judgement.accuracies["best_single"]
    axes.plot(1.0, best, "s", color=INK, label="best single expert")
    if judgement.equal_vote is not None:
        axes.plot(
            len(judgement.experts), best + 100 * judgement.equal_vote.value, "^", color=LOSS, label="equal vote of all"
        )
    axes.set_xlabel("calls a question")
    axes.set_ylabel("right, %")
    axes.legend(frameon=False)


def _calibration(axes: Axes, judgement: Judgement) -> None:
    bins = judgement.calibration
    shares = [100 * item.right.value for item in bins]
    below = [share - 100 * item.right.low for share, item in zip(shares, bins, strict=True)]
    above = [100 * item.right.high - share for share, item in zip(shares, bins, strict=True)]
    axes.plot([0, 100], [0, 100], color=REST, linewidth=0.8)
    axes.errorbar([100 * item.predicted for item in bins], shares, yerr=[below, above], fmt="o", color=GAIN, capsize=2)
    axes.set_xlabel("predicted quality of the chosen expert, %")
    axes.set_ylabel("right, %")
