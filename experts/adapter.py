"""LoRA adapters as files: where they lie, what is in them, whether they fit their base. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .backends import AdapterBackend, AdapterSlots
from .card import Card, CardError
from .weights import hub_snapshot

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PACKAGE = "package:"
_SHIPPED = Path(__file__).parent / "adapters"
_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"^(?P<module>.+)\.lora_(?P<half>[AB])\.weight$")
# What changes the sum that an engine computes, and what vLLM leaves out or refuses.
_UNSUPPORTED = (
    "modules_to_save",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
)

Shape = tuple[int, ...]


class AdapterError(CardError):
    """An adapter that cannot be used; the message names the file, the setting or the tensor."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, read and right in themselves. `pairs` maps a base module to the shapes of its A and B."""

    folder: Path
    config: Mapping[str, object]
    rank: int
    pairs: Mapping[str, tuple[Shape, Shape]]
    sha256: str

    def digest(self, base: str) -> str:
        """Changes with any change of what an engine of the model `base` would load."""
        told = json.dumps([self.sha256, dict(self.config), base], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:10]


def shipped_adapters() -> list[str]:
    """Names of the adapters that ship with the package."""
    return sorted(file.parent.name for file in _SHIPPED.glob(f"*/{TENSORS}"))


def locate_adapter(backend: AdapterBackend) -> Path:
    """The adapter's folder on this machine; one on the hub is downloaded (its two files, no more).

    Raises:
        AdapterError: it is not there.
    """
    name = backend.adapter
    if name.startswith(PACKAGE):
        return _shipped(name.removeprefix(PACKAGE))
    folder = Path(name).expanduser()
    if folder.is_absolute():
        return folder
    if not _HUB_ID.match(name):
        raise AdapterError(
            f"adapter {name!r} is no absolute path, no {PACKAGE}<name> and no hub id (organisation/name)"
        )
    return hub_snapshot(name, backend.revision) or _downloaded(name, backend.revision)


def resolved(card: Card, folder: Path) -> Card:
    """The card as read from a file in `folder`: an adapter's relative path becomes absolute.

    Raises:
        AdapterError: the path leads out of `folder`.
    """
    backend = card.backend
    if not isinstance(backend, AdapterBackend) or not _is_relative(backend.adapter):
        return card
    home = folder.expanduser().resolve()
    path = (home / backend.adapter).resolve()
    if not path.is_relative_to(home):
        raise AdapterError(f"adapter {backend.adapter!r} leads out of the card's folder {home}; give an absolute path")
    return card.model_copy(update={"backend": backend.model_copy(update={"adapter": str(path)})})


def read_adapter(folder: Path, backend: AdapterBackend | None = None) -> Adapter:
    """Read the settings and the tensors' shapes, and compare with what the card says.

    Raises:
        AdapterError: files are missing or corrupt, something in them is not supported, or card and files differ.
    """
    config = _config(folder / CONFIG)
    rank = config.get("r")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"{folder / CONFIG} is no LoRA adapter: peft_type must be LORA and r a positive number")
    unsupported = [name for name in _UNSUPPORTED if config.get(name)]
    if unsupported or config.get("bias", "none") != "none":
        raise AdapterError(f"{folder / CONFIG} sets {', '.join(unsupported) or 'bias'}, which engines do not support")
    adapter = Adapter(folder, config, rank, _pairs(folder / TENSORS, rank), _sha256(folder / TENSORS))
    if backend is not None and backend.rank not in (None, rank):
        raise AdapterError(f"the card says rank {backend.rank}, {folder / CONFIG} says {rank}")
    if backend is not None and backend.sha256 not in (None, adapter.sha256):
        raise AdapterError(f"{folder / TENSORS} has another checksum than the card's sha256; it was changed or damaged")
    return adapter


def check_fit(adapter: Adapter, base: Path | None, slots: AdapterSlots) -> None:
    """Compare the adapter with the engine's room for it and, where `base` is known, the base model's own tensors.

    Raises:
        AdapterError: too high a rank, a module that the engine does not adapt or the base does not have, another shape,
            or a tensor that is missing.
    """
    if adapter.rank > slots.max_rank:
        raise AdapterError(f"the adapter has rank {adapter.rank}, its engine takes up to {slots.max_rank}")
    for module in adapter.pairs:
        if module.rpartition(".")[2] not in slots.modules:
            listed = ", ".join(slots.modules)
            raise AdapterError(f"the engine has no room for the tensor {_tensor(module, 'A')}; it adapts {listed}")
    modules = base_modules(base) if base is not None else {}
    if modules:  # else the engine itself refuses what does not fit
        _compare(adapter, modules)


