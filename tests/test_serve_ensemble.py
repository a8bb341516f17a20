"""Ensembles in scoring: mixtures worked by hand to 1e-9, what fails, what is refused, who pays, who may."""

from __future__ import annotations

import json
import math
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
from collegium.experts.registry import KeyScope
from collegium.router.decision import Candidate, Decision, Needs, Policy
from collegium.router.posterior import Posterior
from collegium.router.shortlist import Shortlist
from collegium.serve.ensemble import members
from collegium.serve.routing import Route
from faults import behaviours as do
from faults.expert import Behaviour, Exchange
from faults.kit import Lab, laboratory

HEADER = "x-collegium-ensemble"
# What each model gives a token; one that is not here is as likely as not.
MATH = {"one": 0.5, "two": 0.25, "six": 0.125, "END": 0.7}
CODING = {"one": 0.1, "two": 0.75, "six": 0.3, "END": 0.2}
GENERAL = {"one": 0.2, "two": 0.3, "six": 0.4, "END": 0.1}
# By the keyword router: math 4.1, coding 2.1, general 0.1 parts of 6.3.
QUESTION = "sum prime python:"
TO_MATH, TO_CODING = 4.1 / 6.2, 2.1 / 6.2


def scored(
    index: int, text: str, chances: Mapping[str, float], says: str | None, listed: Mapping[str, float]
) -> object:
    """One echoed text as vLLM tells of it: a word is a token, and the first has no log-probability."""
    tokens = [*re.findall(r"\s*\S+", text), *([says] if says else [])]
    values = [None, *(math.log(chances.get(token.strip(), 0.5)) for token in tokens[1:])]
    others = {token: math.log(chance) for token, chance in listed.items()}
    offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    tops = [None, *({token: value, **others} for token, value in zip(tokens[1:], values[1:], strict=True))]
    logprobs = {"tokens": tokens, "token_logprobs": values, "text_offset": offsets, "top_logprobs": tops}
    return {"index": index, "text": text + (says or ""), "logprobs": logprobs, "finish_reason": "length"}


def scoring(says: Mapping[str, str] = {}, spoil: Mapping[str, object] = {}) -> Behaviour:
    """Answers as a scorer; math and coding are one port and told by `model`. `says` and `spoil` are by expert."""

    async def behave(exchange: Exchange) -> None:
        body = exchange.attempt.body
        spare = exchange.expert.window == 1
        expert = "general" if spare else "coding" if body["model"] == "coding" else "math"
        chances = {"math": MATH, "coding": CODING, "general": GENERAL}[expert]
        listed = {" both": chances["two"], f" only {expert}": 0.01}
        texts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        last = says.get(expert, " END") if body["max_tokens"] else None
        choices = [scored(index, text, chances, last, listed) for index, text in enumerate(texts)]
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        answer = {"id": f"up-{expert}", "object": "text_completion", "created": 7, "model": "m", "choices": choices}
        if spoil.get(expert):
            answer |= spoil[expert](answer)  # type: ignore[operator]
        answer.setdefault("usage", usage)
        await exchange.respond(200, "application/json", json.dumps(answer).encode())

    return behave


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with laboratory(Path(tmp_path_factory.mktemp("ensemble"))) as started:
        prepare(started)
        yield started


def prepare(lab: Lab) -> None:
    lab.main.always = lab.spare.always = scoring()
    lab.spare.window = 1  # by which its behaviour knows it


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


def body(tag: str, question: str = QUESTION, /, **changes: object) -> dict[str, object]:
    texts = [f"{tag} {question} one two", f"{tag} {question} six"]
    return {"model": "auto", "prompt": texts, "echo": True, "logprobs": 1, "max_tokens": 0, **changes}


def score(lab: Lab, sent: Mapping[str, object], experts: object = 2, **headers: str) -> httpx2.Response:
    asked = {HEADER: str(experts), **headers}
    return lab.http.post(f"{lab.url}/v1/completions", json=sent, headers=asked)


