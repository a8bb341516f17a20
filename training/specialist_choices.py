"""Questions with choices, made from rows that have none: numbers, terms, findings and commands to choose among."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

Row = Mapping[str, object]
Made = dict[str, object]

CHOICES = 4
LONGEST = 160  # characters of a choice
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w])|(?<![\w.])-?\d+(?:\.\d+)?(?!\w|\.\d)")
_STEP = re.compile(
    r"(?<![\w.)(*/+-])(\d+(?:\.\d+)?) ?([-+*/]) ?(\d+(?:\.\d+)?) ?= ?\$?(\d+(?:\.\d+)?)(?![\w/*+-]|\.\d)"
)
_OPERATIONS: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
_ASKED = ("What is {0}?", "Evaluate {0}.", "Find the value of {0}.", "{0} =")
_BASH = "Write a Bash command for this task: "
_TOPIC = re.compile(r"^(What is \(are\)|What causes|What are the (?:symptoms|treatments|complications|causes) (?:of|for)|How to (?:prevent|diagnose)) (.+?) ?\?$")  # fmt: skip # noqa: E501
_EMPTY_TALK = ("These resources", "What are the signs", "The Human Phenotype", "How might", "On this page", "Summary :")


def numbers(rows: Sequence[Row], seed: int = 0) -> Iterator[Made]:
    """School mathematics: a problem's final answer among wrong ones, and single steps of its solution.

    Wrong numbers are those of the problem and its solution, and slips of the right one. An answer that is no number
    stands beside answers of other problems of about its length.
    """
    rng = _rng(seed)
    finals = [(row, final) for row in rows if (final := final_answer(str(row["response"]))) is not None]
    others = [final for _, final in finals if not _NUMBER.fullmatch(final)]
    for row, final in finals:
        text = f"{row['instruction']}\n{row['response']}"
        wrong = wrong_numbers(final, text, rng) if _NUMBER.fullmatch(final) else _alike(final, others, rng)
        yield from _question(row, str(row["instruction"]), final, wrong, rng)
        for left, sign, right, result in _STEP.findall(str(row["response"]))[:1]:
            if _holds(left, sign, right, result):
                asked = rng.choice(_ASKED).format(f"{left} {sign} {right}")
                yield from _question(row, asked, result, wrong_numbers(result, f"{left} {right}", rng), rng)


def terms(rows: Sequence[Row], seed: int = 0) -> Iterator[Made]:
    """Medicine: the condition that a definition describes, and what is true of a condition rather than of others."""
    rng = _rng(seed)
    found = [(row, topic, said) for row in rows if (topic := _TOPIC.match(str(row["instruction"]))) and (said := _said(row, topic[2]))]  # fmt: skip # noqa: E501
    names = [topic[2] for _, topic, _ in found]
    said_of: dict[str, list[str]] = {}
    for _, topic, said in found:
        said_of.setdefault(topic[1], []).append(said)
    for row, topic, said in found:
        if topic[1] == "What is (are)" and rng.random() < 0.7:
            yield from _question(row, f"Which condition is this? {said}", topic[2], _alike(topic[2], names, rng), rng)
        else:
            asked = str(row["instruction"]).replace("is (are)", "is").replace(" ?", "?")
            yield from _question(row, asked, said, _alike(said, said_of[topic[1]], rng), rng)


def commands(rows: Sequence[Row], seed: int = 0) -> Iterator[Made]:
    """Programming: the command for a task among commands of the same tool, and the task that code was written for."""
    rng = _rng(seed)
    tools: dict[str, list[str]] = {}
    tasks: list[str] = []
    for row in rows:
        tools.setdefault(_tool(row), []).append(str(row["response"]))
        tasks.append(_task(row))
    for row in rows:
        code, task = str(row["response"]), _task(row)
        if str(row["instruction"]).startswith(_BASH) and rng.random() < 0.5:
            yield from _question(
                row, f"Which command does this? {task}", code, _alike(code, tools[_tool(row)], rng), rng
            )
        elif len(code) <= 2 * LONGEST:
            yield from _question(row, f"What does this code do?\n{code}", task, _alike(task, tasks, rng), rng)


MAKERS: Mapping[str, Callable[[Sequence[Row], int], Iterator[Made]]] = {
    "math": numbers,
    "health": terms,
    "coding": commands,
}


def final_answer(response: str) -> str | None:
    r"""What stands after "####" or in the last \boxed{}; None where there is neither."""
    if "####" in response:
        return response.rpartition("####")[2].strip() or None
    _, boxed, rest = response.rpartition("\\boxed{")
    depth = 1 if boxed else 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:place].strip() or None
    return None


def wrong_numbers(right: str, text: str, rng: random.Random) -> list[str]:
    """Numbers that could be taken for `right`, written as it is: of `text`, slips of a digit or an operation.

    How many of them are smaller is drawn, so that the place among its neighbours tells nothing.
    """
    value = Fraction(right.replace(",", ""))
    places = len(right.partition(".")[2])
    unit = Fraction(1, 10**places)
    seen = [Fraction(one.replace(",", "")) for one in _NUMBER.findall(text)]
    slips = [value + sign * step for step in (unit, 2 * unit, 10 * unit) for sign in (1, -1)]
    slips += [2 * value, value / 2, 10 * value, value / 10]
    rng.shuffle(seen)
    rng.shuffle(slips)
    sound = [one for one in dict.fromkeys([*seen[:2], *slips]) if one % unit == 0 and (one >= 0 or value < 0)]
    smaller, larger = [one for one in sound if one < value], [one for one in sound if one > value]
    few = rng.randint(0, CHOICES - 1)
    taken = smaller[:few] + larger[: CHOICES - 1 - min(few, len(smaller))]
    return [f"{float(one):{',' if ',' in right else ''}.{places}f}" for one in taken]


def _question(row: Row, question: str, right: str, wrong: Sequence[str], rng: random.Random) -> Iterator[Made]:
    """The row, where there are enough wrong choices and all are short."""
    choices = [right, *wrong[: CHOICES - 1]]
    if len(set(choices)) < CHOICES or max(map(len, choices)) > LONGEST:
        return
    rng.shuffle(choices)
    yield {
        "question": question, "choices": choices, "answer_index": choices.index(right),
        "source": row["source"], "licence": row["licence"],
    }  # fmt: skip


def _alike(right: str, others: Sequence[str], rng: random.Random) -> list[str]:
    """Of some drawn at random the nearest in length, so that length tells nothing."""
    drawn = {one for one in rng.sample(others, min(24, len(others))) if one.casefold() != right.casefold()}
    return sorted(drawn, key=lambda one: (abs(len(one) - len(right)), one))[: CHOICES - 1]


def _holds(left: str, sign: str, right: str, result: str) -> bool:
    a, b, c = Fraction(left), Fraction(right), Fraction(result)
    written_out = "." in result and result.endswith("0")
    return not written_out and not (sign == "/" and b == 0) and _OPERATIONS[sign](a, b) == c


def _said(row: Row, name: str) -> str:
    """The answer's first sentence without the condition's name; "" where it says nothing."""
    first = re.split(r"(?<=[a-z)][.!?])\s", str(row["response"]).strip(), maxsplit=1)[0]
    bare = re.split(r" \(", name)[0]
    said = re.sub(re.escape(bare), "this condition", first, flags=re.IGNORECASE)
    said = said[:1].upper() + said[1:]
    usable = 20 <= len(said) <= LONGEST and not said.startswith(_EMPTY_TALK) and said.endswith(".")
    return said if usable else ""


def _tool(row: Row) -> str:
    return str(row["response"]).split(maxsplit=1)[0] if str(row["instruction"]).startswith(_BASH) else ""


def _task(row: Row) -> str:
    """What was asked, without the request around it and the tests below it."""
    asked = str(row["instruction"]).removeprefix(_BASH).split("\n")[0]
    return re.sub(r"^Write a (?:python )?function to ", "", asked)


def _rng(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # a draw that can be repeated, no secret
