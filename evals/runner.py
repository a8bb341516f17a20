"""The runner: asks every target every question, some at a time, and keeps what came back; a second start resumes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..experts.card import Card, own_cost
from .endpoint import Endpoint, EndpointError, Reply
from .records import Record, RecordWriter, RunFolder, Sample
from .sandbox import run_tests
from .scoring import best_choice, per_character, read_choice, read_number
from .tasks import LETTERS, Style, choice_prompt, cloze_prompt, open_prompt

Method = Literal["logprob", "generate"]
Score = Literal["letter", "text"]
PriceOf = Callable[[str, int, int], float]
"""(expert, prompt tokens, completion tokens) -> cost."""

GONE_LIMIT = 20
"""A target that nothing answers for so many questions in a row is taken for dead."""


class RunStoppedError(RuntimeError):
    """The run ended early; what is done is kept, and the message says how to go on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked: `kind` as in tasks.KINDS; `chat` uses the chat template, else plain completion, which
    the targets in `plain` get in any case.

    `letter_tokens` are the ids of " A", " B", ... in the experts' tokenizer: letters that are not among the most
    probable next tokens are then scored by forcing them instead of by echo. `answer_only` asks for the most probable
    letter alone: one call, the same answer, no log-probabilities. `score` "text" goes by the log-probabilities of the
    choices' texts after the question alone, in one call; the choices are then not shown.
    """

    kind: str
    targets: tuple[str, ...]
    method: Method = "logprob"
    style: Style = field(default_factory=Style)
    chat: bool = True
    max_tokens: int = 512
    seed: int = 0
    letter_tokens: tuple[int, ...] = ()
    answer_only: bool = False
    score: Score = "letter"
    plain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.answer_only and not self.letter_tokens:
            raise ValueError("answer_only needs letter_tokens, the ids of the letters in the experts' tokenizer")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets {list(self.targets)}: name each once, and at least one")


@dataclass(slots=True)
class _Run:
    """State of one start: what dies and what changes its model id is seen across questions."""

    endpoint: Endpoint
    plan: Plan
    examples: Sequence[Sample]
    price: PriceOf
    reuse: Mapping[tuple[str, str], Record]
    models: dict[str, str] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    echo_only: set[str] = field(default_factory=set)


async def run(
    folder: RunFolder,
    endpoint: Endpoint,
    plan: Plan,
    samples: Sequence[Sample],
    examples: Sequence[Sample] = (),
    price: PriceOf | None = None,
    concurrency: int = 8,
    advance: Callable[[Record], None] | None = None,
    reuse: Mapping[tuple[str, str], Record] | None = None,
) -> list[Record]:
    """Ask what `folder` does not hold yet; returns all records. `examples` are the worked ones of few-shot prompts.

    `reuse` holds records of experts by (sample, expert): where `auto` chooses one of them for texts to score, the
    endpoint is asked for the route alone.

    Raises:
        RunStoppedError: a target is dead.
        RecordError: the folder is another run's, or the disk is full.
    """
    if plan.style.shots > len(examples):
        raise ValueError(f"{plan.style.shots} shots of {len(examples)} worked examples; give as many")
    if {sample.id for sample in samples} & {example.id for example in examples}:
        raise ValueError("a worked example is one of the questions; take them from another split")
    state = _Run(endpoint, plan, examples, price or (lambda expert, read, written: 0.0), reuse or {})
    with folder.open(asdict(plan), samples) as writer:
        done = {(record.sample, record.target) for record in folder.records() if not record.error}
        jobs = iter([(s, t) for s in samples for t in plan.targets if (s.id, t) not in done])
        workers = [asyncio.create_task(_work(state, jobs, writer, advance)) for _ in range(max(1, concurrency))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return folder.records()


def letter_tokens(tokenizer: Path) -> tuple[int, ...]:
    """Ids of " A", " B", ... by a tokenizer.json, for `Plan`.

    Raises:
        ValueError: it cannot be read, or a letter is not one token.
    """
    from tokenizers import Tokenizer

    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise ValueError(f"{file} is no file; give a tokenizer.json or its folder")
    reader = Tokenizer.from_file(str(file))
    ids = [reader.encode(f" {letter}", add_special_tokens=False).ids for letter in LETTERS]
    if any(len(found) != 1 for found in ids):
        raise ValueError(f"{file} does not read every letter after a blank as one token")
    return tuple(found[0] for found in ids)


def card_prices(cards: Sequence[Card]) -> PriceOf:
    """Dollars by the cards' prices; where one card has none, billions of active parameters times tokens for all."""
    known = {card.name: card for card in cards}
    costs = {name: own_cost(card, known) for name, card in known.items()}
    priced = all(cost.input is not None and cost.output is not None for cost in costs.values())

    def price(expert: str, read: int, written: int) -> float:
        cost = costs.get(expert)
        if cost is None:
            return 0.0
        if priced:
            return ((cost.input or 0.0) * read + (cost.output or 0.0) * written) / 1e6
        return (cost.active_parameters or 0.0) * (read + written)

    return price