def last(answer: httpx2.Response, choice: int, count: int) -> list[float]:
    assert answer.status_code == 200, answer.text
    values: list[float] = answer.json()["choices"][choice]["logprobs"]["token_logprobs"]
    return values[-count:]


def log(lab: Lab, answer: httpx2.Response) -> Mapping[str, object]:
    return lab.settled().requests[answer.headers["x-request-id"]]


def test_a_worked_example(lab: Lab, tag: str) -> None:
    answer = score(lab, body(tag))
    by_hand = [TO_MATH * 0.5 + TO_CODING * 0.1, TO_MATH * 0.25 + TO_CODING * 0.75]
    assert last(answer, 0, 2) == pytest.approx([math.log(chance) for chance in by_hand], abs=1e-9)
    assert last(answer, 1, 1) == pytest.approx([math.log(TO_MATH * 0.125 + TO_CODING * 0.3)], abs=1e-9)
    told = answer.json()
    first = told["choices"][0]["logprobs"]
    assert first["token_logprobs"][0] is None and first["top_logprobs"][0] is None
    assert first["token_logprobs"][1] == pytest.approx(math.log(0.5), abs=1e-9)
    assert first["tokens"][-2:] == [" one", " two"] and first["text_offset"][1] == len(tag)
    # Only what both list can be mixed, and a token's own value is the same to the last bit.
    assert set(first["top_logprobs"][-1]) == {" two", " both"}
    assert first["top_logprobs"][-1][" two"] == first["token_logprobs"][-1]
    assert first["top_logprobs"][-2][" both"] == pytest.approx(math.log(by_hand[1]), abs=1e-9)


