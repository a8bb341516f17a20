"""The runner against a scripted model on a real socket: scoring, resuming, and targets that fail."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from collegium.cli.eval import command
from collegium.evals.endpoint import Endpoint
from collegium.evals.records import Record, RecordError, RunFolder, Sample
from collegium.evals.runner import GONE_LIMIT, Plan, RunStoppedError, card_prices, judged_per_character, run, totals
from collegium.evals.tasks import Style, cloze_prompt
from collegium.experts.card import parse_card
from echo_expert import ThreadedServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KNOWS = {"math-expert": "math", "health-expert": "health"}


class Exam:
    """Models that are right in their own domain; `auto` asks the right one. The question holds its key, as [B]."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.dead: set[str] = set()
        self.paths: dict[str, str] = {}
        self.busy = 0
        self.names_letters = False
        self.zero_is_none = False
        self.renamed: dict[str, str] = {}
        routes = [Route(f"/v1/{path}", self._answer, methods=["POST"]) for path in ("completions", "chat/completions")]
        routes.append(Route("/v1/route", self._route, methods=["POST"]))
        self.server = ThreadedServer(Starlette(routes=routes))

    async def _route(self, request: Request) -> Response:
        prompts = (await request.json())["prompt"]
        self.asked.append(("/v1/route", "\n".join(prompts)))
        return JSONResponse({"expert": "math-expert" if "math" in prompts[0] else "health-expert", "router": "test-2"})

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        model = body["model"]
        self.paths[model] = request.url.path
        texts = prompt if isinstance(prompt, list) else [prompt]
        read = "\n".join(texts)
        self.asked.append((model, read))
        if self.busy > 0:
            self.busy -= 1
            return Response("busy", 429, {"retry-after": "0"})
        if model in self.dead:
            return Response("no", 400)
        expert = ("math-expert" if "math" in read else "health-expert") if model == "auto" else model
        headers = {"x-collegium-expert": self.renamed.get(expert, expert), "x-collegium-router": "test-1"}
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        keys = re.findall(r"\[(\w+)\]", read)
        key = keys[-1] if keys else "A"
        right = KNOWS.get(expert, "") in read
        if body.get("echo"):
            silent = self.zero_is_none and not body["logprobs"]
            choices = [
                {"index": place, "text": text, "logprobs": None if silent else _logprobs(text, key if right else "A")}
                for place, text in enumerate(texts)
            ]
            return JSONResponse({"model": expert, "choices": choices[::-1], "usage": usage}, headers=headers)
        if "logit_bias" in body:
            values = {token: -0.25 if right and "ABC"[int(token) - 10] == key else -4.0 for token in body["logit_bias"]}
            best = max(values, key=lambda token: values[token])
            found = {"token_logprobs": [values[best]], "text_offset": [len(prompt)]}
            choice = {"text": f" {'ABC'[int(best) - 10]}", "logprobs": found}
            return JSONResponse({"model": expert, "choices": [choice], "usage": usage}, headers=headers)
        if "logprobs" in body and self.names_letters:
            tops = {" B": -9.0, **{f" {letter}": -0.25 if right and letter == key else -4.0 for letter in "AC"}}
            tops |= {" B": -0.25} if right and key == "B" else {}
            found = {"token_logprobs": [-0.25], "text_offset": [len(prompt)], "top_logprobs": [tops]}
            choice = {"text": " A", "logprobs": found}
            return JSONResponse({"model": expert, "choices": [choice], "usage": usage}, headers=headers)
        said = f"Well.\nAnswer: {key}" if right else "I would rather not say."
        choice = {"message": {"content": said}} if "messages" in body else {"text": said}
        return JSONResponse({"model": expert, "choices": [choice], "usage": usage}, headers=headers)


def _logprobs(text: str, favourite: str) -> dict[str, object]:
    """Tokens are words with the space before them; the favourite as last word is likely. One token is generated."""
    tokens = re.findall(r"\s*\S+", text)
    offsets = [match.start() for match in re.finditer(r"\s*\S+", text)]
    values = [None, *(-1.0 for _ in tokens[1:])]
    values[-1] = -0.25 if tokens[-1].strip() == favourite else -4.0
    return {"token_logprobs": [*values, -0.1], "text_offset": [*offsets, len(text)]}


