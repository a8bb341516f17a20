"""The trained router as the edge uses it: a loaded artefact that turns a prompt into a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .classifier import Classifier
from .encoder import Locate, as_given
from .kinds import KINDS, class_of
from .manifest import ArtefactError, Manifest, read_artefact
from .posterior import Posterior

__all__ = ["KINDS", "STARTER", "ArtefactError", "Router", "load_router"]

STARTER = Path(__file__).parent / "starter"


class Router:
    """A prompt -> posterior, with the version that made it. Thread-safe."""

    def __init__(self, classifier: Classifier, manifest: Manifest) -> None:
        self._classifier = classifier
        self.manifest = manifest
        self.labels: tuple[str, ...] = tuple(manifest.labels)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def threshold(self) -> float:
        return self.manifest.threshold

    def posterior(self, text: str) -> Posterior:
        """p(domain | prompt) of one prompt; it abstains under the threshold."""
        probabilities = self._classifier.probabilities(text)
        return Posterior(self.labels, tuple(probabilities.tolist()), self.threshold)

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
    except ArtefactError as error:
        raise ArtefactError(f"router {folder}: {error}") from error
    return Router(classifier, manifest)
