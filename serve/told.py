"""A decision as the client sees it: in the headers of the answer, and whole from /v1/route."""

from __future__ import annotations

import hashlib

from .answer import Answer
from .routing import Route
from .snapshot import Snapshot

_REASON = 300


def tell(answer: Answer, route: Route) -> None:
    """Put the decision into the answer's headers."""
    decision = route.decision
    told = {
        b"x-collegium-expert": decision.expert,
        b"x-collegium-domain": decision.domain,
        b"x-collegium-confidence": f"{decision.confidence:.4f}",
        b"x-collegium-router": route.router,
        b"x-collegium-reason": decision.reason,
    }
    if answer.vsr:
        told[b"x-vsr-selected-model"] = decision.expert
        told[b"x-vsr-selected-decision"] = decision.domain
        told[b"x-vsr-config-hash"] = answer.vsr
    answer.exchange.expert = decision.expert
    answer.headers = [header for header in answer.headers if header[0] not in told]
    answer.headers += [(name, _header_value(value)) for name, value in told.items()]


def config_hash(snapshot: Snapshot) -> str:
    """64 hexadecimal digits that change with the router and with anything of an expert that its route depends on."""
    experts = sorted(
        (one.name, sorted(one.skills.items()), sorted(one.admitted), one.default_skill, one.generalist, one.cost)
        for one in snapshot.candidates
    )
    return hashlib.sha256(repr((snapshot.router.version, experts)).encode()).hexdigest()


def _header_value(text: str) -> bytes:
    """One bounded line of printable ASCII."""
    line = text[:_REASON]
    if not (line.isascii() and line.isprintable()):
        line = "".join(character if " " <= character <= "~" else "?" for character in line)
    return line.encode("ascii")


def route_json(route: Route) -> dict[str, object]:
    """A decision as /v1/route shows it."""
    decision = route.decision
    return {
        "object": "route",
        "expert": decision.expert,
        "domain": decision.domain,
        "confidence": decision.confidence,
        "abstained": decision.abstained,
        "novelty": route.posterior.novelty if route.posterior else None,
        "reason": decision.reason,
        "runner_up": decision.runner_up,
        "router": route.router,
        "posterior": route.posterior.as_dict() if route.posterior else None,
        "experts": [
            {
                "expert": score.expert,
                "quality": score.quality,
                "cost": score.cost,
                "utility": score.utility,
                "excluded": score.excluded,
            }
            for score in decision.scores
        ],
    }
