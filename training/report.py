"""The report of trained routers: one self-contained HTML page, and its figures as PNG."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from .measure import Mistake, RouterReport
from .metrics import Share
from .report_figures import figures

PAGE = "report.html"
SHOWN_PROMPT = 500
SHOWN_NEIGHBOUR = 200

Rows = Sequence[Sequence[str]]


def write_report(reports: Sequence[RouterReport], folder: Path, command: str) -> Path:
    """Write report.html and a PNG of each figure into `folder`; `command` is shown, so that it can be repeated.

    Several reports, of the same prompts, begin with a table that sets them side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [_side_by_side(reports)] if len(reports) > 1 else []
    for number, report in enumerate(reports):
        drawn = figures(report)
        prefix = f"{number + 1}-" if len(reports) > 1 else ""
        for name, draw in drawn.items():
            (folder / f"{prefix}{name}.png").write_bytes(draw("png"))
        images = {name: _figure(draw("svg").decode(), f"{prefix}{name}-") for name, draw in drawn.items()}
        sections.append(_section(report, images))
    template = Template((Path(__file__).parent / PAGE).read_text(encoding="utf-8"))
    title = html.escape(", ".join(report.version for report in reports))
    page = folder / PAGE
    page.write_text(
        template.substitute(title=title, body="\n".join(sections), command=html.escape(command)), encoding="utf-8"
    )
    return page


