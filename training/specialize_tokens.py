"""Rows -> token trees -> packs: one padding-free row of tokens that holds many samples, none seeing another."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .specialize_data import Row, SpecializeError

ROOM = 16  # tokens of response that must fit beside a prompt, or the row is left out
IGNORED = -100  # what the Trainer does not count as a label
_PROBE = "Say yes."


@dataclass(frozen=True, slots=True)
class Sample:
    """A prefix of tokens and the branches that may follow it; `right` is the one to learn.

    A response is one branch. A question's choices are one branch each and share the prefix, so that scoring four
    choices costs little more than one.
    """

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    right: int = 0

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


@dataclass(frozen=True, slots=True)
class Encoded:
    """`samples` that fit; `cut` responses were shortened; `dropped` rows had no room for a response."""

    samples: tuple[Sample, ...]
    cut: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Format:
    """How rows become text: chat turns by the tokenizer's template, or plain where it has none."""

    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template:
            self.turn(_PROBE, "Yes.")

    def turn(self, prompt: str, response: str) -> tuple[str, str]:
        """(what the model reads, what it should write, end mark included)."""
        end = str(self.tokenizer.eos_token or "")
        if not prompt:
            return "", response + end
        if not self.tokenizer.chat_template:
            return f"{prompt}\n\n", response + end
        user = [{"role": "user", "content": prompt}]
        read = str(self.tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False))
        whole = str(
            self.tokenizer.apply_chat_template([*user, {"role": "assistant", "content": response}], tokenize=False)
        )
        if not whole.startswith(read):
            raise SpecializeError("the chat template rewrites earlier turns, so responses cannot be told from prompts")
        return read, whole[len(read) :].rstrip("\n")

    def sample(self, row: Row, max_length: int) -> tuple[Sample | None, bool]:
        """The row as tokens, or None where it does not fit; and whether its response was cut."""
        if row.choices:
            sample = self._choices(row)
            return (sample, False) if len(sample) <= max_length else (None, False)
        read, write = self.turn(row.prompt, row.response)
        prefix, branch = self._ids(read), self._ids(write)
        if not prefix:  # plain text: the first token is given, not predicted
            prefix, branch = branch[:1], branch[1:]
        room = max_length - len(prefix)
        if room < min(ROOM, len(branch)) or not branch:
            return None, False
        return Sample(prefix, (branch[:room],)), len(branch) > room

    def _choices(self, row: Row) -> Sample:
        """The format of lm-evaluation-harness's ARC: the choices' texts after "Answer:"."""
        prefix = self._ids(f"Question: {row.prompt}\nAnswer:")
        return Sample(prefix, tuple(self._ids(f" {choice}") for choice in row.choices), row.choices.index(row.response))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()


def encode(rows: Iterable[Row], form: Format, max_length: int) -> Encoded:
    """Rows as samples of at most `max_length` tokens."""
    found = [form.sample(row, max_length) for row in rows]
    samples = tuple(sample for sample, _ in found if sample is not None)
    return Encoded(samples, sum(cut for _, cut in found), len(found) - len(samples))