@pytest.fixture
def exam() -> Iterator[Exam]:
    running = Exam()
    running.server.start()
    yield running
    running.server.stop()


def questions(count: int = 12) -> list[Sample]:
    domains = ["math" if number % 2 else "health" for number in range(count)]
    keys = ["ABC"[number % 3] for number in range(count)]
    return [
        Sample(f"q{number}", f"A {domain} question {number} [{key}]", domain, key, ("one", "two", "three"))
        for number, (domain, key) in enumerate(zip(domains, keys, strict=True))
    ]


PLAN = Plan("choice", ("auto", "math-expert", "health-expert"))


def ask(
    exam: Exam, folder: Path, plan: Plan = PLAN, samples: list[Sample] | None = None, attempts: int = 2
) -> list[Record]:
    return ask_url(f"{exam.server.url}/v1", folder, plan, samples or questions(), attempts)


def ask_url(url: str, folder: Path, plan: Plan, samples: list[Sample], attempts: int) -> list[Record]:
    async def asked() -> list[Record]:
        async with Endpoint(url, attempts=attempts) as endpoint:
            return await run(RunFolder(folder), endpoint, plan, samples, concurrency=4)

    return asyncio.run(asked())


def accuracy(records: list[Record], target: str) -> float:
    judged = [bool(record.correct) for record in records if record.target == target]
    return sum(judged) / len(judged)


def test_choices_are_scored_by_log_probability(exam: Exam, tmp_path: Path) -> None:
    records = ask(exam, tmp_path)
    assert accuracy(records, "auto") == 1.0
    assert accuracy(records, "math-expert") == pytest.approx(8 / 12)  # its own half, and where the key is A
    one = next(record for record in records if record.sample == "q1" and record.target == "auto")
    assert one.logprobs == (-4.0, -0.25, -4.0)
    assert (one.expert, one.router, one.answer, one.prompt_tokens) == ("math-expert", "test-1", "B", 30)


def test_the_expert_that_scores_the_first_choice_scores_them_all(exam: Exam, tmp_path: Path) -> None:
    ask(exam, tmp_path, Plan("choice", ("auto",)), questions(2))
    scored = sorted(model for model, prompt in exam.asked if prompt[-1] in "ABC")
    assert scored == ["auto", "auto", *["health-expert"] * 2, *["math-expert"] * 2]


def test_letters_among_the_next_tokens_cost_one_call(exam: Exam, tmp_path: Path) -> None:
    exam.names_letters = True
    records = ask(exam, tmp_path)
    assert len(exam.asked) == len(records)
    one = next(r for r in records if (r.sample, r.target) == ("q2", "health-expert"))
    assert (one.logprobs, one.answer, one.correct) == ((-4.0, -9.0, -0.25), "C", True)
    assert accuracy(records, "auto") == 1.0


def test_letters_can_be_forced_by_their_tokens(exam: Exam, tmp_path: Path) -> None:
    plan = Plan("choice", ("auto", "math-expert"), letter_tokens=(10, 11, 12))
    records = ask(exam, tmp_path / "all", plan)
    one = next(r for r in records if (r.sample, r.target) == ("q1", "math-expert"))
    assert (one.logprobs, one.answer, one.correct) == ((-4.0, -0.25, -4.0), "B", True)
    exam.asked.clear()
    short = ask(exam, tmp_path / "short", Plan("choice", plan.targets, letter_tokens=(10, 11, 12), answer_only=True))
    assert len(exam.asked) == len(short)
    assert {(r.sample, r.target, r.answer) for r in short} == {(r.sample, r.target, r.answer) for r in records}
    with pytest.raises(ValueError, match="answer_only needs letter_tokens"):
        Plan("choice", ("auto",), answer_only=True)


def test_texts_of_choices_are_scored_in_one_request(exam: Exam, tmp_path: Path) -> None:
    plan = Plan("choice", ("auto", "math-expert"), score="text")
    asked = [Sample("q1", "A math question [BB]", "math", "B", ("A", "BB", "CCC CCC"))]
    records = ask(exam, tmp_path, plan, asked)
    prompts = "\n".join(f"Question: A math question [BB]\nAnswer: {choice}" for choice in asked[0].choices)
    assert sorted(exam.asked) == [("auto", prompts), ("math-expert", prompts)]
    assert {(r.expert, r.logprobs, r.answer, r.correct) for r in records} == {
        ("math-expert", (-4.0, -0.25, -5.0), "B", True)
    }


