"""The artefact's files: manifest.json, checksums, what loading refuses, and writing whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HEAD = "head.safetensors"
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 4 * 2**30
ALLOWED_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".md", ".html", ".png"})
CODE_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".h5", ".py", ".so"}
)

LATER_FIELDS = ("scaling", "novelty_limit")
"""Fields that came after the first artefacts were written: left out where unset, so that those keep their version."""

Tensors = dict[str, NDArray[np.generic]]


class ArtefactError(ValueError):
    """A folder that is no usable router; the message is one sentence that says which file or field, and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EncoderRecord(_Strict):
    """The encoder that the head was trained on. `checksum`: SHA-256 of its weights."""

    model: str
    revision: str | None = None
    checksum: str


class TextRecord(_Strict):
    """What of a text is read: its first `head` and last `tail` characters, then at most `tokens` tokens."""

    head: int = Field(400, ge=1, le=8_000)
    tail: int = Field(200, ge=0, le=8_000)
    tokens: int = Field(160, ge=8, le=8_192)


class DataRecord(_Strict):
    """What it was trained on: SHA-256 over texts and labels, and rows of each label."""

    hash: str = ""
    rows: dict[str, int] = Field(default_factory=dict)


class ScalingRecord(_Strict):
    """Factors and shifts of the logits after temperature, one of each a label."""

    factors: list[FiniteFloat]
    shifts: list[FiniteFloat]


class FileRecord(_Strict):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_FILE_BYTES)


class SelfTest(_Strict):
    """A prompt and the posterior that it must get."""

    text: str
    posterior: list[float]


class Manifest(_Strict):
    """All that is known of a trained router. `version` is the name and 8 hex digits over everything else."""

    format: int
    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    version: str = ""
    labels: list[str] = Field(min_length=2)
    encoder: EncoderRecord | None = None
    text: TextRecord = TextRecord()
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    scaling: ScalingRecord | None = None
    threshold: float = Field(0.0, ge=0, le=2)  # over 1: nothing is routed
    novelty_limit: float | None = Field(None, ge=0, le=1)
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    data: DataRecord = DataRecord()
    seed: int = 0
    parent: str | None = None
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    created_by: str = ""
    self_test: list[SelfTest] = Field(default_factory=list)
    files: dict[str, FileRecord] = Field(default_factory=dict)

    def canonical(self) -> bytes:
        """The one way that this manifest is written."""
        content = self.model_dump(mode="json")
        for name in LATER_FIELDS:
            if content[name] is None:
                del content[name]
        return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def content_version(self) -> str:
        unversioned = self.model_copy(update={"version": ""})
        return f"{self.name}-{hashlib.sha256(unversioned.canonical()).hexdigest()[:8]}"


def read_artefact(folder: Path) -> tuple[Manifest, Tensors]:
    """The manifest and the head's tensors of an artefact whose every file was checked.

    Raises:
        ArtefactError: a changed byte, a missing, extra, oversized or linked file, an unknown format, NaN weights.
    """
    if not folder.is_dir():
        raise ArtefactError(f"router {folder} is no folder")
    manifest = _read_manifest(folder)
    _check_listing(folder, manifest)
    for name, record in manifest.files.items():
        _check_file(folder, name, record)
    return manifest, _read_tensors(folder, manifest)