def pack(samples: Sequence[Sample], size: int, seed: int | None = None) -> list[tuple[Sample, ...]]:
    """Samples in packs of at most `size` tokens, shuffled by `seed` where one is given.

    Filled in order, each into the first of the last few open packs with room, so that the order stays nearly random.
    """
    ordered = list(samples)
    if seed is not None:
        random.Random(seed).shuffle(ordered)  # noqa: S311  # a shuffle, no secret
    closed: list[tuple[Sample, ...]] = []
    open_packs: list[list[Sample]] = []
    for sample in ordered:
        fitting = next((p for p in open_packs if sum(map(len, p)) + len(sample) <= size), None)
        if fitting is not None:
            fitting.append(sample)
            continue
        open_packs.append([sample])
        if len(open_packs) > 4:
            closed.append(tuple(open_packs.pop(0)))
    return closed + [tuple(pack) for pack in open_packs]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where every token of a pack stands, and where every predicted token is predicted."""

    tokens: list[int]
    positions: list[int]
    samples: list[int]
    branches: list[int]
    keep: list[int]
    targets: list[int]
    target_branches: list[int]
    branch_samples: list[int]
    branch_right: list[bool]

    def add(self, sample: Sample, number: int) -> None:
        start = len(self.tokens)
        self._place(sample.prefix, 0, number, branch=-1)
        for index, branch in enumerate(sample.branches):
            name = len(self.branch_samples)
            self.branch_samples.append(number)
            self.branch_right.append(index == sample.right)
            first = len(self.tokens)
            self._place(branch, len(sample.prefix), number, branch=name)
            self.keep.extend([start + len(sample.prefix) - 1, *range(first, first + len(branch) - 1)])
            self.targets.extend(branch)
            self.target_branches.extend([name] * len(branch))

    def _place(self, tokens: tuple[int, ...], position: int, sample: int, branch: int) -> None:
        self.tokens.extend(tokens)
        self.positions.extend(range(position, position + len(tokens)))
        self.samples.extend([sample] * len(tokens))
        self.branches.extend([branch] * len(tokens))


def collate(packs: Sequence[Sequence[Sample]]) -> dict[str, Tensor]:
    """One pack as a model's input.

    Returns `input_ids` and `position_ids` (1, n), `attention_mask` (1, 1, n, n) of bools, and for the m predicted
    tokens of b branches: `keep` (m,), where each is predicted; `targets` (m,), `target_branches` (m,);
    `branch_samples` (b,) and `branch_right` (b,); `labels` (m,), the right branches' targets, others ignored.
    """
    if len(packs) != 1:
        raise ValueError(f"a batch is one pack, not {len(packs)}; accumulate gradients for more")
    layout = _Layout([], [], [], [], [], [], [], [], [])
    for number, sample in enumerate(packs[0]):
        layout.add(sample, number)
    targets, right = torch.tensor(layout.targets), torch.tensor(layout.branch_right)
    branches = torch.tensor(layout.target_branches)
    return {
        "input_ids": torch.tensor([layout.tokens]),
        "position_ids": torch.tensor([layout.positions]),
        "attention_mask": _mask(torch.tensor(layout.samples), torch.tensor(layout.branches)),
        "keep": torch.tensor(layout.keep),
        "targets": targets,
        "target_branches": branches,
        "branch_samples": torch.tensor(layout.branch_samples),
        "branch_right": right,
        "labels": torch.where(right[branches], targets, IGNORED),
    }


def _mask(samples: Tensor, branches: Tensor) -> Tensor:
    """True where a token (row) sees another (column): earlier, of its sample, in its prefix or its own branch."""
    causal = torch.ones(len(samples), len(samples), dtype=torch.bool).tril()
    same_sample = samples[:, None] == samples[None, :]
    visible = (branches[None, :] == -1) | (branches[:, None] == branches[None, :])
    return (causal & same_sample & visible)[None, None]


def branch_logprobs(model: torch.nn.Module, pack: dict[str, Tensor]) -> Tensor:
    """Log-probability of every branch given its prefix, in nats, (b,).

    Only the rows of logits that predict a target are made: a vocabulary-sized row for every token is what fills memory.
    """
    logits = model(
        input_ids=pack["input_ids"], position_ids=pack["position_ids"], attention_mask=pack["attention_mask"],
        logits_to_keep=pack["keep"], use_cache=False,
    ).logits[0]  # fmt: skip
    losses = torch.nn.functional.cross_entropy(logits.float(), pack["targets"], reduction="none")
    return torch.zeros(len(pack["branch_samples"]), device=losses.device).index_add(0, pack["target_branches"], -losses)


def choice_loss(logprobs: Tensor, pack: dict[str, Tensor]) -> Tensor:
    """Sum over questions of -log(share of the right choice among its choices): what multiple choice is scored by.

    0 where a pack has no questions: a lone branch has the whole share.
    """
    questions = pack["branch_samples"]
    total = torch.full((int(questions.max()) + 1,), -torch.inf, device=logprobs.device)
    for question in questions.unique():
        total[question] = torch.logsumexp(logprobs[questions == question], 0)
    return -(logprobs - total[questions])[pack["branch_right"]].sum()
