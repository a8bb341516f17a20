"""One expert at several URLs: which is asked, where failures and cut streams go, and that one's fault stays its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from collegium.experts.backends import RemoteBackend
from collegium.experts.card import Card, parse_card
from collegium.experts.networks import Networks
from collegium.experts.registry import State
from faults import behaviours as do
from faults.expert import Behaviour, Exchange, Expert, answer
from faults.kit import QUICK, Lab, Reply, laboratory
from faults.test_recovery import begun, process, said

LONG = "60 tokens"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with laboratory(Path(tmp_path_factory.mktemp("lab")), replace(QUICK, retry_reserve=1e6)) as started:
        twin(started)
        yield started


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A first word that no other test's prompt has."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))


def twin_card(*urls: str, **more: object) -> Card:
    backend = {"kind": "remote", "urls": urls, "model": "scripted", "continues": True}
    return parse_card({"name": "twin", "backend": backend, **more})


def twin(lab: Lab, *urls: str, **more: object) -> None:
    """An expert whose replicas are the laboratory's two, or these; returns when the edge has it."""
    card = twin_card(*(urls or (lab.main.url, lab.spare.url)), **more)
    lab.registry.add(card)
    assert isinstance(card.backend, RemoteBackend)
    answering(lab, *(address.url for address in card.backend.addresses))
    while "twin" not in {model["id"] for model in lab.http.get(f"{lab.url}/v1/models").json()["data"]}:
        time.sleep(0.02)


def answering(lab: Lab, *urls: str) -> None:
    lab.registry.observe("twin", State.READY, base_url=" ".join(urls))


def only_asked(lab: Lab, expert: Expert) -> None:
    """Until the edge has seen the change: replicas alike take turns, so two in a row at one show it."""
    row = 0
    while row < 2:
        before = len(expert.attempts)
        assert lab.ask("is it so yet", "twin").status == 200
        row = row + 1 if len(expert.attempts) > before else 0
        time.sleep(0.02)


def once(behaviour: Behaviour) -> Behaviour:
    """The first request goes wrong, whichever replica it reaches."""
    left = [behaviour]

    async def behave(exchange: Exchange) -> None:
        await (left.pop() if left else answer)(exchange)

    return behave


def both(lab: Lab, tag: str, *behaviours: Behaviour) -> None:
    for expert in (lab.main, lab.spare):
        expert.plan(tag, *behaviours)


def urls(lab: Lab, reply: Reply) -> list[str]:
    attempts = lab.logged(reply)["attempts"]
    assert isinstance(attempts, list)
    return [attempt["url"] for attempt in attempts]


ELSEWHERE: dict[str, Behaviour] = {
    "429": do.status(429, retry_after="30"), "500": do.status(500), "503": do.status(503), "401": do.status(401),
    "reset": do.reset, "close": do.close, "html": do.whole(b"<html>", "text/html"), "late": do.hang,
    "role-then-cut": do.broken(1),
}  # fmt: skip


WAITED = ("late", "role-then-cut")


@pytest.mark.parametrize(
    ("fault", "stream"),
    # Unstreamed, a late answer has no deadline but the whole one, and there is no role before the content.
    [*((fault, True) for fault in ELSEWHERE), *((fault, False) for fault in ELSEWHERE if fault not in WAITED)],
)
def test_c01_c07_a_failure_before_the_first_byte_goes_to_the_sibling(
    lab: Lab, tag: str, fault: str, stream: bool
) -> None:
    shared = once(ELSEWHERE[fault])
    both(lab, tag, shared, shared)
    reply = lab.ask(f"{tag} {LONG}", "twin", stream=stream)
    assert (reply.status, reply.text, reply.done) == (200, lab.right(f"{tag} {LONG}"), True)
    assert reply.headers["x-collegium-attempts"] == "2" and reply.model == "twin"
    assert len(lab.main.of(tag)) == len(lab.spare.of(tag)) == 1
    assert sorted(urls(lab, reply)) == sorted([lab.main.url, lab.spare.url])


