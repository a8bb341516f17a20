"""Seed model + rows of a domain -> LoRA adapter folder. transformers' Trainer and peft do the work."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..experts.weights import WeightsError, locate
from .specialize_data import BadRow, Corpus, Row, SpecializeError, read_corpus, split_rows
from .specialize_progress import Divergence, Progress
from .specialize_save import save_result, version_of
from .specialize_tokens import Encoded, Format, Sample, branch_logprobs, choice_loss, collate, encode, pack

CHOICE_WEIGHT = 3.0  # a question's choice counts as much as so many tokens
_WORK = ".unfinished"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained and how long.

    `layers` takes the last so many layers (0: all): what lies under them needs no backward pass. `tokens_budget` counts
    every token of training, prompts included; `pack_tokens` a forward pass; `batch_packs` packs an optimiser step.
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

    def __post_init__(self) -> None:
        for name in ("rank", "max_length", "pack_tokens", "batch_packs", "tokens_budget", "heldout_rows"):
            if getattr(self, name) < 1:
                raise SpecializeError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not (0 < self.lr < 1 and self.epochs > 0 and self.targets and self.evaluations > 0 and self.patience > 0):
            raise SpecializeError("lr must lie in (0, 1); epochs, evaluations, patience over 0; targets name a module")
        if self.max_length > self.pack_tokens:
            raise SpecializeError(f"max_length {self.max_length} is over pack_tokens {self.pack_tokens}")


@dataclass(frozen=True, slots=True)
class Specialist:
    """What came out. Losses are nats a response token, held out, before and after."""

    folder: Path
    loss_before: float
    loss_after: float
    tokens: int
    tokens_per_second: float
    bad_rows: tuple[BadRow, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Data:
    """The corpus as packs of tokens, and what was lost on the way."""

    corpus: Corpus
    train: list[tuple[Sample, ...]]
    heldout: list[tuple[Sample, ...]]
    encoded: Encoded

    @property
    def tokens(self) -> int:
        return sum(map(len, self.encoded.samples))


def specialize(
    recipe: Recipe, data: Path, out: Path, *, heldout: Path | None = None, engine: str = "general",
    resume: bool = False, merge: bool = False, quiet: bool = False,
) -> Specialist:  # fmt: skip
    """Train an adapter of `recipe.model` on the rows of `data` and write it to the new folder `out`.

    While it runs, checkpoints lie in `<out>.unfinished`; `resume` goes on from the last whole one. `heldout` is a file
    of rows to measure on; without it some rows of `data` are held out. `merge` adds the full model, in `merged/`.

    Raises:
        SpecializeError: unusable data, model or settings, or a run that diverged; nothing is left in `out`.
    """
    folder = _free_folder(out)
    corpus = read_corpus(data)
    work = _work_folder(out, recipe, corpus, resume)
    tokenizer, model, base = load_base(recipe.model, recipe.revision)
    prepared = _prepare(recipe, corpus, heldout, Format(tokenizer))
    set_seed(recipe.seed)
    adapted = _adapt(model, recipe)
    trainer = _trainer(adapted, recipe, prepared, work, quiet)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        tokens = trainer.seen_tokens
        metrics = trainer.closing_metrics(time.monotonic() - started)
        metrics["data"] = {
            "rows": len(corpus.rows), "bad_rows": len(corpus.bad), "duplicates": corpus.duplicates,
            "cut": prepared.encoded.cut, "dropped": prepared.encoded.dropped, "tokens": prepared.tokens,
        }  # fmt: skip
        provenance = _provenance(recipe, corpus, base)
        save_result(adapted, tokenizer, work, folder, recipe.domain, engine, metrics, provenance, merge)
    except OSError as error:
        raise SpecializeError(f"{error}; the checkpoints in {work} are kept, go on with --resume") from error
    shutil.rmtree(work)
    return Specialist(
        folder, trainer.first_loss, trainer.last_loss, tokens, float(str(metrics["tokens_per_second"])), corpus.bad
    )


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


class PackTrainer(Trainer):
    """The Trainer on packs: responses' tokens and questions' choices as loss, held-out loss a token."""

    first_loss: float = math.nan
    last_loss: float = math.nan
    seen_tokens: int = 0

    def __init__(self, model: PeftModel, args: TrainingArguments, data: _Data, callbacks: list[TrainerCallback]) -> None:
        super().__init__(
            model=model, args=args, train_dataset=data.train, eval_dataset=data.heldout, data_collator=collate,
            callbacks=callbacks,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts labels over accumulated packs
        self.loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:  # fmt: skip
        """Nats a counted token: responses, and CHOICE_WEIGHT tokens' worth for each question."""
        logprobs = branch_logprobs(model, inputs)
        loss = -logprobs[inputs["branch_right"]].sum() + CHOICE_WEIGHT * choice_loss(logprobs, inputs)
        if model.training:
            self.seen_tokens += inputs["input_ids"].numel()
        return loss / (num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] >= 0).sum())

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out nats a token of response, over all tokens alike."""
        self.last_loss = self._heldout_loss()
        if math.isnan(self.first_loss):
            self.first_loss = self.last_loss
        metrics = {f"{metric_key_prefix}_loss": self.last_loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _heldout_loss(self) -> float:
        self.model.eval()
        nats, tokens = 0.0, 0
        for inputs in self.get_eval_dataloader():
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                nats -= float(branch_logprobs(self.model, inputs)[inputs["branch_right"]].sum())
            tokens += int((inputs["labels"] >= 0).sum())
        return nats / tokens

    def closing_metrics(self, seconds: float) -> dict[str, object]:
        """Held-out loss of the adapter as it will be saved (rounded to bfloat16), and how the run went."""
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)
        history = [entry for entry in self.state.log_history if "eval_loss" in entry]
        self.first_loss = float(history[0]["eval_loss"])
        self.last_loss = self._heldout_loss()
        return {
            "heldout": {
                "loss_before": self.first_loss, "loss_after": self.last_loss,
                "perplexity_before": math.exp(self.first_loss), "perplexity_after": math.exp(self.last_loss),
            },
            "steps": self.state.global_step, "tokens": self.seen_tokens, "seconds": round(seconds, 1),
            "tokens_per_second": round(self.seen_tokens / seconds, 1), "device": str(self.args.device),
            "history": [{key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
                        for entry in self.state.log_history if "loss" in entry or "eval_loss" in entry],
        }  # fmt: skip


def _prepare(recipe: Recipe, corpus: Corpus, heldout: Path | None, form: Format) -> _Data:
    rows: Sequence[Row]
    rows, held = (
        (corpus.rows, read_corpus(heldout).rows[: recipe.heldout_rows])
        if heldout
        else split_rows(corpus.rows, min(recipe.heldout_rows, len(corpus.rows) // 5), recipe.seed)
    )
    train, measured = encode(rows, form, recipe.max_length), encode(held, form, recipe.max_length)
    if not train.samples or not measured.samples:
        raise SpecializeError(
            f"{len(train.samples)} rows to train on and {len(measured.samples)} held out fit into "
            f"{recipe.max_length} tokens; both need at least one (5 rows or more, or a longer --max-length)"
        )
    packs = pack(train.samples, recipe.pack_tokens, recipe.seed)
    return _Data(corpus, packs, pack(measured.samples, recipe.pack_tokens), train)


def _adapt(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    depth = model.config.num_hidden_layers
    if recipe.layers > depth:
        raise SpecializeError(f"layers is {recipe.layers}, {recipe.model} has {depth}")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(recipe.targets),
        layers_to_transform=list(range(depth - recipe.layers, depth)) if recipe.layers else None,
        base_model_name_or_path=recipe.model, revision=recipe.revision,
    )  # fmt: skip
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise SpecializeError(f"targets {', '.join(recipe.targets)} do not fit {recipe.model}: {error}") from error
    adapted.peft_config["default"].base_model_name_or_path = recipe.model  # not this machine's path
    return adapted


def _trainer(model: PeftModel, recipe: Recipe, data: _Data, work: Path, quiet: bool) -> PackTrainer:
    mean_pack = data.tokens / len(data.train)
    per_epoch = math.ceil(len(data.train) / recipe.batch_packs)
    steps = max(1, min(round(recipe.epochs * per_epoch), int(recipe.tokens_budget / (mean_pack * recipe.batch_packs))))
    every = max(1, steps // recipe.evaluations)
    steps = max(every, steps // every * every)  # the last step is measured and saved
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"), max_steps=steps, per_device_train_batch_size=1,
        per_device_eval_batch_size=1, gradient_accumulation_steps=recipe.batch_packs, learning_rate=recipe.lr,
        lr_scheduler_type="cosine", warmup_steps=max(1, steps // 20), max_grad_norm=1.0, bf16=on_gpu and
        torch.cuda.is_bf16_supported(), use_cpu=not on_gpu, eval_strategy="steps", eval_steps=every,
        eval_on_start=True, save_strategy="steps", save_steps=every, save_total_limit=2, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False, logging_steps=max(1, every // 5),
        logging_nan_inf_filter=False, remove_unused_columns=False, label_names=["labels"], report_to=[],
        disable_tqdm=True, log_level="error", seed=recipe.seed, dataloader_pin_memory=on_gpu,
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a pack is one row and cannot be split among devices
    callbacks = [Divergence(), EarlyStoppingCallback(recipe.patience), Progress(quiet)]
    return PackTrainer(model, arguments, data, callbacks)


def _free_folder(out: Path) -> Path:
    if out.exists():
        raise SpecializeError(f"{out} exists already; choose another folder, or remove it")
    return out


def _work_folder(out: Path, recipe: Recipe, corpus: Corpus, resume: bool) -> Path:
    """`<out>.unfinished`, made, or found to belong to the same recipe and data."""
    work = out.with_name(out.name + _WORK)
    plan = json.dumps({"recipe": asdict(recipe), "data": corpus.sha256}, sort_keys=True)
    file = work / "plan.json"
    if work.exists() and not resume:
        raise SpecializeError(f"an unfinished run is in {work}; go on with --resume, or remove the folder")
    if file.is_file() and file.read_text() != plan:
        raise SpecializeError(f"the run in {work} has other settings or data; repeat them, or remove the folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(plan)
    except OSError as error:
        raise SpecializeError(f"{work} cannot be written: {error.strerror}") from error
    return work


def _last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint. The trainer's state is written last: a folder without it was cut off, and goes."""
    found = sorted((work / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for torn in [path for path in found if not (path / "trainer_state.json").is_file()]:
        shutil.rmtree(torn)
        found.remove(torn)
    return str(found[-1]) if found else None


def _provenance(recipe: Recipe, corpus: Corpus, base: Path) -> dict[str, object]:
    return {
        "recipe": asdict(recipe),
        "data": {"sha256": corpus.sha256, "sources": corpus.sources()},
        "base": {"model": recipe.model, "revision": recipe.revision, "sha256": weights_checksum(base)},
        "versions": {name: version_of(name) for name in ("collegium", "torch", "transformers", "peft")},
    }


def weights_checksum(folder: Path) -> str:
    """SHA-256 over the folder's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
