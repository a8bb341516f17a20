"""The measured latencies as a figure: one row a road, its quantiles from left to right, one panel a load.

`python benchmarks/plot.py RESULTS.json FILE` draws again what `edge.py --json` kept; FILE ends in .svg or .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from load import Kind, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too; every row has its name beside it all the same.
INK = "#1f2937"
COLOURS: dict[Kind, str] = {"direct": "#5b6472", "edge": "#0072b2", "peer": "#c04e00"}
QUANTILES = {"p50": ("o", True), "p90": ("|", True), "p99": ("D", False), "p999": ("^", False)}
LABELS = {"p999": "p99.9"}
SHAPES = {False: "whole answer", True: "first event of a stream"}


def draw(results: Sequence[Result], file: Path) -> None:
    """Write the figure; the ending of `file` says as what."""
    from matplotlib import figure as figures
    from matplotlib import rc_context

    loads = list(dict.fromkeys(result.load for result in results))
    streams = [kind for kind in SHAPES if any(result.stream is kind for result in results)]
    roads = list(dict.fromkeys(result.road for result in results))
    size = (1.9 + 3.3 * len(loads), 1.0 + len(streams) * (0.5 + 0.33 * len(roads)))
    with rc_context({"svg.hashsalt": "collegium", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9}):
        figure = figures.Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(streams), len(loads), sharex=True, sharey=True, squeeze=False)
        for row, stream in zip(grid, streams, strict=True):
            for axes, load in zip(row, loads, strict=True):
                _panel(axes, [one for one in results if one.load == load and one.stream is stream], roads)
                axes.set_title(f"{load}: {SHAPES[stream]}", fontsize=9, loc="left")
        figure.supxlabel("milliseconds, logarithmic", fontsize=9)
        _bounds(grid[0][0], results)
        _legend(figure)
        kind = file.suffix.lstrip(".") or "svg"
        figure.savefig(file, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def _panel(axes: Axes, results: Sequence[Result], roads: Sequence[str]) -> None:
    for result in results:
        place, colour = len(roads) - 1 - roads.index(result.road), COLOURS[result.kind]
        values = [getattr(result, name) for name in QUANTILES]
        axes.plot([values[0], values[-1]], [place, place], color=colour, linewidth=1.2)
        for value, (marker, filled) in zip(values, QUANTILES.values(), strict=True):
            axes.plot(value, place, marker, color=colour, markerfacecolor=colour if filled else "white", markersize=5.5)
        for value, side, align in ((values[0], -7, "right"), (values[-1], 7, "left")):
            text = f"{value:.2f}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
            axes.annotate(
                text, (value, place), (side, 0), textcoords="offset points", ha=align, va="center", color=colour
            )
    axes.set_yticks(range(len(roads)), list(reversed(roads)))
    axes.set_ylim(-0.6, len(roads) - 0.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK, length=0, axis="y")
    axes.tick_params(colors=INK, axis="x")
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)


def _bounds(axes: Axes, results: Sequence[Result]) -> None:
    """Room for the numbers at both ends."""
    answered = [result for result in results if result.requests > result.failed]
    axes.set_xlim(0.25 * min(one.p50 for one in answered), 4 * max(one.p999 for one in answered))


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=INK, markerfacecolor=INK if filled else "white",
               label=LABELS.get(name, name), markersize=5.5)
        for name, (marker, filled) in QUANTILES.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    draw([Result(**one) for one in json.loads(given.results.read_text())], given.file)
