"""The recipe of a specialist, its seed model, and the adapter put on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..experts.adapter import AdapterError, read_adapter
from ..experts.weights import WeightsError, locate
from .specialize_data import SpecializeError


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained and how long.

    `layers` takes the last so many layers (0: all): what lies under them needs no backward pass. `tokens_budget` counts
    every token of training, prompts included; `pack_tokens` a forward pass; `batch_packs` packs an optimiser step.
    `apart` puts questions and responses into packs of their own, so that long responses do not drown the questions.
    """

    model: str
    domain: str
    revision: str | None = None
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    layers: int = 0
    max_length: int = 512
    pack_tokens: int = 512
    batch_packs: int = 2
    tokens_budget: int = 300_000
    epochs: float = 3.0
    lr: float = 1e-3
    heldout_rows: int = 100
    evaluations: int = 4
    patience: int = 2
    seed: int = 0
    apart: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "max_length", "pack_tokens", "batch_packs", "tokens_budget", "heldout_rows"):
            if getattr(self, name) < 1:
                raise SpecializeError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not (0 < self.lr < 1 and self.epochs > 0 and self.targets and self.evaluations > 0 and self.patience > 0):
            raise SpecializeError("lr must lie in (0, 1); epochs, evaluations, patience over 0; targets name a module")
        if self.max_length > self.pack_tokens:
            raise SpecializeError(f"max_length {self.max_length} is over pack_tokens {self.pack_tokens}")


def load_base(model: str, revision: str | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, Path]:
    """(tokenizer, model, folder): float32 on a CPU, bfloat16 where a GPU has it.

    Raises:
        SpecializeError: there is no such model, or it cannot be loaded.
    """
    try:
        place = locate(model, revision)
        if not Path(place).is_dir():
            from huggingface_hub import snapshot_download

            place = snapshot_download(place, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(place)
        dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
        loaded = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, attn_implementation="sdpa")
    except (WeightsError, OSError, ValueError) as error:
        raise SpecializeError(f"the seed model {model} cannot be loaded: {error}") from error
    return tokenizer, loaded, Path(place)


def adapt(model: PreTrainedModel, recipe: Recipe, start: Path | None = None) -> PeftModel:
    """A new adapter on `model`, or the one in `start` to be trained on.

    Raises:
        SpecializeError: the settings do not fit the model, or `start` is no adapter of these settings.
    """
    depth = model.config.num_hidden_layers
    if recipe.layers > depth:
        raise SpecializeError(f"layers is {recipe.layers}, {recipe.model} has {depth}")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(recipe.targets),
        layers_to_transform=list(range(depth - recipe.layers, depth)) if recipe.layers else None,
        base_model_name_or_path=recipe.model, revision=recipe.revision,
    )  # fmt: skip
    model.name_or_path = recipe.model  # what the adapter's config will name, not this machine's path
    if start is not None:
        return _go_on_from(start, model, config)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise SpecializeError(f"targets {', '.join(recipe.targets)} do not fit {recipe.model}: {error}") from error


def _go_on_from(start: Path, model: PreTrainedModel, wanted: LoraConfig) -> PeftModel:
    try:
        read_adapter(start)  # PEFT would also unpickle a .bin file where there is no other
        adapted = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    except (AdapterError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SpecializeError(f"the adapter in {start} cannot be loaded: {error}") from error
    found = adapted.peft_config["default"]
    for name in ("r", "lora_alpha", "target_modules", "layers_to_transform", "base_model_name_or_path"):
        ours, theirs = (_plain(getattr(config, name)) for config in (wanted, found))
        if ours != theirs:
            raise SpecializeError(f"the adapter in {start} has {name} {theirs}, the recipe {ours}")
    return adapted


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, list | set) else value


def weights_checksum(folder: Path) -> str:
    """SHA-256 over the folder's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
