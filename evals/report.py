"""The report: one self-contained HTML page, with the figures as PNG beside it."""

from __future__ import annotations

import html
import re
from pathlib import Path

from .figures import figures
from .replay import Example, Judgement
from .text import headline, markdown

TITLES = {
    "accuracy": "Routed beside what it must be compared with",
    "domains": "Where routing gains and loses",
    "cost": "Accuracy against cost",
    "calls": "Asking more than one expert",
    "calibration": "Does the predicted quality come true?",
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; color: #64748b; font-weight: 500; }
.verdict { font-size: 1.7rem; line-height: 1.25; font-weight: 650; margin: 0 0 .5rem; }
.pays { color: #0f766e; } .loses { color: #b91c1c; }
.advice { background: #f1f5f9; border-radius: .5rem; padding: .8rem 1rem; }
figure { margin: 2rem 0; } figcaption { font-weight: 650; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e2e8f0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } pre { white-space: pre-wrap; background: #f8fafc; padding: .6rem; }
"""


def write_report(judgement: Judgement, folder: Path, command: str) -> Path:
    """Write report.html and one PNG a figure into `folder`; `command` is shown, so that it can be repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(judgement)
    for name, draw in drawn.items():
        (folder / f"{name}.png").write_bytes(draw("png"))
    images = [_figure(TITLES[name], draw("svg").decode()) for name, draw in drawn.items()]
    page = folder / "report.html"
    page.write_text(_page(judgement, images, command), encoding="utf-8")
    return page


def _page(judgement: Judgement, images: list[str], command: str) -> str:
    verdict, _, advice = headline(judgement).partition("\n")
    mood = "pays" if judgement.against_best.gain.low > 0 else "loses" if judgement.against_best.gain.high < 0 else ""
    said, _, rest = verdict.partition(": ")
    tables = markdown(judgement).removeprefix(headline(judgement))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(said)} - collegium evaluation</title><style>{_STYLE}</style></head><body>
<h1>collegium evaluation: does routing pay?</h1>
<p class="verdict {mood}">{html.escape(said)}.</p>
<p>{html.escape(rest[:1].upper() + rest[1:])}</p>
<p class="advice">{html.escape(advice)}</p>
{"".join(images)}
<h2>Tables</h2>
{_tables(tables)}
{_examples(judgement.examples)}
<h2>How to repeat it</h2>
<pre>{html.escape(command)}</pre>
<p>{html.escape(", ".join(f"{key}: {value}" for key, value in judgement.policy.items()))}</p>
</body></html>
"""


def _figure(title: str, svg: str) -> str:
    inline = re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{inline}</figure>\n"


def _tables(text: str) -> str:
    """Markdown tables and the lines between them."""
    parts = []
    for block in filter(None, text.strip().split("\n\n")):
        if not block.startswith("|"):
            parts.append(f"<p>{html.escape(block).replace(chr(10), '<br>')}</p>")
            continue
        header, _, *rows = (line.strip("| ").split(" | ") for line in block.splitlines())
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    return "\n".join(parts)


def _examples(examples: list[Example]) -> str:
    if not examples:
        return ""
    parts = ["<h2>Questions that routing won and lost</h2>"]
    for example in examples:
        outcome = "won" if example.won else "lost"
        parts.append(
            f"<p><b>{outcome}</b> by {html.escape(example.expert)} ({html.escape(example.domain)}, "
            f"{html.escape(example.id)}; right: {html.escape(example.target[:80])})</p>"
            f"<pre>{html.escape(example.prompt[:600])}</pre>"
        )
    return "\n".join(parts)
