"""The prompt encoder: a sentence-transformers model in fp32, one prompt at a time."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_ENCODER = "wheel:all-minilm-l6-v2"

Locate = Callable[[str, str | None], str]
"""(model id, revision) -> what SentenceTransformer opens: a local folder or a hub id."""


class EncoderError(ValueError):
    """The encoder cannot be loaded, or is not the one that the router was trained with."""


def as_given(model: str, revision: str | None) -> str:
    """The default `Locate`: the id is a hub id or a path already."""
    return model


@dataclass(frozen=True, slots=True)
class EncoderId:
    """Which encoder. `checksum` is the SHA-256 of its weights in fp32, empty where it is not known yet."""

    model: str = DEFAULT_ENCODER
    revision: str | None = None
    checksum: str = ""


class Encoder:
    """Texts -> unit vectors of `dimensions` float32.

    `encode` takes one prompt alone, on one core: a vector never depends on padding, on who else asks, or on how many
    cores there are, and a busy machine does not stall it on its slowest core. Thread-safe.
    """

    def __init__(self, model: SentenceTransformer, identity: EncoderId, tokens: int) -> None:
        self._model = model
        self._lock = threading.Lock()  # fast tokenizers cannot be borrowed twice
        self._model.max_seq_length = tokens
        self.identity = identity
        self.tokens = tokens

    @property
    def dimensions(self) -> int:
        return int(self._model.get_embedding_dimension())

    @property
    def module(self) -> SentenceTransformer:
        """The torch module: token ids -> sentence vectors."""
        return self._model

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All weights, by name."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self._model.state_dict().items()}

    def with_weights(self, changed: Mapping[str, NDArray[np.generic]]) -> Encoder:
        """A copy in which some weights are others.

        Raises:
            EncoderError: a weight that the encoder does not have, or has in another shape.
        """
        import torch

        known = self._model.state_dict()
        for name, values in changed.items():
            if name not in known or tuple(known[name].shape) != values.shape:
                raise EncoderError(f"encoder {self.identity.model!r} has no weight {name!r} of shape {values.shape}")
        model = copy.deepcopy(self._model)
        given = {name: torch.from_numpy(np.array(values, np.float32)) for name, values in changed.items()}
        model.load_state_dict(given, strict=False)
        identity = replace(self.identity, checksum=weights_checksum(model))
        return Encoder(model, identity, self.tokens)

    def encode(self, text: str) -> NDArray[np.float32]:
        """The vector of one prompt, shape (dimensions,)."""
        with self._lock, _one_thread():
            vector: NDArray[np.float32] = self._model.encode(text, normalize_embeddings=True, show_progress_bar=False)
        return vector

    def encode_batches(self, texts: Sequence[str], size: int = 64) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """For training: vectors of many prompts in padded batches, longest first, with the positions they belong to."""
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            with self._lock:
                vectors: NDArray[np.float32] = self._model.encode(
                    [texts[position] for position in positions],
                    batch_size=size,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
            yield positions, vectors


def load_encoder(identity: EncoderId, tokens: int, locate: Locate = as_given) -> Encoder:
    """Open the encoder on the CPU or the first GPU, and check its weights where `identity` names their checksum.

    Raises:
        EncoderError: it cannot be opened, or its weights are others.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EncoderError(
            "the encoder needs sentence-transformers; install it by: pip install 'collegium[encoder]'"
        ) from error
    try:
        model = SentenceTransformer(
            locate(identity.model, identity.revision),
            revision=identity.revision,
            trust_remote_code=False,
            model_kwargs={"dtype": "float32"},
        )
    except (OSError, ValueError) as error:
        raise EncoderError(f"encoder {identity.model!r} cannot be opened: {_first_line(error)}") from error
    checksum = weights_checksum(model)
    if identity.checksum not in ("", checksum):
        raise EncoderError(
            f"encoder {identity.model!r} has other weights than the router was trained with: "
            f"SHA-256 {checksum[:12]}..., expected {identity.checksum[:12]}..."
        )
    return Encoder(model, EncoderId(identity.model, identity.revision, checksum), tokens)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def weights_checksum(model: SentenceTransformer) -> str:
    """SHA-256 over names, shapes and fp32 bytes of all weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = np.ascontiguousarray(tensor.cpu().numpy())
        digest.update(f"{name}{values.dtype}{values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
