"""Known data sets of the hub as tasks: where their questions lie, and which column is what."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..experts.datasets import HubDataset, hub_files, parse_hub_name

Row = Mapping[str, object]
Mapped = dict[str, object]


@dataclass(frozen=True, slots=True)
class Known:
    """`name` is what is fetched where nothing more is said; `mapped` gives the keys of a choice row."""

    name: str
    mapped: Callable[[Row], Mapped]


def known_tasks() -> list[str]:
    """Short names that `task_files` accepts."""
    return sorted(_KNOWN)


def task_files(task: str) -> tuple[list[Path], Callable[[Row], Row] | None] | None:
    """Local files of a short name or of hf:owner/name[/configuration][:split], and how to read a row of them.

    Without a configuration and split, a known data set's own are taken. None where `task` is no name of either form.

    Raises:
        DatasetError: there is no such data set, or the hub cannot be reached.
    """
    known = _KNOWN.get(task)
    dataset = parse_hub_name(known.name if known else task)
    if dataset is None:
        return None
    for candidate in _KNOWN.values():
        own = parse_hub_name(candidate.name)
        if own is not None and own.repository.lower() == dataset.repository.lower():
            chosen = HubDataset(
                own.repository, dataset.configuration or own.configuration, dataset.revision, dataset.split or own.split
            )
            return hub_files(chosen), candidate.mapped
    return hub_files(dataset), None


def _mmlu(row: Row) -> Mapped:
    subject = str(row["subject"])
    return {
        "question": row["question"],
        "choices": row["choices"],
        "answer_index": row["answer"],
        "domain": subject,
        "subject": subject,
    }


def _mmlu_pro(row: Row) -> Mapped:
    return {
        "id": f"mmlupro-{row['question_id']}",
        "question": row["question"],
        "choices": row["options"],
        "answer_index": row["answer_index"],
        "domain": row["category"],
        "subject": row.get("src"),
    }


def _arc(row: Row) -> Mapped:
    choices = _mapping(row["choices"])
    return {
        "id": row["id"],
        "question": row.get("question_stem") or row["question"],
        "choices": choices["text"],
        "answer_index": _list(choices["label"]).index(row["answerKey"]),
        "domain": "science",
    }


def _medqa(row: Row) -> Mapped:
    options = _mapping(row["options"])
    letters = sorted(options)
    return {
        "question": row["question"],
        "choices": [options[letter] for letter in letters],
        "answer_index": letters.index(str(row["answer_idx"])),
        "domain": "health",
        "subject": row.get("meta_info"),
    }


def _medmcqa(row: Row) -> Mapped:
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": [row[key] for key in ("opa", "opb", "opc", "opd")],
        "answer_index": row["cop"],
        "domain": "health",
        "subject": row.get("subject_name"),
    }


def _truthfulqa(row: Row) -> Mapped:
    """One right answer (MC1). It stands first in the data, so the choices are shuffled, by the question."""
    targets = _mapping(row["mc1_targets"])
    pairs = list(zip(_list(targets["choices"]), _list(targets["labels"]), strict=True))
    random.Random(str(row["question"])).shuffle(pairs)  # noqa: S311 - an order that can be repeated, no secret
    return {
        "question": row["question"],
        "choices": [choice for choice, _ in pairs],
        "answer_index": [label for _, label in pairs].index(1),
        "domain": "general",
    }


_KNOWN = {
    "arc-challenge": Known("hf:allenai/ai2_arc/ARC-Challenge:test", _arc),
    "arc-easy": Known("hf:allenai/ai2_arc/ARC-Easy:test", _arc),
    "medmcqa": Known("hf:openlifescienceai/medmcqa:validation", _medmcqa),
    "medqa": Known("hf:GBaker/MedQA-USMLE-4-options:test", _medqa),
    "mmlu": Known("hf:cais/mmlu/all:test", _mmlu),
    "mmlu-pro": Known("hf:TIGER-Lab/MMLU-Pro:test", _mmlu_pro),
    "openbookqa": Known("hf:allenai/openbookqa/main:test", _arc),
    "truthfulqa": Known("hf:truthfulqa/truthful_qa/multiple_choice:validation", _truthfulqa),
}


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:60]!r} is not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:60]!r} is not a list")
    return value