async def _work(
    state: _Run,
    jobs: Iterator[tuple[Sample, str]],
    writer: RecordWriter,
    advance: Callable[[Record], None] | None,
) -> None:
    for sample, target in jobs:
        record = await _record(state, sample, target)
        writer.append(record)
        if advance is not None:
            advance(record)


async def _record(state: _Run, sample: Sample, target: str) -> Record:
    """Ask and judge; an answer that cannot be used becomes a row that says why and is asked again next time."""
    try:
        record = await _judged(state, sample, target)
    except EndpointError as error:
        state.gone[target] = state.gone.get(target, 0) + 1 if error.gone else 0
        if state.gone[target] >= GONE_LIMIT:
            raise RunStoppedError(
                f"{target} did not answer {GONE_LIMIT} questions in a row ({error}); start again to resume"
            ) from error
        return Record(sample.id, sample.domain, target, "", None, error=str(error))
    state.gone[target] = 0
    if target != "auto" and state.models.setdefault(target, record.expert) != record.expert:
        changed = f"asked {target}, answered as {state.models[target]!r} before and as {record.expert!r} now"
        return replace(record, correct=None, error=changed)
    return replace(record, cost=state.price(record.expert, record.prompt_tokens, record.completion_tokens))


async def _judged(state: _Run, sample: Sample, target: str) -> Record:
    plan = state.plan
    if plan.kind == "perplexity":
        reply = await state.endpoint.score(target, "", sample.prompt)
        return replace(_base(sample, target, reply), logprobs=(reply.logprob,), prompt_tokens=reply.tokens)
    if plan.kind == "choice" and plan.method == "logprob":
        scored = _scored_texts if plan.score == "text" else _scored
        return await scored(state, sample, target)
    reply = await _generated(state, sample, target)
    record = replace(_base(sample, target, reply), output=reply.text)
    if plan.kind == "choice":
        answer = read_choice(reply.text, len(sample.choices))
        return replace(record, answer=answer, correct=answer == sample.target)
    if plan.kind == "math":
        answer = read_number(reply.text)
        return replace(record, answer=answer, correct=answer is not None and answer == read_number(sample.target))
    ran = await asyncio.to_thread(run_tests, _code(reply.text), sample.target)
    return replace(record, answer=ran.reason or "passed", correct=ran.passed)


async def _scored_texts(state: _Run, sample: Sample, target: str) -> Record:
    """By the log-probabilities of the choices' texts, all in one request."""
    context = cloze_prompt(sample, state.examples, state.plan.style)
    if target == "auto" and state.reuse:
        prompts = [f"{context} {choice}" for choice in sample.choices]
        expert, router = await state.endpoint.route(prompts)
        known = state.reuse.get((sample.id, expert))
        if known is not None and known.logprobs:
            return replace(known, target=target, router=router)
    reply, found = await state.endpoint.score_all(target, context, [f" {choice}" for choice in sample.choices])
    logprobs = tuple(one.total for one in found)
    answer = LETTERS[best_choice(logprobs)]
    base = replace(_base(sample, target, reply), completion_tokens=0)
    return replace(base, logprobs=logprobs, answer=answer, correct=answer == sample.target)


