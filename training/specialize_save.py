"""The folder of a specialist: adapter, card, metrics and provenance, written beside and renamed into place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

ADAPTER = "adapter_model.safetensors"


def save_result(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, work: Path, folder: Path, domain: str, engine: str,
    metrics: Mapping[str, object], provenance: Mapping[str, object], merge: bool,
) -> None:  # fmt: skip
    """Write everything to `work`/result and rename it to `folder`: there whole, or not at all.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    fresh = work / "result"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    config = model.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(fresh))
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    (fresh / ADAPTER).write_bytes(b"")  # made here, so that a full disk is an OSError and no foreign one
    save_file(tensors, fresh / ADAPTER, metadata={"format": "pt"})
    (fresh / ADAPTER).chmod(0o644)  # save_file lets only its owner read
    write_json(fresh / "metrics.json", metrics)
    write_json(fresh / "provenance.json", provenance)
    (fresh / "card.yaml").write_text(
        yaml.safe_dump(card(folder.name, domain, engine, fresh, config.r), sort_keys=False)
    )
    if merge:
        merged = model.merge_and_unload()
        merged.save_pretrained(fresh / "merged")
        tokenizer.save_pretrained(fresh / "merged")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(folder)


def card(name: str, domain: str, engine: str, folder: Path, rank: int) -> dict[str, object]:
    """The card of an adapter on the running engine `engine`. It is admitted nowhere until an evaluation says so."""
    return {
        "name": name,
        "description": f"LoRA adapter for {domain}, made by collegium specialize.",
        "backend": {
            "kind": "adapter",
            "engine": engine,
            "adapter": ".",
            "rank": rank,
            "sha256": hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest(),
        },
        "domains": {domain: 0.5},
    }


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
