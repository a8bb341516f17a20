"""The trained router as the edge uses it: a loaded artefact that turns a prompt into a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .classifier import Classifier
from .encoder import Locate, as_given
from .kinds import KINDS, class_of
from .manifest import ArtefactError, Manifest, read_artefact
from .novelty import NOVELTY, Novelty
from .posterior import Posterior

__all__ = ["KINDS", "STARTER", "ArtefactError", "Router", "load_router"]

STARTER = Path(__file__).parent / "starter"
PROBE = "probe"


class Router:
    """A prompt -> posterior, with the version that made it. Thread-safe."""

    def __init__(self, classifier: Classifier, manifest: Manifest, novelty: Novelty | None = None) -> None:
        self.classifier = classifier
        self.manifest = manifest
        self.novelty = novelty
        self.labels: tuple[str, ...] = tuple(manifest.labels)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def inline(self) -> bool:
        """Whether the edge reads prompts in its event loop: a thread would cost more than the reading."""
        return self.classifier.inline

    @property
    def threshold(self) -> float:
        return self.manifest.threshold

    @property
    def novelty_limit(self) -> float:
        """Above it a prompt is taken for novel; 1 never."""
        return 1.0 if self.manifest.novelty_limit is None else self.manifest.novelty_limit

    def posterior(self, text: str) -> Posterior:
        """p(domain | prompt) of one prompt; it abstains under the threshold, and where the prompt is novel."""
        if self.novelty is not None:
            probabilities, vector = self.classifier.probabilities_and_vector(text)
            novelty = 1.0 if vector is None else float(self.novelty.percentiles(vector))
            values = tuple(probabilities.tolist())
            return Posterior(self.labels, values, self.threshold, novelty=novelty, novelty_limit=self.novelty_limit)
        probabilities, qualities = self.classifier.read(text)
        return Posterior(self.labels, tuple(probabilities.tolist()), self.threshold, qualities)

    def posteriors(self, texts: Sequence[str]) -> list[Posterior]:
        """Each prompt on its own: the same numbers, to the last bit, as `posterior` gives."""
        return [self.posterior(text) for text in texts]


def load_router(folder: Path, locate: Locate = as_given) -> Router:
    """Open and check an artefact of any kind.

    Raises:
        ArtefactError: it is not whole, or of an unknown kind.
        EncoderError: its encoder cannot be had, or is another.
    """
    manifest, tensors = read_artefact(folder)
    try:
        classifier = class_of(manifest.kind).restored(manifest, tensors, locate)
        novelty = _novelty(folder, manifest, classifier)
    except ArtefactError as error:
        raise ArtefactError(f"router {folder}: {error}") from error
    return Router(classifier, manifest, novelty)


def _novelty(folder: Path, manifest: Manifest, classifier: Classifier) -> Novelty | None:
    if NOVELTY not in manifest.files:
        return None
    found = Novelty.from_bytes((folder / NOVELTY).read_bytes())
    vector = classifier.probabilities_and_vector(PROBE)[1]
    if vector is None or vector.shape != found.directions.shape[:1]:
        raise ArtefactError(f"{NOVELTY} is of another vector space than the classifier's")
    return found