async def _scored(state: _Run, sample: Sample, target: str) -> Record:
    """By the log-probabilities of the letters; the expert that scored the first scores the others.

    Letters among the most probable next tokens are read from one call; what is not there is forced or scored by echo,
    which gives the same numbers at a call each.
    """
    context = choice_prompt(sample, state.examples, state.plan.style)
    letters = [f" {letter}" for letter in LETTERS[: len(sample.choices)]]
    if state.plan.answer_only:
        reply = await state.endpoint.likeliest(target, context, state.plan.letter_tokens[: len(letters)])
        if reply.text not in letters:
            raise EndpointError(f"{target} answers {reply.text[:40]!r} where only letters are allowed")
        answer = reply.text.strip()
        return replace(_base(sample, target, reply), answer=answer, correct=answer == sample.target)
    replies, known = await _next_letters(state, target, context)
    tokens = state.plan.letter_tokens[: len(letters)] or [None] * len(letters)
    for letter, token in zip(letters, tokens, strict=True):
        if letter in known:
            continue
        same = replies[0].expert if target == "auto" and replies else target
        if token is None:
            replies.append(await state.endpoint.score(same, context, letter))
        else:
            replies.append(await state.endpoint.forced(same, context, token, letter))
        known[letter] = replies[-1].logprob
    logprobs = tuple(known[letter] for letter in letters)
    answer = LETTERS[best_choice(logprobs)]
    return replace(
        _base(sample, target, replies[0]),
        logprobs=logprobs,
        answer=answer,
        correct=answer == sample.target,
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=0,
        seconds=sum(reply.seconds for reply in replies),
    )


async def _next_letters(state: _Run, target: str, context: str) -> tuple[list[Reply], dict[str, float]]:
    """One call's answer; a target that refuses it, or names no letter, is not asked this way again."""
    if target in state.echo_only:
        return [], {}
    try:
        reply, known = await state.endpoint.next_tokens(target, context)
    except EndpointError as error:
        if error.gone:
            raise
        known = {}
        reply = None
    if reply is None or not known:
        state.echo_only.add(target)
        return [], {}
    return [reply], dict(known)


async def _generated(state: _Run, sample: Sample, target: str) -> Reply:
    plan = state.plan
    if plan.kind == "code":
        prompt = sample.prompt
    else:
        prompt = (choice_prompt if plan.kind == "choice" else open_prompt)(sample, state.examples, plan.style)
    ask = state.endpoint.chat if plan.chat and target not in plan.plain else state.endpoint.complete
    return await ask(target, prompt, plan.max_tokens, plan.seed)


def _base(sample: Sample, target: str, reply: Reply) -> Record:
    return Record(
        sample=sample.id,
        domain=sample.domain,
        target=target,
        expert=reply.expert,
        correct=None,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=reply.seconds,
        router=reply.router,
    )


def judged_per_character(samples: Sequence[Sample], records: Sequence[Record]) -> list[Record]:
    """Records of texts scored, judged by the log-probability a character instead of the sum."""
    asked = {sample.id: sample for sample in samples}
    judged = []
    for record in records:
        if record.logprobs and record.sample in asked:
            sample = asked[record.sample]
            answer = LETTERS[best_choice(per_character(record.logprobs, sample.choices))]
            record = replace(record, answer=answer, correct=answer == sample.target)
        judged.append(record)
    return judged


def _code(output: str) -> str:
    """The last fenced block, else the whole output."""
    parts = output.split("```")
    return parts[-2].removeprefix("python").removeprefix("py") if len(parts) >= 3 else output


def totals(records: Sequence[Record]) -> Mapping[str, Mapping[str, float]]:
    """Per target: questions, failed and unread ones, tokens, seconds and cost."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        row = found.setdefault(
            record.target, dict.fromkeys(("questions", "failed", "unread", "tokens", "seconds", "cost"), 0.0)
        )
        row["questions"] += 1
        row["failed"] += bool(record.error)
        row["unread"] += record.correct is not None and record.answer is None
        row["tokens"] += record.prompt_tokens + record.completion_tokens
        row["seconds"] += record.seconds
        row["cost"] += record.cost
    return found
