"""Self-specialisation: from some rows of a domain, the seed model itself writes more.

Self-Instruct (Wang et al. 2023), as in Self-MoE (Kang et al. 2024). Filters drop copies, wrong lengths, and answers
that the model does not repeat.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .specialize_data import Row, SpecializeError
from .specialize_model import load_base

SOURCE = "self-instruct"
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")
_SHOTS = 4


@dataclass(frozen=True, slots=True)
class SelfInstruct:
    """How many rows are wanted, and what a row must be like.

    `overlap` is the largest share of an instruction's words that another may have too; `tries` bounds the attempts, in
    multiples of `rows`. `agree` asks for each answer twice and keeps it where both end in the same number, or in none.
    """

    rows: int
    words: tuple[int, int] = (4, 80)
    response_tokens: tuple[int, int] = (2, 256)
    overlap: float = 0.7
    tries: int = 5
    agree: bool = True
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.tries < 1 or not 0 < self.overlap <= 1 or self.temperature <= 0:
            raise SpecializeError("rows and tries must be 1 or more, overlap in (0, 1], temperature over 0")


class Novelty:
    """Knows the instructions so far, and refuses one that shares too many words with any of them."""

    def __init__(self, known: Sequence[str], overlap: float) -> None:
        self._known = [_words(text) for text in known]
        self._overlap = overlap

    def admits(self, instruction: str) -> bool:
        """True, and remembered, where it is new."""
        words = _words(instruction)
        if not words or any(len(words & other) > self._overlap * min(len(words), len(other)) for other in self._known):
            return False
        self._known.append(words)
        return True


def write_more(
    model: str, seeds: Sequence[Row], plan: SelfInstruct, out: Path, revision: str | None = None
) -> dict[str, int]:
    """Write the seeds and up to `plan.rows` new rows to `out`; count what was kept and why others were not.

    A new row names its source, the model that wrote it and the seed rows that it was shown.

    Raises:
        SpecializeError: no instructions to start from, or not one row that passed.
    """
    instructions = [row for row in seeds if row.prompt and not row.choices]
    if len(instructions) < _SHOTS:
        raise SpecializeError(f"{len(instructions)} instruction rows; self-instruction starts from {_SHOTS} or more")
    tokenizer, loaded, _ = load_base(model, revision)
    set_seed(plan.seed)
    counts: Counter[str] = Counter()
    new = list(_new_rows(_Writer(tokenizer, loaded.eval(), plan), instructions, plan, counts))
    if not new:
        raise SpecializeError(f"the model wrote no row that passes the filters: {dict(counts)}")
    written = [_as_json(row) for row in seeds]
    for row, shown in new:
        written.append({**_as_json(row), "written_by": model, "shown": shown, "plan": asdict(plan)})
    fresh = out.with_name(f".{out.name}")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    fresh.rename(out)
    return dict(counts)


def _new_rows(
    writer: _Writer, seeds: Sequence[Row], plan: SelfInstruct, counts: Counter[str]
) -> Iterator[tuple[Row, list[int]]]:
    novelty = Novelty([row.prompt for row in seeds], plan.overlap)
    choose = random.Random(plan.seed)  # noqa: S311  # which rows are shown is no secret
    for _ in range(plan.rows * plan.tries):
        if counts["kept"] == plan.rows:
            return
        shown = choose.sample(range(len(seeds)), _SHOTS)
        instruction = writer.instruction([seeds[place].prompt for place in shown])
        if not plan.words[0] <= len(instruction.split()) <= plan.words[1]:
            counts["instruction too short or long"] += 1
        elif not novelty.admits(instruction):
            counts["much like another"] += 1
        elif (response := writer.answer(instruction)) is None:
            counts["answer too short, too long or not repeated"] += 1
        else:
            counts["kept"] += 1
            yield Row(instruction, response, source=SOURCE), shown


@dataclass(frozen=True, slots=True)
class _Writer:
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    plan: SelfInstruct

    def instruction(self, shown: Sequence[str]) -> str:
        """One more of the kind of those shown, as the next entry of a list."""
        listed = "".join(f"{number}. {' '.join(text.split())}\n" for number, text in enumerate(shown, 1))
        ask = f"Tasks of one kind, each on its own line:\n{listed}{len(shown) + 1}."
        lines = self._continue(ask, 120).strip().split("\n")
        return lines[0].strip()

    def answer(self, instruction: str) -> str | None:
        """The model's answer, or None where a length or the second answer speaks against it."""
        turn = [{"role": "user", "content": instruction}]
        ask = (
            str(self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
            if self.tokenizer.chat_template
            else f"{instruction}\n\n"
        )
        shortest, longest = self.plan.response_tokens
        first = self._continue(ask, longest + 1)
        length = len(self.tokenizer.encode(first, add_special_tokens=False))
        if not shortest <= length <= longest:
            return None
        if self.plan.agree and final_answer(first) != final_answer(self._continue(ask, longest + 1)):
            return None
        return first.strip() or None

    def _continue(self, text: str, tokens: int) -> str:
        given = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(self.model.device)
        with torch.no_grad():
            generated = self.model.generate(
                **given, max_new_tokens=tokens, do_sample=True, temperature=self.plan.temperature,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            )  # fmt: skip
        return str(self.tokenizer.decode(generated[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


def final_answer(response: str) -> str | None:
    """The last number of a response, by which two answers are compared; None where it has none."""
    numbers = _NUMBER.findall(response)
    return str(numbers[-1]).replace(",", "").rstrip(".") if numbers else None


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _as_json(row: Row) -> dict[str, object]:
    origin = {"source": row.source, "licence": row.licence}
    if row.choices:
        choices = list(row.choices)
        return {"question": row.prompt, "choices": choices, "answer_index": choices.index(row.response), **origin}
    if not row.prompt:
        return {"text": row.response, **origin}
    return {"instruction": row.prompt, "response": row.response, **origin}
