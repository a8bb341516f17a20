"""Fine-tune a sentence encoder end to end on labelled prompts, with transformers' Trainer.

The head starts as the logistic regression of the frozen encoder, so that tuning begins from vectors that are not yet
bent (LP-FT, Kumar et al. 2022). Word embeddings and the lowest layers stay as published: words that no training prompt
has keep their meaning. Prompts are drawn so that neither a large label nor a large source drowns the others.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from ..router.calibration import Floats
from ..router.finetuned import FinetunedClassifier
from .augment import augmented, mixed
from .data import DataError
from .features import Progress, quiet
from .sampling import draw
from .tuning import Tuning

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import TrainerControl, TrainerState

BUCKET = 50  # batches whose prompts are sorted by length together


class DivergedError(DataError):
    """The loss is not a number."""


class _Prompts(torch.utils.data.Dataset[dict[str, Tensor]]):  # type: ignore[misc]  # torch is not type-checked
    """Batch number -> token ids and soft labels; a batch is the same in whatever process draws it."""

    def __init__(
        self, texts: Sequence[str], targets: Floats, order: NDArray[np.intp], model: SentenceTransformer, tuning: Tuning
    ) -> None:
        self._texts, self._targets, self._order, self._model, self._tuning = texts, targets, order, model, tuning

    def __len__(self) -> int:
        return len(self._order) // self._tuning.batch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self._tuning.seed, number])
        size = self._tuning.batch
        rows = self._order[number * size : (number + 1) * size]
        texts = [augmented(self._texts[row], rng) for row in rows]
        targets = self._targets[rows].copy()
        for place in np.flatnonzero(rng.random(size) < self._tuning.mixtures):
            other = int(rng.integers(len(self._texts)))
            texts[place] = mixed(self._texts[rows[place]], self._texts[other], rng)
            targets[place] = (self._targets[rows[place]] + self._targets[other]) / 2
        return {**_tokens(self._model, texts), "labels": torch.from_numpy(targets.astype(np.float32))}


class _Tuned(nn.Module):  # type: ignore[misc]  # as above
    """Encoder and linear head, as one module."""

    def __init__(self, encoder: SentenceTransformer, weight: Floats, bias: Floats) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def forward(self, labels: Tensor | None = None, **tokens: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.encoder({**tokens, "modality": "text"})["sentence_embedding"])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked
    """Shows how far the run is, and stops one whose loss is not a number."""

    def __init__(self, progress: Progress, batch: int) -> None:
        self._progress, self._batch = progress, batch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._progress(state.global_step * self._batch, state.max_steps * self._batch)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        for name in ("loss", "eval_loss"):
            if logs and not math.isfinite(logs.get(name, 0.0)):
                raise DivergedError(f"the {name} is {logs[name]} at step {state.global_step}: lower the learning rate")


class _Trainer(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    """Batches come ready made and in order; the head learns faster than the encoder."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, tuning: Tuning, **settings: object) -> None:
        self._tuning = tuning
        super().__init__(**settings)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            head = {id(parameter) for parameter in self.model.head.parameters()}
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": [p for p in trained if id(p) not in head], "lr": self._tuning.lr},
                    {"params": [p for p in trained if id(p) in head], "lr": self._tuning.head_lr, "weight_decay": 0.0},
                ],
                weight_decay=0.01,
            )
        return self.optimizer

    def _get_train_sampler(self, dataset: object = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def finetune(
    classifier: FinetunedClassifier,
    texts: Sequence[str],
    targets: Floats,
    sources: Sequence[str],
    held: NDArray[np.intp],
    tuning: Tuning,
    work: Path,
    progress: Progress = quiet,
) -> dict[str, float]:
    """Tune the encoder of a classifier whose head was fitted, on all rows but `held`; the best held-out loss is kept.

    `targets` are soft labels, shape (n, k). Checkpoints lie in `work`: an interrupted run goes on from the last one.

    Raises:
        DivergedError: the loss became NaN or infinite; nothing of the run is kept.
    """
    set_seed(tuning.seed)
    model = _Tuned(classifier.base.with_weights({}).module, *classifier.head)
    model.encoder.max_seq_length = tuning.tokens
    _freeze(model.encoder, tuning.frozen_layers)
    rows = np.setdiff1d(np.arange(len(texts)), held)
    order = rows[draw_order([texts[row] for row in rows], targets[rows], [sources[row] for row in rows], tuning)]
    train = _Prompts(texts, targets, order, model.encoder, tuning)
    measured = _Measured([texts[row] for row in held], targets[held], model.encoder, tuning)
    every = max(1, len(train) // tuning.evaluations)
    on_gpu = torch.cuda.is_available()
    trainer = _Trainer(
        tuning,
        model=model,
        args=TrainingArguments(
            output_dir=str(work), max_steps=len(train), per_device_train_batch_size=1, per_device_eval_batch_size=1,
            lr_scheduler_type="cosine", warmup_steps=max(1, len(train) // 20), max_grad_norm=1.0,
            bf16=on_gpu and torch.cuda.is_bf16_supported(), use_cpu=not on_gpu, eval_strategy="steps",
            eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
            logging_steps=max(1, every // 4), logging_nan_inf_filter=False, remove_unused_columns=False,
            label_names=["labels"], report_to=[], disable_tqdm=True, log_level="error", seed=tuning.seed,
            dataloader_pin_memory=on_gpu, prediction_loss_only=True,
        ),
        train_dataset=train, eval_dataset=measured, data_collator=lambda batches: batches[0],
        callbacks=[_Watch(progress, tuning.batch), EarlyStoppingCallback(tuning.patience)],
    )  # fmt: skip
    try:
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    except DivergedError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _take_over(classifier, model)
    losses = [float(entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]
    shutil.rmtree(work, ignore_errors=True)
    return {"steps": float(trainer.state.global_step), "held_out_loss": min(losses), "first_loss": losses[0]}


def draw_order(texts: Sequence[str], targets: Floats, sources: Sequence[str], tuning: Tuning) -> NDArray[np.intp]:
    """Rows in the order of training, batches alike in length."""
    rng = np.random.default_rng(tuning.seed)
    drawn = draw(targets, sources, min(tuning.prompts, round(tuning.repeats * len(texts))), rng)
    return _by_length(drawn, np.array([len(text) for text in texts]), tuning.batch, rng)


def _by_length(
    drawn: NDArray[np.intp], lengths: NDArray[np.intp], batch: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    whole = drawn[: len(drawn) // batch * batch] if len(drawn) >= batch else np.resize(drawn, batch)
    batches: list[NDArray[np.intp]] = []
    for start in range(0, len(whole), batch * BUCKET):
        part = whole[start : start + batch * BUCKET]
        batches.extend(part[np.argsort(lengths[part], kind="stable")].reshape(-1, batch))
    return np.concatenate([batches[number] for number in rng.permutation(len(batches))])


class _Measured(torch.utils.data.Dataset[dict[str, Tensor]]):  # type: ignore[misc]  # as above
    """Held-out prompts as they are, in batches alike in length."""

    def __init__(self, texts: Sequence[str], targets: Floats, model: SentenceTransformer, tuning: Tuning) -> None:
        order = np.argsort([len(text) for text in texts], kind="stable")
        self._batches = [order[start : start + tuning.batch] for start in range(0, len(order), tuning.batch)]
        self._texts, self._targets, self._model = texts, targets, model

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rows = self._batches[number]
        tokens = _tokens(self._model, [self._texts[row] for row in rows])
        return {**tokens, "labels": torch.from_numpy(self._targets[rows].astype(np.float32))}


def _tokens(model: SentenceTransformer, texts: list[str]) -> dict[str, Tensor]:
    return {name: values for name, values in model.preprocess(texts).items() if isinstance(values, Tensor)}


def _freeze(encoder: SentenceTransformer, layers: int) -> None:
    kept = (".embeddings.", *(f".layer.{number}." for number in range(layers)))
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(not any(part in name for part in kept))


def _take_over(classifier: FinetunedClassifier, model: _Tuned) -> None:
    model.cpu().eval()
    changed = {name: p.detach().numpy() for name, p in model.encoder.named_parameters() if p.requires_grad}
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    classifier.tuned(changed, weight.astype(np.float64), bias.astype(np.float64))


def _last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint: the trainer's state is written last."""
    found = [path for path in work.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None
