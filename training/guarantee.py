"""Routers with a guarantee: at most alpha of the routed prompts go to a wrong domain, shown on prompts set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..router.artefact import Router, load_router
from ..router.encoder import Encoder, Locate, as_given
from ..router.manifest import HEAD, DataRecord, Manifest, check_target, read_artefact, write_artefact
from ..router.risk import RiskControl, check_risk, control_risk
from ..router.seen import SEEN, seen_file
from .compare import refuse_seen
from .data import Prompt, data_hash
from .features import Progress, quiet
from .recipes import Options
from .split import Positions, folds, near_duplicate_groups
from .train import MANY_ROWS, Trained, train

FEW_FOLDS, MANY_FOLDS = 5, 20
NEVER_ROUTED = -1.0


def train_with_guarantee(
    prompts: Sequence[Prompt],
    kind: str,
    options: Options,
    alpha: float,
    level: float,
    encoder: Encoder | None = None,
    cache: Path | None = None,
    progress: Progress = quiet,
    groups: Positions | None = None,
) -> Trained:
    """`train`, on all prompts but a fifth (a twentieth of MANY_ROWS or more), which set the threshold.

    These prompts take no part in fitting, calibrating or measuring novelty, so that the promise holds as it is stated;
    of near duplicates among them one counts.

    Raises:
        DataError, ValueError: as `train`; alpha or the level is not over 0 and under 1.
    """
    check_risk(alpha, level)
    if groups is None:
        groups = near_duplicate_groups([prompt.text for prompt in prompts])
    count = MANY_FOLDS if len(prompts) >= MANY_ROWS else FEW_FOLDS
    aside = folds([prompt.label for prompt in prompts], groups, count, options.seed) == 0
    kept = [prompt for prompt, is_aside in zip(prompts, aside, strict=True) if not is_aside]
    trained = train(kept, kind, encoder, options, cache, progress, groups[~aside])
    distinct = np.unique(groups[aside], return_index=True)[1]
    held = [prompts[int(row)] for row in np.flatnonzero(aside)[distinct]]
    router = Router(trained.classifier, trained.classifier.manifest(trained.about), trained.novelty)
    risk = risk_on(router, held, alpha, level)
    about = replace(
        trained.about,
        threshold=risk.threshold,
        data=DataRecord(hash=data_hash(prompts), rows=dict(sorted(Counter(p.label for p in prompts).items()))),
        metrics={**trained.about.metrics, "risk": risk.as_dict()},
        extra={**trained.about.extra, SEEN: seen_file([prompt.text for prompt in prompts])},
    )
    return replace(trained, about=about, risk=risk)


def recalibrated(
    folder: Path, out: Path, prompts: Sequence[Prompt], alpha: float, level: float, locate: Locate = as_given
) -> tuple[Manifest, RiskControl]:
    """The router of `folder` with a threshold set on fresh prompts, one's own traffic say, written to `out`.

    Weights and posteriors stay as they are. The prompts count as seen from then on.

    Raises:
        ArtefactError, EncoderError: the router cannot be opened, or the new one not be written.
        DataError: the router saw some of the prompts.
        ValueError: alpha or the level is not over 0 and under 1.
    """
    check_risk(alpha, level)
    router = load_router(folder, locate)
    check_target(out)
    refuse_seen([folder], prompts)
    groups = near_duplicate_groups([prompt.text for prompt in prompts])
    held = [prompts[int(row)] for row in np.unique(groups, return_index=True)[1]]
    risk = risk_on(router, held, alpha, level)
    manifest, tensors = read_artefact(folder)
    extra = {name: (folder / name).read_bytes() for name in manifest.files if name != HEAD}
    extra[SEEN] = seen_file([prompt.text for prompt in prompts], extra.get(SEEN))
    changed = manifest.model_copy(
        update={
            "threshold": risk.threshold,
            "parent": manifest.version,
            "metrics": {**manifest.metrics, "risk": risk.as_dict()},
        }
    )
    return write_artefact(out, changed, tensors, extra), risk


def risk_on(router: Router, prompts: Sequence[Prompt], alpha: float, level: float) -> RiskControl:
    """Risk control on distinct prompts that the router never saw, each read alone as in serving."""
    found = [router.posterior(prompt.text) for prompt in prompts]
    confidences = np.array([NEVER_ROUTED if posterior.novel else posterior.confidence for posterior in found])
    right = np.array([one.domain == prompt.label for one, prompt in zip(found, prompts, strict=True)], dtype=bool)
    return control_risk(confidences, right, alpha, level)