def test_who_answered_at_what_cost_is_told(lab: Lab, tag: str) -> None:
    answer = score(lab, body(tag))
    told = answer.json()
    assert told["model"] == answer.headers["x-collegium-expert"] == "math,coding"
    assert told["usage"] == {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
    assert answer.headers[HEADER] == "math=0.6613,coding=0.3387"
    assert answer.headers["x-collegium-reason"] == "mixed: math=0.6613,coding=0.3387"
    assert (answer.headers["x-collegium-attempts"], answer.headers["x-collegium-domain"]) == ("2", "math")
    line = log(lab, answer)
    assert (line["expert"], line["end"], line["prompt_tokens"]) == ("ensemble", "completed", 20)
    attempts = line["attempts"]
    assert isinstance(attempts, list)
    assert {(one["expert"], one["result"]) for one in attempts} == {("math", "ok"), ("coding", "ok")}
    assert {one.body["model"] for one in lab.main.of(tag)} == {"scripted", "coding"}
    assert not any(HEADER in one.headers for one in lab.main.of(tag))


def test_three_experts_and_one(lab: Lab, tag: str) -> None:
    three = score(lab, body(tag), 3)
    by_hand = (4.1 * 0.125 + 2.1 * 0.3 + 0.1 * 0.4) / 6.3
    assert last(three, 1, 1) == pytest.approx([math.log(by_hand)], abs=1e-9)
    assert three.headers["x-collegium-expert"] == "math,coding,general"
    # More than the domains have: all are asked.
    assert score(lab, body(tag), 8).json()["choices"] == three.json()["choices"]
    one = score(lab, body(tag), 1)
    assert last(one, 1, 1) == pytest.approx([math.log(0.125)], abs=1e-12)
    assert one.headers[HEADER] == "math=1.0000" and "x-collegium-attempts" not in one.headers


def test_the_official_client(lab: Lab, tag: str) -> None:
    with openai.OpenAI(base_url=f"{lab.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="auto",
            prompt=f"{tag} {QUESTION} six",
            echo=True,
            logprobs=0,
            max_tokens=0,
            extra_headers={HEADER: "2"},
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[-1] == pytest.approx(math.log(TO_MATH * 0.125 + TO_CODING * 0.3), abs=1e-9)
    assert answer.choices[0].text == f"{tag} {QUESTION} six"


def test_a_token_too_many_is_mixed_where_all_say_the_same(lab: Lab, tag: str) -> None:
    same = score(lab, body(tag, max_tokens=1))
    assert last(same, 1, 1) == pytest.approx([math.log(TO_MATH * 0.7 + TO_CODING * 0.2)], abs=1e-9)
    lab.main.plan(f"{tag}-2", *[scoring({"math": " both"})] * 2)
    listed = score(lab, body(f"{tag}-2", max_tokens=1))
    assert listed.json()["choices"][1]["logprobs"]["tokens"][-2:] == [" six", " both"]
    assert last(listed, 1, 1) == pytest.approx([math.log(TO_MATH * 0.25 + TO_CODING * 0.75)], abs=1e-9)
    lab.main.plan(f"{tag}-3", *[scoring({"math": " another"})] * 2)
    unknown = score(lab, body(f"{tag}-3", max_tokens=1))
    scored, generated = last(unknown, 1, 2)
    assert scored == pytest.approx(math.log(TO_MATH * 0.125 + TO_CODING * 0.3), abs=1e-9)
    assert generated is None


def test_choices_go_by_their_index(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, *[scoring(spoil={"math": lambda answer: {"choices": answer["choices"][::-1]}})] * 2)
    answer = score(lab, body(tag))
    assert last(answer, 1, 1) == pytest.approx([math.log(TO_MATH * 0.125 + TO_CODING * 0.3)], abs=1e-9)


MIXED = "sum prime hello:"  # math 4.1, general 2.1: one at each port


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (do.status(500), "upstream_invalid_response: math"),
        (do.reset, "upstream_invalid_response: math"),
        (do.refusal(400, "too long"), ""),
        (scoring(spoil={"math": lambda answer: {"choices": [{"index": 0, "text": "x", "logprobs": None}]}}),
         "upstream_invalid_response: math gives no log-probabilities of the texts"),
        (scoring(spoil={"math": lambda answer: {"choices": answer["choices"][:1]}}),
         "upstream_invalid_response: math did not answer every text once"),
    ],
    ids=["error", "reset", "refusal", "no-logprobs", "too-few"],
)  # fmt: skip
def test_one_that_fails_is_left_out(lab: Lab, tag: str, fault: Behaviour, code: str) -> None:
    lab.main.plan(tag, fault, fault, fault)
    answer = score(lab, body(tag, MIXED))
    assert last(answer, 1, 1) == pytest.approx([math.log(0.4)], abs=1e-9)
    assert answer.headers["x-collegium-expert"] == answer.json()["model"] == "general"
    assert answer.headers[HEADER] == "general=1.0000"
    assert f"mixed: general=1.0000; without math: {code}" in answer.headers["x-collegium-reason"]
    assert answer.json()["usage"]["total_tokens"] == 11
    assert log(lab, answer)["end"] == "completed"


def test_of_three_the_two_left_share_its_weight(lab: Lab, tag: str) -> None:
    lab.spare.plan(tag, do.status(500))
    answer = score(lab, body(tag), 3)
    assert answer.headers[HEADER] == "math=0.6613,coding=0.3387"
    assert last(answer, 1, 1) == pytest.approx([math.log(TO_MATH * 0.125 + TO_CODING * 0.3)], abs=1e-9)


def test_a_busy_one_is_asked_again(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, do.status(503, retry_after="0"))
    answer = score(lab, body(tag, MIXED))
    assert answer.headers[HEADER] == "math=0.6613,general=0.3387"
    assert answer.headers["x-collegium-attempts"] == "3"