def _compare(adapter: Adapter, modules: Mapping[str, set[Shape]]) -> None:
    for module, (a, b) in adapter.pairs.items():
        shapes = modules.get(_tail(module))
        if shapes is None:
            raise AdapterError(f"the base has no module for the tensor {_tensor(module, 'A')}; it is of another base")
        if any(len(shape) == 2 for shape in shapes) and (b[0], a[1]) not in shapes:
            half, found, place = ("A", a[1], 1) if all(a[1] != shape[1] for shape in shapes) else ("B", b[0], 0)
            wanted = " or ".join(str(shape[place]) for shape in sorted(shapes))
            raise AdapterError(f"the tensor {_tensor(module, half)} is {found} wide, the base's module {wanted}")
    present = {_tail(module): module for module in adapter.pairs}
    for missing in sorted(set(_targeted(adapter.config, modules)) - set(present)):
        front = next(module.removesuffix(tail) for tail, module in present.items())
        raise AdapterError(f"the tensor {_tensor(front + missing, 'A')} is missing; {CONFIG} names it as a target")


def base_modules(base: Path) -> dict[str, set[Shape]]:
    """Shapes (out, in) of a model's weight matrices by module, named from the layer on; quantised ones have none."""
    found: dict[str, set[Shape]] = {}
    for file in sorted(base.glob("*.safetensors")):
        for name, shape in _shapes(file).items():
            module, _, kind = name.rpartition(".")
            shapes = found.setdefault(_tail(module), set())
            if kind == "weight" and len(shape) == 2:
                shapes.add(shape)
    return found


def adapter_bytes(backend: AdapterBackend) -> int:
    """Size of the tensors' file; 0 where it is not on this machine yet."""
    name = backend.adapter
    if name.startswith(PACKAGE):
        folder: Path | None = _SHIPPED / name.removeprefix(PACKAGE)
    else:
        folder = hub_snapshot(name, backend.revision) if _HUB_ID.match(name) else Path(name).expanduser()
    file = folder / TENSORS if folder is not None else None
    return file.stat().st_size if file is not None and file.is_file() else 0


def _is_relative(name: str) -> bool:
    return name.startswith(".") or not (name.startswith((PACKAGE, "/", "~")) or _HUB_ID.match(name))


def _shipped(name: str) -> Path:
    if not _NAME.match(name) or not (_SHIPPED / name / TENSORS).is_file():
        known = ", ".join(PACKAGE + known for known in shipped_adapters()) or "none"
        raise AdapterError(f"there is no adapter {PACKAGE}{name}; shipped: {known}")
    return _SHIPPED / name


def _downloaded(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise AdapterError(f"adapter {name!r} is on the hub; run: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, TENSORS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AdapterError(f"adapter {name!r} cannot be had from the hub: {reason}") from error


def _config(file: Path) -> dict[str, object]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise AdapterError(f"{file} is not JSON") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{file} holds no JSON object")
    return config


def _shapes(file: Path) -> dict[str, Shape]:
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except FileNotFoundError as error:
        raise AdapterError(f"{file} is missing") from error
    except OSError as error:
        raise AdapterError(f"{file} cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise AdapterError(f"{file} is no whole safetensors file: {error}") from error


def _pairs(file: Path, rank: int) -> dict[str, tuple[Shape, Shape]]:
    halves: dict[str, dict[str, Shape]] = {}
    for name, shape in _shapes(file).items():
        found = _TENSOR.match(name.removeprefix(_PREFIX))
        if found is None or not name.startswith(_PREFIX) or len(shape) != 2:
            raise AdapterError(f"the tensor {name} is no half of a LoRA pair ({_PREFIX}<module>.lora_A.weight)")
        inner = shape[0] if found["half"] == "A" else shape[1]
        if inner != rank:
            raise AdapterError(f"the tensor {name} has rank {inner}, {CONFIG} says {rank}")
        halves.setdefault(found["module"], {})[found["half"]] = shape
    if not halves:
        raise AdapterError(f"{file} holds no tensors")
    return {module: _pair(module, found) for module, found in halves.items()}


def _pair(module: str, halves: Mapping[str, Shape]) -> tuple[Shape, Shape]:
    for half in "AB":
        if half not in halves:
            raise AdapterError(f"the tensor {_tensor(module, half)} is missing")
    return halves["A"], halves["B"]


def _targeted(config: Mapping[str, object], modules: Mapping[str, set[Shape]]) -> Iterator[str]:
    """Modules of the base that the adapter's settings name, where these are plain enough to tell."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not isinstance(targets, list) or config.get("exclude_modules") or config.get("layers_pattern"):
        return
    numbers = [layers] if isinstance(layers, int) else layers
    for module in modules:
        named = any(module == target or module.endswith(f".{target}") for target in targets)
        if named and (not isinstance(numbers, Sequence) or _layer(module) in numbers):
            yield module


def _layer(module: str) -> int | None:
    found = re.search(r"\.(\d+)\.", module)
    return int(found[1]) if found else None


def _tail(module: str) -> str:
    """The name from the layer on: checkpoints and loaded models differ in what they put in front of it."""
    found = re.search(r"\b(?:layers|h|blocks)\.\d+\..+$", module)
    return found[0] if found else module


def _tensor(module: str, half: str) -> str:
    return f"{_PREFIX}{module}.lora_{half}.weight"


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