@pytest.mark.parametrize("fault", ["refused", "window"])
def test_c12_c13_what_is_the_requests_fault_goes_to_no_sibling(lab: Lab, tag: str, fault: str) -> None:
    code = "context_length_exceeded" if fault == "window" else "content_policy_violation"
    both(lab, tag, do.refusal(400, "no", code))
    assert lab.ask(tag, "twin").code == code
    assert len(lab.main.of(tag)) + len(lab.spare.of(tag)) == 1


def test_three_sendings_in_all(lab: Lab, tag: str) -> None:
    busy = do.status(429)
    both(lab, tag, busy, busy, busy, busy)
    assert lab.ask(tag, "twin").status == 429
    assert len(lab.main.of(tag)) + len(lab.spare.of(tag)) == 3
    both(lab, f"{tag}2", do.status(500), do.status(500))
    assert lab.ask(f"{tag}2", "twin").status == 502
    assert len(lab.main.of(f"{tag}2")) == len(lab.spare.of(f"{tag}2")) == 1


def test_c06_two_that_are_late_are_enough(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab, Expert() as third:
        lab.registry.remove("math")
        more = {"domains": {"math": 0.95}, "admitted": ["math"], "limits": {"first_token": 0.5}}
        lab.joined = False
        twin(lab, lab.main.url, third.url, **more)
        for expert in (lab.main, third):
            expert.plan("late", do.hang, do.hang)
        reply = lab.ask("late sum integral", stream=True)
        assert (reply.status, reply.code) == (504, "ttft_timeout")
        assert [expert for expert, _ in lab.attempts(reply)] == ["twin", "twin"]
        for expert in (lab.main, third):
            expert.plan("gone", do.reset, do.reset)
        assert lab.ask("gone sum integral", stream=True).model == "general"


@pytest.mark.parametrize("how", ["reset", "fin", "stall", "error", "end"])
def test_c08_c09_a_cut_stream_goes_on_at_the_sibling_exactly(lab: Lab, tag: str, how: str, seed: int) -> None:
    cut = once(do.broken(7 + seed % 40, how))
    both(lab, tag, cut, cut)
    text = f"{tag} {seed} {LONG}"
    reply = lab.ask(text, "twin", stream=True, stream_options={"include_usage": True})
    assert (reply.text, reply.done) == (lab.right(text), True)
    assert reply.usage is not None and reply.usage["completion_tokens"] >= 60
    attempts = lab.logged(reply)["attempts"]
    assert isinstance(attempts, list)
    assert [attempt["kind"] for attempt in attempts] == ["request", "continuation"]
    assert len(set(urls(lab, reply))) == 2


def test_c08_without_the_cards_word_a_remote_stream_is_not_continued(lab: Lab, tag: str) -> None:
    backend = {"kind": "remote", "urls": [lab.main.url, lab.spare.url], "model": "scripted"}
    lab.registry.add(parse_card({"name": "plain", "backend": backend}))
    lab.registry.observe("plain", State.READY, base_url=f"{lab.main.url} {lab.spare.url}")
    while "plain" not in {model["id"] for model in lab.http.get(f"{lab.url}/v1/models").json()["data"]}:
        time.sleep(0.02)
    both(lab, tag, do.broken(9))
    reply = lab.ask(f"{tag} {LONG}", "plain", stream=True)
    assert (reply.done, reply.code) == (False, "upstream_stream_truncated")
    assert not any("return_token_ids" in attempt.body for attempt in lab.main.of(tag) + lab.spare.of(tag))


def test_d02_killed_mid_stream_with_a_sibling(tmp_path: Path, seed: int) -> None:
    """Two streams are one at each replica; when one replica is killed, both come out whole."""
    settings = replace(QUICK, recovery=60, total=90)
    with process(pace=10) as (first, one), process(pace=10) as (_, two), laboratory(tmp_path, settings) as lab:
        lab.joined = False
        twin(lab, f"http://127.0.0.1:{one}/v1", f"http://127.0.0.1:{two}/v1")
        bodies = [lab.body(f"d02-{seed}-{number} 150 tokens", "twin", stream=True) for number in (0, 1)]
        with begun(lab, bodies[0]) as rest, begun(lab, bodies[1]) as other:
            first.kill()
            first.wait(60)
            answers = [said(rest()), said(other())]
        assert answers == [lab.right(f"d02-{seed}-{number} 150 tokens") for number in (0, 1)]
        kinds = []
        for fields in lab.settled().requests.values():
            attempts = fields["attempts"]
            assert isinstance(attempts, list)
            if not attempts:
                continue  # looked for the expert's name
            kinds.append([(attempt["kind"], attempt["result"]) for attempt in attempts])
            assert attempts[-1]["url"].endswith(f":{two}/v1")
        assert sorted(kinds) == [[("request", "broken"), ("continuation", "ok")], [("request", "ok")]]


@pytest.mark.parametrize("stream", [True, False])
def test_c15_one_replicas_breaker_does_not_stop_the_other(tmp_path: Path, stream: bool) -> None:
    """Its failures, before the first byte or under way, open it; then it is asked nothing until it is back."""
    settings = replace(QUICK, breaker_failures=3, breaker_pause=60, breaker_look=0.05)
    with laboratory(tmp_path, settings) as lab:
        twin(lab)
        lab.main.always = do.broken(9) if stream else do.status(500)
        for number in range(12):
            text = f"c15-{number} {LONG}"
            reply = lab.ask(text, "twin", stream=stream)
            assert (reply.text, reply.done) == (lab.right(text), True)
        assert len(lab.main.attempts) == 3
        assert len(lab.spare.attempts) == 12
        down = time.monotonic() + 0.5
        lab.main.down_until = down
        time.sleep(0.7)  # while it lists nothing it is gone, and then back
        lab.main.always = answer
        while len(lab.main.attempts) == 3:
            assert lab.ask("c15 again", "twin").status == 200
        assert lab.main.attempts[3].began > down


def test_c01_with_a_sibling_that_is_left_alone_the_same_one_is_asked_again(tmp_path: Path) -> None:
    """A breaker stays open when the registry changes otherwise; what may be sent again still is."""
    settings = replace(QUICK, breaker_failures=3, breaker_pause=60)
    with laboratory(tmp_path, settings) as lab:
        twin(lab)
        lab.main.always = do.status(500)
        while len(lab.main.attempts) < 3:
            assert lab.ask("c01 open", "twin").status == 200
        lab.registry.remove("safe")
        while "safe" in {model["id"] for model in lab.http.get(f"{lab.url}/v1/models").json()["data"]}:
            time.sleep(0.02)
        lab.spare.plan("busy", do.status(429, retry_after="1"))
        reply = lab.ask("busy", "twin")
        assert (reply.status, len(lab.spare.of("busy")), len(lab.main.attempts)) == (200, 2, 3)


def test_c18_c05_a_replica_that_is_not_there_costs_nobody_an_answer(tmp_path: Path) -> None:
    settings = replace(QUICK, breaker_failures=3, breaker_pause=2, breaker_look=0.05)
    with laboratory(tmp_path, settings) as lab, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        twin(lab, f"http://127.0.0.1:{closed.getsockname()[1]}/v1", lab.main.url)
        results, until = [], time.monotonic() + 5
        while time.monotonic() < until:
            reply = lab.ask("c18", "twin")
            assert reply.status == 200
            results += [result for _, result in lab.attempts(reply)]
            time.sleep(0.02)
        assert results.count("connect") == 3  # a look says that it is still gone, so no request finds that out


def test_load_is_spread_over_the_replicas(lab: Lab, tag: str) -> None:
    for _ in range(10):
        assert lab.ask(f"{tag} in turn", "twin").status == 200
    assert len(lab.main.of(tag)) == len(lab.spare.of(tag)) == 5
    both(lab, f"{tag}2", *[do.late(1.0)] * 16)
    with ThreadPoolExecutor(16) as pool:
        assert all(reply.status == 200 for reply in pool.map(lambda _: lab.ask(f"{tag}2", "twin"), range(16)))
    assert len(lab.main.of(f"{tag}2")) == len(lab.spare.of(f"{tag}2")) == 8


def test_a_busy_replica_gets_no_more_while_another_is_idle(lab: Lab, tag: str) -> None:
    both(lab, tag, do.late(2.0))
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(lab.ask, tag, "twin")
        while not (lab.main.of(tag) or lab.spare.of(tag)):
            time.sleep(0.01)
        idle = lab.spare if lab.main.of(tag) else lab.main
        while not held.done():
            began = time.monotonic()
            assert lab.ask(f"{tag}2", "twin").status == 200
        busy = lab.main if idle is lab.spare else lab.spare
        assert all(attempt.began >= began for attempt in busy.of(f"{tag}2"))
        assert len(idle.of(f"{tag}2")) > 1


def test_places_are_each_replicas_own_also_for_what_moves_there(tmp_path: Path) -> None:
    """One place each: the cut stream waits for its sibling's, and leaves its own to others."""
    with laboratory(tmp_path) as lab:
        twin(lab, limits={"concurrency": 1})
        slow, cut = do.unhurried(0.01), once(do.broken(9))
        both(lab, "slow", slow, slow)
        both(lab, "cut", cut, cut)
        texts = [f"slow {LONG}", f"cut {LONG}"]
        with ThreadPoolExecutor(2) as pool:
            replies = list(pool.map(lambda text: lab.ask(text, "twin", stream=True), texts))
        assert [reply.text for reply in replies] == [lab.right(text) for text in texts]
        for expert in (lab.main, lab.spare):
            for before, after in zip(expert.attempts, expert.attempts[1:], strict=False):
                assert (before.ended or before.left or 0.0) <= after.began
        for number in range(4):
            assert lab.ask(f"after-{number}", "twin").status == 200


def test_f07_f08_a_url_that_goes_finishes_what_it_has_and_gets_nothing_new(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        twin(lab)
        both(lab, "long", do.unhurried(0.03))
        with begun(lab, lab.body(f"long {LONG}", "twin", stream=True)) as rest:
            (going, staying) = (lab.main, lab.spare) if lab.main.of("long") else (lab.spare, lab.main)
            lab.registry.replace(twin_card(staying.url))
            only_asked(lab, staying)
            asked = len(going.attempts)
            for number in range(6):
                assert lab.ask(f"f08-{number}", "twin").status == 200
            assert len(going.attempts) == asked
            assert said(rest()) == lab.right(f"long {LONG}")
        lab.registry.replace(twin_card(staying.url, going.url))
        answering(lab, staying.url, going.url)
        while len(going.attempts) == asked:
            assert lab.ask("f08 back", "twin").status == 200


def test_f12_a_url_that_does_not_answer_its_probe_is_not_asked(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        twin(lab)
        answering(lab, lab.spare.url)
        only_asked(lab, lab.spare)
        before = len(lab.main.attempts)
        for number in range(6):
            assert lab.ask(f"f12-{number}", "twin").status == 200
        assert len(lab.main.attempts) == before


def test_f11_each_url_is_held_to_the_allowed_networks(tmp_path: Path) -> None:
    settings = replace(QUICK, networks=Networks.parse(["127.0.0.1/32"]))
    with laboratory(tmp_path, settings) as lab, socket.create_server(("127.0.0.2", 0)) as forbidden:
        forbidden.setblocking(False)
        twin(lab, f"http://127.0.0.2:{forbidden.getsockname()[1]}/v1", lab.main.url)
        for number in range(6):
            assert lab.ask(f"f11-{number}", "twin").status == 200
        with pytest.raises(BlockingIOError):
            forbidden.accept()


def test_a_prompted_expert_has_the_replicas_of_its_engine(lab: Lab, tag: str) -> None:
    backend = {"kind": "prompted", "engine": "twin", "system_prompt": "Be brief."}
    lab.registry.add(parse_card({"name": "brief", "backend": backend}))
    lab.registry.observe("brief", State.READY, base_url=f"{lab.main.url} {lab.spare.url}")
    while "brief" not in {model["id"] for model in lab.http.get(f"{lab.url}/v1/models").json()["data"]}:
        time.sleep(0.02)
    for number in range(4):
        assert lab.ask(f"hello {number}", "brief").status == 200
    systems = [expert.of("hello")[-1].body["messages"] for expert in (lab.main, lab.spare)]
    assert all("Be brief." in str(messages) for messages in systems)