def test_all_fail(lab: Lab, tag: str) -> None:
    before = lab.app.ledger.ended.copy()
    lab.main.plan(tag, do.status(500))
    lab.spare.plan(tag, do.status(500))
    answer = score(lab, body(tag, MIXED))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_invalid_response")
    assert "math" in answer.json()["error"]["message"]
    line = log(lab, answer)
    assert line["end"] == "failed_before_first_byte" and len(line["attempts"]) == 2  # type: ignore[arg-type]
    assert (lab.app.ledger.ended - before).total() == 1


def test_other_tokens_cannot_be_mixed(lab: Lab, tag: str) -> None:
    def split(answer: dict[str, list[dict[str, dict[str, list[object]]]]]) -> dict[str, object]:
        answer["choices"][1]["logprobs"]["tokens"][1] = " s"
        return {}

    def unscored(answer: dict[str, list[dict[str, dict[str, list[object]]]]]) -> dict[str, object]:
        answer["choices"][1]["logprobs"]["token_logprobs"][1] = None
        return {}

    for number, (spoil, words) in enumerate([(split, "only experts of one base"), (unscored, "same tokens")]):
        name = f"{tag}-{number}"
        lab.main.plan(name, scoring(spoil={"math": spoil}))
        answer = score(lab, body(name, MIXED))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_invalid_response")
        assert words in answer.json()["error"]["message"]
        assert "math and general" in answer.json()["error"]["message"]


def test_usage_that_one_does_not_count_is_left_out(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, scoring(spoil={"math": lambda _: {"usage": None}}))
    answer = score(lab, body(tag, MIXED))
    assert answer.status_code == 200 and "usage" not in answer.json()


def test_a_client_that_leaves_ends_all(lab: Lab, tag: str) -> None:
    lab.main.plan(tag, do.hang, do.hang)
    lab.spare.plan(tag, do.hang)
    lab.settled()
    before = lab.app.ledger.ended.copy()
    sent = json.dumps(body(tag)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{HEADER}: 3\r\n"
    with socket.create_connection(("127.0.0.1", lab.port)) as connection:
        connection.sendall(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
        until = time.monotonic() + 30
        while len(lab.main.of(tag)) < 2 or not lab.spare.of(tag):  # all are asked at the same time
            assert time.monotonic() < until
            time.sleep(0.005)
    lab.await_left(*lab.main.of(tag), *lab.spare.of(tag))
    log = lab.settled()
    assert {end.value: count for end, count in (lab.app.ledger.ended - before).items()} == {"client_cancelled": 1}
    attempts = log.requests[lab.spare.of(tag)[0].id]["attempts"]
    assert isinstance(attempts, list)
    assert [one["result"] for one in attempts] == ["cancelled"] * 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"echo": False}, "echo"),
        ({"echo": None}, "echo"),
        ({"logprobs": None}, "logprobs"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"model": "math"}, "model"),
        ({"model": "unknown"}, "model"),
    ],
)
def test_what_is_no_scoring_request(lab: Lab, tag: str, changes: dict[str, object], field: str) -> None:
    answer = score(lab, body(tag, **changes))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert HEADER in answer.json()["error"]["message"]
    assert log(lab, answer)["end"] == "refused"


@pytest.mark.parametrize("experts", ["0", "9", "two", "", "-1", "2.0", "10", "²"])
def test_a_number_of_experts_that_is_none(lab: Lab, tag: str, experts: str) -> None:
    answer = lab.http.post(
        f"{lab.url}/v1/completions", json=body(tag), headers=[(HEADER.encode(), experts.encode("latin-1"))]
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, HEADER)
    twice = lab.http.post(f"{lab.url}/v1/completions", json=body(tag), headers=[(HEADER, "2"), (HEADER, "2")])
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, HEADER)


def test_other_paths(lab: Lab, tag: str) -> None:
    chat = lab.http.post(f"{lab.url}/v1/chat/completions", json=lab.body("hello"), headers={HEADER: "2"})
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, HEADER)
    route = lab.http.post(f"{lab.url}/v1/route", json=body(tag), headers={HEADER: "2"})
    assert route.json() == lab.http.post(f"{lab.url}/v1/route", json=body(tag)).json()
    assert route.json()["expert"] == "math" and HEADER not in route.headers


