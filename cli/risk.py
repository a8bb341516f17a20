"""What a threshold promises, for a person to read."""

from __future__ import annotations

from rich.console import Console

from ..router.risk import RiskControl


def print_risk(risk: RiskControl) -> None:
    """The promise, and what it costs."""
    console = Console(soft_wrap=True)
    console.print(risk.guarantee)
    if risk.possible:
        console.print(
            f"threshold {risk.threshold:g}: {risk.routed / risk.rows:.1%} of {risk.rows} prompts are routed, "
            f"{risk.wrong} of them wrongly"
        )
