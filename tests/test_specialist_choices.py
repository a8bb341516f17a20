"""Questions made for specialists: the right choice is right, the wrong ones are not, and nothing tells them apart."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from collegium.training.specialist_choices import MAKERS, commands, final_answer, numbers, terms, wrong_numbers
from collegium.training.specialists import CHOOSING, Shipped, rows_of

GRANT = {"source": "made", "licence": "MIT"}


def row(instruction: str, response: str) -> dict[str, object]:
    return {"instruction": instruction, "response": response, **GRANT}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so 4 + 4 = 8\n#### 8", "8"),
        (r"It is $\boxed{\frac{1}{2}}$, as $\boxed{\frac{3}{4}}$.", r"\frac{3}{4}"),
        (r"cut off \boxed{\frac{1}{2", None),
        ("no answer", None),
        ("####", None),
    ],
)
def test_final_answers(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize("right", ["8", "1,250", "0.25", "-3", "0"])
def test_wrong_numbers_differ_and_are_written_alike(right: str) -> None:
    for seed in range(50):
        wrong = wrong_numbers(right, "of 12 and 1,300 she gave 0.50 to 7", random.Random(seed))
        assert right not in wrong
        assert len({float(one.replace(",", "")) for one in wrong}) == len(wrong)
        assert {len(one.partition(".")[2]) for one in wrong} <= {len(right.partition(".")[2])}


def test_numbers_ask_the_problem_and_a_step_that_holds() -> None:
    rows = [
        row(f"Ann has {n} apples and buys {n} more. How many?", f"She has {n} + {n} = {2 * n}\n#### {2 * n}")
        for n in range(3, 40)
    ]
    rows.append(row("Wrong step?", "5 + 5 = 11\n#### 11"))
    made = list(numbers(rows))
    steps = [one for one in made if "Ann" not in str(one["question"])]
    assert len(made) == 2 * 37 + 1
    assert len(steps) == 37 + 1  # the row with the wrong step gives its problem alone
    for one in made:
        choices = one["choices"]
        assert isinstance(choices, list)
        assert len(set(choices)) == 4
    assert all(
        int(one["choices"][one["answer_index"]]) == 2 * int(str(one["question"]).split(" + ")[0].split()[-1])  # type: ignore[index]
        for one in steps
        if "Wrong" not in str(one["question"])
    )
    assert max(Counter(one["answer_index"] for one in made).values()) < len(made) / 2
    assert made == list(numbers(rows))
    assert made != list(numbers(rows, seed=1))


def test_the_place_of_the_right_number_tells_little() -> None:
    """Always the smallest, the largest or one place would be a rule to learn instead of the sum."""
    rows = [row(f"What is twice {n}?", f"It is 2*{n} = {2 * n}\n#### {2 * n}") for n in range(10, 400)]
    ranks = Counter(
        sorted(float(c) for c in one["choices"]).index(float(one["choices"][one["answer_index"]]))  # type: ignore[index, attr-defined]
        for one in numbers(rows)
    )
    assert max(ranks.values()) < 0.5 * sum(ranks.values())
    assert len(ranks) == 4


def test_terms_hide_the_name_they_ask_for() -> None:
    names = [f"{first} {second}" for first in ("Alder", "Birch", "Cedar", "Dogwood") for second in ("ague", "gout")]
    rows = [
        row(f"What is (are) {name} ?", f"{name} is a disorder of organ number {place}. More follows.")
        for place, name in enumerate(names)
    ]
    rows.append(row("What is (are) Elm pox ?", "These resources address the diagnosis or management of Elm pox."))
    rows.append(row("How tall is Ann?", "She is 1.70 m tall, which is above the mean."))
    made = list(terms(rows))
    assert len(made) == len(names)
    for one in made:
        question, right = str(one["question"]), one["choices"][one["answer_index"]]  # type: ignore[index]
        name = right if question.startswith("Which condition") else question.removeprefix("What is ").rstrip("?")
        said = question if question.startswith("Which condition") else right
        assert f"organ number {names.index(name)}." in said
        assert name not in said
        assert "Elm pox" not in one["choices"]  # type: ignore[operator]


def test_commands_stand_beside_commands_of_the_same_tool() -> None:
    bash = "Write a Bash command for this task: "
    rows = [row(f"{bash}find files named a{n}", f"find . -name a{n}") for n in range(20)]
    rows += [row(f"{bash}list folder b{n}", f"ls b{n}") for n in range(20)]
    rows.append(row("Write a function to add.\nYour code should pass this test:\nassert add(1) == 3", "def add(): ..."))
    made = list(commands(rows))
    assert len(made) == 41
    for one in made:
        choices, right = one["choices"], one["choices"][one["answer_index"]]  # type: ignore[index]
        if str(one["question"]).startswith("Which command"):
            assert len({choice.split()[0] for choice in choices}) == 1  # type: ignore[attr-defined]
            assert right.split()[-1] in str(one["question"])
    assert any(one["choices"][one["answer_index"]] == "add." for one in made)  # type: ignore[index]


def test_rows_without_enough_others_make_nothing() -> None:
    assert not list(commands([row("Write a Bash command for this task: list", "ls")]))
    assert not list(terms([row("What is (are) gout ?", "Gout is a disorder of the joints and the kidneys.")]))


def test_a_recipes_rows_are_turns_and_questions_as_many_as_it_says(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"What is twice {n}?", "response": f"It is 2*{n} = {2 * n}\n#### {2 * n}", "source": source}
        for n in range(10, 60)
        for source in ("gsm8k", "no licence known")
    ]
    with gzip.open(tmp_path / "sft_math.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    recipe = Shipped("math", 1_000, 64, start="science", made=12, turns=7)
    found = rows_of(tmp_path, recipe)
    assert [("choices" in row) for row in found] == [False] * 7 + [True] * 12
    assert {(row["source"], row["licence"]) for row in found} == {("gsm8k", "MIT")}
    assert found == rows_of(tmp_path, recipe)
    assert len(rows_of(tmp_path, Shipped("math", 1_000, 64))) == 50
    assert {one.domain for one in CHOOSING} <= set(MAKERS)