def test_without_a_posterior_the_generalist_stands_alone(lab: Lab) -> None:
    answer = score(lab, body("explode"))
    assert answer.headers[HEADER] == "general=1.0000"
    assert answer.headers["x-collegium-reason"].startswith("classifier_error")
    assert last(answer, 1, 1) == pytest.approx([math.log(0.4)], abs=1e-9)


def test_a_key_mixes_only_what_it_may_ask_and_pays_for_all(tmp_path: Path, tag: str) -> None:
    with laboratory(tmp_path) as lab:
        prepare(lab)
        lab.registry.add_key("some", "sk-some", KeyScope(frozenset({"math", "general"})))
        lab.registry.add_key("one", "sk-one", KeyScope(frozenset({"math"})))
        lab.registry.add_key("poor", "sk-poor", KeyScope(tokens_per_minute=50))

        def asked(secret: str, experts: int) -> httpx2.Response:
            return score(lab, body(tag), experts, authorization=f"Bearer {secret}")

        until = time.monotonic() + 60
        while asked("sk-none", 2).status_code != 401:
            assert time.monotonic() < until
            time.sleep(0.05)
        # What coding would answer is the generalist's without it.
        some = asked("sk-some", 3)
        assert some.headers[HEADER] == f"math={4.1 / 6.3:.4f},general={2.2 / 6.3:.4f}"
        one = asked("sk-one", 3)
        assert one.headers[HEADER] == "math=1.0000"
        estimate = sum(map(len, body(tag)["prompt"])) // 4  # type: ignore[call-overload]
        assert estimate <= 50 < 2 * estimate
        assert asked("sk-poor", 2).json()["error"]["code"] == "insufficient_quota"
        assert asked("sk-poor", 1).status_code == 200


POSTERIOR = Posterior(("math", "coding", "general"), (0.5, 0.3, 0.2), threshold=0.9)
POOL = (
    Candidate("general", {}, generalist=True),
    Candidate("math", {"math": 0.9}, admitted=frozenset({"math"})),
    Candidate("coding", {"coding": 0.9}, admitted=frozenset({"coding"}), ready=False),
)


def chosen(posterior: Posterior | None, most: int, pool: tuple[Candidate, ...] = POOL) -> dict[str, float]:
    decision = Decision("general", "math", 0.5, abstained=True, reason="unsure")
    return members(Route(decision, posterior, "r"), Shortlist(pool), Policy(), Needs(tokens=100), most)


def test_domains_count_for_those_that_would_answer_them() -> None:
    """Unsure is what mixing is for, so the threshold does not matter; the one that is not ready has no part."""
    assert chosen(POSTERIOR, 2) == pytest.approx({"general": 0.5, "math": 0.5}, abs=1e-12)
    assert list(chosen(POSTERIOR, 2)) == ["general", "math"]
    ready = (*POOL[:2], replace(POOL[2], ready=True))
    assert chosen(POSTERIOR, 2, ready) == pytest.approx({"math": 0.625, "coding": 0.375}, abs=1e-12)
    small = (POOL[0], replace(POOL[1], context_window=99), ready[2])
    assert chosen(POSTERIOR, 8, small) == pytest.approx({"general": 0.7, "coding": 0.3}, abs=1e-12)


def test_a_domain_that_nobody_may_answer_does_not_count() -> None:
    assert chosen(POSTERIOR, 2, POOL[1:]) == {"math": 1.0}


def test_a_novel_prompt_is_the_generalists() -> None:
    assert chosen(replace(POSTERIOR, novelty=0.99, novelty_limit=0.95), 3) == {"general": 1.0}
    assert chosen(None, 3) == {"general": 1.0}