def test_a_server_that_takes_no_others_for_no_logprobs_is_asked_for_one(exam: Exam, tmp_path: Path) -> None:
    exam.zero_is_none = True
    records = ask(exam, tmp_path, Plan("choice", ("auto",), score="text"), questions(12))
    assert all(len(record.logprobs) == 3 for record in records)
    assert 13 <= len(exam.asked) <= 16  # the four that run at once may each learn it


def test_texts_may_be_judged_by_the_character() -> None:
    asked = [Sample("q", "?", "d", "B", ("no", "much longer"))]
    (record,) = judged_per_character(asked, [Record("q", "d", "x", "x", False, "A", logprobs=(-2.0, -5.0))])
    assert (record.answer, record.correct) == ("B", True)


def test_worked_examples_of_texts_show_the_text(exam: Exam, tmp_path: Path) -> None:
    example = Sample("e", "A health matter", "health", "B", ("one", "two"))
    assert cloze_prompt(questions(1)[0], [example], Style(shots=1)) == (
        "Question: A health matter\nAnswer: two\n\nQuestion: A health question 0 [A]\nAnswer:"
    )


def test_auto_takes_an_experts_recorded_answer_where_the_route_says_so(exam: Exam, tmp_path: Path) -> None:
    plan = Plan("choice", ("math-expert", "health-expert"), score="text")
    known = {(record.sample, record.target): record for record in ask(exam, tmp_path / "experts", plan)}
    exam.asked.clear()

    async def routed() -> list[Record]:
        async with Endpoint(f"{exam.server.url}/v1") as endpoint:
            auto = Plan("choice", ("auto",), score="text")
            return await run(RunFolder(tmp_path / "auto"), endpoint, auto, questions(), reuse=known)

    records = asyncio.run(routed())
    assert {model for model, _ in exam.asked} == {"/v1/route"}
    assert all(record.target == "auto" and record.router == "test-2" for record in records)
    assert [r.expert for r in records] == [f"{r.domain}-expert" for r in records]
    assert [r.logprobs for r in records] == [known[r.sample, r.expert].logprobs for r in records]


def test_generated_answers_that_cannot_be_read_are_wrong_and_counted(exam: Exam, tmp_path: Path) -> None:
    records = ask(exam, tmp_path, Plan("choice", ("auto", "math-expert"), method="generate"))
    assert accuracy(records, "auto") == 1.0
    assert accuracy(records, "math-expert") == 0.5
    assert totals(records)["math-expert"]["unread"] == 6


def test_experts_without_a_chat_template_get_plain_completions(exam: Exam, tmp_path: Path) -> None:
    plan = Plan("choice", ("math-expert", "health-expert"), method="generate", plain=("math-expert",))
    ask(exam, tmp_path, plan, questions(1))
    assert exam.paths == {"math-expert": "/v1/completions", "health-expert": "/v1/chat/completions"}


def test_a_second_start_asks_only_what_is_missing(exam: Exam, tmp_path: Path) -> None:
    exam.dead = {"math-expert"}
    plan = Plan("choice", PLAN.targets, method="generate")
    first = ask(exam, tmp_path, plan)
    assert sum(bool(record.error) for record in first) == 12
    exam.dead = set()
    exam.asked.clear()
    second = ask(exam, tmp_path, plan)
    assert {model for model, _ in exam.asked} == {"math-expert"}
    assert not any(record.error for record in second)
    assert len(second) == 36
    with pytest.raises(RecordError, match="belongs to another run"):
        ask(exam, tmp_path, plan, questions(11))


def test_what_passes_is_tried_again(exam: Exam, tmp_path: Path) -> None:
    exam.busy = 3
    records = ask(exam, tmp_path, Plan("choice", ("auto",)), questions(2), attempts=4)
    assert not any(record.error for record in records)


def test_a_dead_endpoint_stops_the_run_and_says_so(tmp_path: Path) -> None:
    gone = Exam()
    gone.server.start()
    url = f"{gone.server.url}/v1"
    gone.server.stop()
    with pytest.raises(RunStoppedError, match=f"auto did not answer {GONE_LIMIT} questions in a row.*start again"):
        ask_url(url, tmp_path, Plan("choice", ("auto",)), questions(60), attempts=1)
    assert 0 < len(RunFolder(tmp_path).records()) < 60


