"""transformers' Trainer on packs of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from .specialize_data import Corpus
from .specialize_model import Recipe
from .specialize_progress import Divergence, Progress
from .specialize_tokens import Encoded, Sample, branch_logprobs, choice_loss, collate

CHOICE_WEIGHT = 3.0  # a question's choice counts as much as so many tokens


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The corpus as packs of tokens, and what was lost on the way."""

    corpus: Corpus
    train: list[tuple[Sample, ...]]
    heldout: list[tuple[Sample, ...]]
    encoded: Encoded

    @property
    def tokens(self) -> int:
        return sum(map(len, self.encoded.samples))


class PackTrainer(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    """The Trainer on packs: responses' tokens and questions' choices as loss, held-out loss a token."""

    control: TrainerControl
    first_loss: float = math.nan
    last_loss: float = math.nan
    speed: float = math.nan
    trained_tokens: int = 0  # since this process began: for the speed alone

    def __init__(
        self, model: PeftModel, args: TrainingArguments, data: TrainingData, callbacks: list[TrainerCallback]
    ) -> None:
        super().__init__(
            model=model, args=args, train_dataset=data.train, eval_dataset=data.heldout, data_collator=collate,
            callbacks=callbacks,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
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
            self.trained_tokens += inputs["input_ids"].numel()
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

    def _heldout_loss(self) -> float:
        self.model.eval()
        nats, tokens = 0.0, 0
        for inputs in self.get_eval_dataloader():
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
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
        self.speed = self.trained_tokens / seconds
        self.last_loss = self._heldout_loss()
        return {
            "heldout": {
                "loss_before": self.first_loss, "loss_after": self.last_loss,
                "perplexity_before": math.exp(self.first_loss), "perplexity_after": math.exp(self.last_loss),
            },
            "steps": self.state.global_step, "tokens": self.state.num_input_tokens_seen, "seconds": round(seconds, 1),
            "tokens_per_second": round(self.speed, 1), "device": str(self.args.device),
            "history": [{key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
                        for entry in self.state.log_history if "loss" in entry or "eval_loss" in entry],
        }  # fmt: skip


def trainer_of(model: PeftModel, recipe: Recipe, data: TrainingData, work: Path, quiet: bool) -> PackTrainer:
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
        include_num_input_tokens_seen="all",
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a pack is one row and cannot be split among devices
    callbacks = [Divergence(), EarlyStoppingCallback(recipe.patience), Progress(quiet)]
    return PackTrainer(model, arguments, data, callbacks)
