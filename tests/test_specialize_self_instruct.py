"""Self-specialisation: the filters, and rows that a real (tiny) model wrote, with where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from collegium.training.self_instruct import Novelty, SelfInstruct, final_answer, write_more
from collegium.training.specialize import specialize
from collegium.training.specialize_data import Row, SpecializeError, read_corpus
from collegium.training.specialize_model import Recipe
from specialize_tiny import sums, tiny_model, write_rows

SEEDS = [Row(str(row["instruction"]), str(row["response"]), source="sums", licence="MIT") for row in sums(6)]
ANY = {"words": (1, 1_000), "response_tokens": (1, 40), "overlap": 1.0, "agree": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained on sums, so that its answers end."""
    place = tmp_path_factory.mktemp("seed")
    recipe = Recipe(
        str(tiny_model(place / "raw")), "math", rank=8, max_length=96, pack_tokens=96, lr=0.01, heldout_rows=4,
        tokens_budget=8_000, epochs=40,
    )  # fmt: skip
    made = specialize(recipe, write_rows(place / "sums.jsonl", sums()), place / "sums", merge=True, quiet=True)
    return str(made.folder / "merged")


def test_novelty_refuses_copies_and_remembers() -> None:
    novelty = Novelty(["What is one plus two?"], 0.7)
    assert not novelty.admits("what is ONE plus two")
    assert not novelty.admits("?!")
    assert novelty.admits("Name three rivers of Europe.")
    assert not novelty.admits("Name four rivers of Europe.")


@pytest.mark.parametrize(
    ("response", "answer"),
    [("So 3 and 4 make 7.", "7"), ("It costs $1,250.50", "1250.50"), ("no number", None), ("-2", "-2")],
)
def test_the_final_answer_is_the_last_number(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


def test_new_rows_name_who_wrote_them(model: str, tmp_path: Path) -> None:
    plan = SelfInstruct(1, tries=40, **ANY)  # type: ignore[arg-type]
    counts = write_more(model, SEEDS, plan, tmp_path / "more.jsonl")
    assert counts["kept"] == 1
    rows = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert [row["instruction"] for row in rows[:6]] == [seed.prompt for seed in SEEDS]
    for row in rows[6:]:
        assert row["source"] == "self-instruct"
        assert row["written_by"] == model
        assert len(set(row["shown"])) == 4
    assert len(read_corpus(tmp_path / "more.jsonl").rows) == 7
    write_more(model, SEEDS, plan, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "more.jsonl").read_text()


def test_a_model_that_writes_nothing_usable_is_told(model: str, tmp_path: Path) -> None:
    plan = SelfInstruct(1, words=(500, 501), tries=3)
    with pytest.raises(SpecializeError, match="instruction too short or long': 3"):
        write_more(model, SEEDS, plan, tmp_path / "more.jsonl")
    assert not list(tmp_path.iterdir())


def test_too_few_seeds_are_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(SpecializeError, match="4 or more"):
        write_more(model, SEEDS[:3], SelfInstruct(1), tmp_path / "more.jsonl")
    with pytest.raises(SpecializeError, match="overlap"):
        SelfInstruct(1, overlap=0)