def test_a_target_that_changes_its_model_is_marked(exam: Exam, tmp_path: Path) -> None:
    plan = Plan("choice", ("math-expert",), method="generate")
    ask(exam, tmp_path, plan, questions(2))
    exam.renamed = {"math-expert": "other"}

    async def both() -> list[Record]:
        async with Endpoint(f"{exam.server.url}/v1") as endpoint:
            samples = [*questions(1), Sample("swap", "math [A]", "math", "A", ("x", "y"))]
            exam.renamed = {}
            folder = RunFolder(tmp_path / "second")

            def swap(record: Record) -> None:
                exam.renamed = {"math-expert": "other"}

            return await run(folder, endpoint, plan, samples, concurrency=1, advance=swap)

    first, second = asyncio.run(both())
    assert first.error == ""
    assert second.correct is None
    assert "answered as 'math-expert' before and as 'other' now" in second.error


def test_maths_code_and_perplexity(exam: Exam, tmp_path: Path) -> None:
    maths = ask(exam, tmp_path / "m", Plan("math", ("math-expert",)), [Sample("m", "math [1,234]", "math", "1234")])
    assert (maths[0].answer, maths[0].correct) == (None, False)  # "1,234" is no word the scripted model repeats
    maths = ask(exam, tmp_path / "n", Plan("math", ("math-expert",)), [Sample("m", "math [42]", "math", "42.0")])
    assert (maths[0].answer, maths[0].correct) == ("42", True)
    text = [Sample("p", "four words of text", "d", "")]
    (scored,) = ask(exam, tmp_path / "p", Plan("perplexity", ("math-expert",)), text)
    assert (scored.logprobs, scored.prompt_tokens, scored.correct, scored.error) == ((-6.0,), 3, None, "")


def test_worked_examples_must_be_others(exam: Exam, tmp_path: Path) -> None:
    async def leaking() -> None:
        async with Endpoint(f"{exam.server.url}/v1") as endpoint:
            plan = Plan("choice", ("auto",), style=Style(shots=1))
            await run(RunFolder(tmp_path), endpoint, plan, questions(2), examples=questions(1))

    with pytest.raises(ValueError, match="a worked example is one of the questions"):
        asyncio.run(leaking())


def test_prices_by_card_or_by_parameters() -> None:
    backend = {"kind": "remote", "url": "http://127.0.0.1:9", "model": "m"}
    priced = parse_card({"name": "a", "backend": backend, "cost": {"input": 1, "output": 10}})
    sized = parse_card({"name": "b", "backend": backend, "cost": {"active_parameters": 7}})
    assert card_prices([priced])("a", 1000, 100) == pytest.approx(0.002)
    assert card_prices([priced, sized])("b", 10, 2) == 84
    assert card_prices([priced])("unknown", 10, 2) == 0
    adapter = {"kind": "adapter", "engine": "b", "adapter": "/a"}
    assert card_prices([sized, parse_card({"name": "c", "backend": adapter})])("c", 10, 2) == 84


def test_the_command_asks_judges_and_resumes(exam: Exam, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    rows = [
        {"id": s.id, "question": s.prompt, "choices": s.choices, "answer": s.target, "domain": s.domain}
        for s in questions(24)
    ]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["run", "--task", str(task), "--endpoint", f"{exam.server.url}/v1", "--out", str(tmp_path / "run")]
    options += ["--targets", "auto,math-expert,health-expert", "--generalist", "math-expert"]
    shown = CliRunner().invoke(command, options, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "Routing pays: 100.0 % against" in shown.output
    count = len(exam.asked)
    as_json = CliRunner().invoke(command, [*options, "--json"], catch_exceptions=False)
    assert len(exam.asked) == count
    data = json.loads(as_json.stdout)
    assert data["judgement"]["accuracies"]["routed"] == 1.0
    assert data["judgement"]["against_generalist"]["only_a"] == 8
    assert data["judgement"]["traffic"] == {"health-expert": 0.5, "math-expert": 0.5}
    broken = CliRunner().invoke(command, [*options[:-1], "nobody"])
    assert broken.exit_code == 1
    assert "no expert 'nobody'" in broken.output