def write_artefact(folder: Path, manifest: Manifest, tensors: Tensors, extra: Mapping[str, bytes]) -> Manifest:
    """Write an artefact whole or not at all, over an older artefact where there is one; the manifest as written.

    Raises:
        ArtefactError: `folder` exists and is no router, or the disk refuses.
    """
    # safetensors writes memory as it lies, whatever the order of the axes.
    ordered = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    contents = {HEAD: safetensors.numpy.save(ordered), **extra}
    files = {name: FileRecord(sha256=_sha256(data), size=len(data)) for name, data in contents.items()}
    whole = manifest.model_copy(update={"files": files, "version": ""})
    whole = whole.model_copy(update={"version": whole.content_version()})
    write_files(folder, {**contents, MANIFEST: whole.canonical()})
    return whole


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write an artefact's files as they are, whole or not at all.

    Raises:
        ArtefactError: as `write_artefact`.
    """
    check_target(folder)
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        partial.mkdir()
        for name, data in contents.items():
            _write_durably(partial / name, data)
        _sync_folder(partial)
        _swap_in(partial, folder)
    except OSError as error:
        raise ArtefactError(f"router {folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Refuse to write where something else than a router stands.

    Raises:
        ArtefactError: it is a file, or a folder with other things in it.
    """
    if folder.is_dir() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ArtefactError(f"{folder} exists and is no router; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{folder} is a file; choose a folder")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if path.is_symlink():
        raise ArtefactError(f"router {folder}: {MANIFEST} is a symbolic link, which is not followed")
    if not path.is_file():
        raise ArtefactError(f"router {folder}: {MANIFEST} is missing")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtefactError(f"router {folder}: {MANIFEST} is over {MAX_MANIFEST_BYTES} bytes")
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"router {folder}: {MANIFEST} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"router {folder}: {MANIFEST} is not a JSON object")
    if content.get("format") != FORMAT_VERSION:
        version = content.get("format")
        raise ArtefactError(
            f"router {folder}: format version {version!r} is not known; this collegium reads {FORMAT_VERSION}"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtefactError(f"router {folder}: {MANIFEST} field {where}: {first['msg']}") from error
    try:
        as_written = manifest.canonical() == data and manifest.content_version() == manifest.version
    except ValueError:  # a number that is infinite, as 1e400: none is ever written
        as_written = False
    if not as_written:
        raise ArtefactError(f"router {folder}: {MANIFEST} was changed after it was written")
    return manifest


def _check_listing(folder: Path, manifest: Manifest) -> None:
    found = {MANIFEST}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise ArtefactError(f"router {folder}: {name} is a symbolic link, which is not followed")
        if stat.S_ISDIR(mode):
            continue
        if path.suffix.lower() in CODE_SUFFIXES:
            raise ArtefactError(f"router {folder}: {name} is of a type that can hold code; only safetensors are read")
        if not stat.S_ISREG(mode) or (name not in manifest.files and name != MANIFEST):
            raise ArtefactError(f"router {folder}: {name} is not listed in {MANIFEST}")
        found.add(name)
    for name in manifest.files:
        if Path(name).suffix.lower() not in ALLOWED_SUFFIXES:
            raise ArtefactError(f"router {folder}: {name} is of a type that is not read")
        if name not in found:
            raise ArtefactError(f"router {folder}: {name} is missing")
    if HEAD not in manifest.files:
        raise ArtefactError(f"router {folder}: {HEAD} is missing")


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    size = (folder / name).stat().st_size
    if size != record.size:
        raise ArtefactError(f"router {folder}: {name} has {size} bytes, {record.size} were written")
    with (folder / name).open("rb") as handle:
        if hashlib.file_digest(handle, "sha256").hexdigest() != record.sha256:
            raise ArtefactError(f"router {folder}: {name} was changed after it was written (SHA-256 differs)")


def _read_tensors(folder: Path, manifest: Manifest) -> Tensors:
    data = (folder / HEAD).read_bytes()
    if _sha256(data) != manifest.files[HEAD].sha256:
        raise ArtefactError(f"router {folder}: {HEAD} changed while it was read")
    return tensors_of(data, f"router {folder}: {HEAD}")


def tensors_of(data: bytes, where: str) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        ArtefactError: it is none, or holds NaN or infinite weights.
    """
    try:
        tensors: Tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ArtefactError(f"{where} is no safetensors file ({error})") from error
    for name, values in tensors.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ArtefactError(f"{where}: tensor {name} holds NaN or infinite weights")
    return tensors


def _swap_in(partial: Path, folder: Path) -> None:
    aside = folder.parent / f".{folder.name}.old-{os.getpid()}"
    if folder.exists():
        folder.rename(aside)
    try:
        partial.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left, and put back a router that one had moved aside."""
    for left in folder.parent.glob(f".{folder.name}.*-*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            if ".old-" in left.name and not folder.exists():
                left.rename(folder)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