def side_by_side(reports: Sequence[RouterReport]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that compares routers."""
    header = ["router", "kind", "accuracy", "macro-F1", "ECE", "routed", "right of these", "worst flips"]
    header += ["p50 ms", "p99 ms", "p50 ms of processor", "size"]
    return header, [
        [
            report.version,
            report.kind,
            percent(report.accuracy),
            f"{100 * report.scores.macro_f1:.1f}",
            f"{report.scores.ece:.3f}",
            percent(report.routed),
            percent(report.routed_right),
            percent(max((row.flips for row in report.robustness), key=lambda share: share.value or 0.0)),
            f"{report.latency.p50:.2f}",
            f"{report.latency.p99:.2f}",
            f"{report.latency.processor_p50:.2f}",
            size(report.bytes),
        ]
        for report in reports
    ]


def percent(share: Share, interval: bool = False) -> str:
    """A share for a person: per cent, with its interval if asked for."""
    if share.value is None:
        return "-"
    between = f" ({100 * share.low:.1f}-{100 * share.high:.1f})" if interval else ""
    return f"{100 * share.value:.1f}{between}"


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _section(report: RouterReport, images: dict[str, str]) -> str:
    confusion = '<p class="note">Each row is a true domain: where its prompts were sent.</p>' + images["confusion"]
    coverage = (
        '<p class="note">Routing only the surest prompts: the further left, the fewer and the more often right.</p>'
        + images["coverage"]
    )
    parts = [
        _headline(report),
        f"<h3>What is taken for what</h3>{confusion}",
        f"<h3>Domains</h3>{_domains(report)}{images['domains']}",
        f"<h3>Calibration: does confidence come true?</h3>{_calibration(report)}{images['reliability']}",
        f"<h3>Accuracy against coverage</h3>{coverage}",
    ]
    if report.sources:
        parts.append(f"<h3>Sources, hardest first</h3>{_sources(report)}{images['sources']}")
    if report.robustness:
        parts.append(f"<h3>Robustness</h3>{_robustness(report)}{images['robustness']}")
    if report.novelty:
        parts.append(f"<h3>Novelty: prompts unlike the training prompts</h3>{_novelty(report)}")
    parts.append(f"<h3>The most confident mistakes</h3>{''.join(map(_mistake, report.mistakes)) or '<p>None.</p>'}")
    return "\n".join(parts)


def _headline(report: RouterReport) -> str:
    cards = {
        "right domain": f"{percent(report.accuracy)} %",
        "macro-F1": f"{100 * report.scores.macro_f1:.1f}",
        "ECE": f"{report.scores.ece:.3f}",
        "routed": f"{percent(report.routed)} %",
        "of these right": f"{percent(report.routed_right)} %",
        "one prompt, p50": f"{report.latency.p50:.2f} ms",
        "one prompt, p99": f"{report.latency.p99:.2f} ms",
        "on disk": size(report.bytes),
    }
    items = "".join(f"<li><b>{value}</b><span>{name}</span></li>" for name, value in cards.items())
    promise = f'<p class="promise">{html.escape(report.guarantee)}</p>' if report.guarantee else ""
    followed = f", follows {html.escape(report.parent)}" if report.parent else ""
    return (
        f"<h1>router {html.escape(report.version)}, kind {html.escape(report.kind)}{followed}</h1>"
        f'<p class="verdict">{percent(report.accuracy, True)} % of {report.rows:,} prompts that it never saw reach '
        f'the right domain.</p><ul class="cards">{items}</ul>{promise}'
        f'<p class="note">Routed: confidence of at least {report.scores.threshold:.3f}'
        f"{', and not novel' if report.novelty else ''}; the generalist answers the rest. Latency is that of this "
        f"machine, {report.latency.prompts} prompts one at a time; of the processor it takes "
        f"{report.latency.processor_p50:.2f} ms at p50 and {report.latency.processor_p99:.2f} ms at p99.</p>"
    )


def _domains(report: RouterReport) -> str:
    rows = [
        [row.domain, str(row.rows), percent(row.precision, True), percent(row.recall, True), f"{100 * row.f1:.1f}"]
        for row in report.domains
    ]
    return _table(["domain", "prompts", "precision, %", "recall, %", "F1"], rows)


def _calibration(report: RouterReport) -> str:
    before, after = report.calibration.before, report.calibration.after
    names = {"NLL": "nll", "Brier": "brier", "ECE": "ece", "classwise ECE": "classwise_ece"}
    rows = [[name, f"{getattr(before, key):.4f}", f"{getattr(after, key):.4f}"] for name, key in names.items()]
    how = "temperature and vector scaling" if report.calibration.vector_scaling else "temperature"
    return _table(["on these prompts", "uncalibrated", f"after {how}"], rows)


def _sources(report: RouterReport) -> str:
    rows = [
        [
            row.source,
            percent(row.accuracy, True),
            f"{100 * row.confidence:.1f}",
            row.taken_for or "-",
            str(row.accuracy.rows),
        ]
        for row in report.sources
    ]
    return _table(["source", "right, %", "mean confidence, %", "mostly taken for", "prompts"], rows)


def _robustness(report: RouterReport) -> str:
    rows = [
        [row.perturbation, percent(row.flips, True), percent(row.before), percent(row.after), str(row.flips.rows)]
        for row in report.robustness
    ]
    return _table(["perturbation", "prediction flips, %", "right before, %", "right after, %", "prompts changed"], rows)


def _novelty(report: RouterReport) -> str:
    found = report.novelty
    if found is None:
        return ""
    rows = [["errors among these prompts", "", _area(found.errors_by_confidence), _area(found.errors_by_novelty), ""]]
    for row in found.strange:
        areas = [_area(row.by_confidence), _area(row.by_novelty)]
        rows.append([f"{row.kind} prompts of ours", str(row.rows), *areas, f"{100 * row.abstains:.0f}"])
    note = (
        f"{100 * found.novel:.1f} % of the reported prompts count as novel. Areas under the ROC curve: 0.5 is chance."
    )
    return f'<p class="note">{note}</p>' + _table(
        ["found by", "prompts", "low confidence", "novelty", "left to the generalist, %"], rows
    )


def _area(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mistake(mistake: Mistake) -> str:
    near = "".join(
        f'<p class="near">near: <b>{html.escape(one.label)}</b> ({one.similarity:.2f}) '
        f"{html.escape(_short(one.text, SHOWN_NEIGHBOUR))}</p>"
        for one in mistake.neighbours
    )
    return (
        f'<div class="mistake"><p>{html.escape(mistake.row)}: <b>{html.escape(mistake.label)}</b>, taken for '
        f"<b>{html.escape(mistake.predicted)}</b> at {100 * mistake.confidence:.1f} %</p>"
        f"<pre>{html.escape(_short(mistake.text, SHOWN_PROMPT))}</pre>{near}</div>"
    )


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} ..."


def _side_by_side(reports: Sequence[RouterReport]) -> str:
    header, rows = side_by_side(reports)
    return f"<h2>Side by side: the same {reports[0].rows:,} prompts</h2>{_table(header, rows)}"


def _table(header: Sequence[str], rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(svg: str, prefix: str) -> str:
    """The drawing inline; its ids get a prefix, since figures of one page share them otherwise."""
    inline = re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)
    inline = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", inline)
    return f"<figure>{inline}</figure>"
