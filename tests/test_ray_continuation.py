"""Real engines killed in the middle of an answer: the client must not see it. Takes minutes and 9 GB of memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import yaml
from collegium.experts.ray_cluster import RayCluster, free_ports
from collegium.experts.state import StateFolder
from ray_kit import MARKS, START_LIMIT
from ray_victims import busiest, victims, work
from whole_kit import Serving, until

pytestmark = MARKS
TOKENS = 120
STORY = "Tell me a long story about a fox who finds a lamp."
PROMPTS = (
    STORY,
    "Explain how rain is made.",
    "Write a Python function that adds two numbers.",
    "List ten animals and what they eat.",
    "What is the difference between a lake and a sea?",
    "Write a letter to a friend about a journey to Rome.",
)


def two_replicas() -> dict[str, object]:
    """One generalist whose engine has two replicas."""
    options = {"enforce_eager": True, "max_num_seqs": 16}
    backend: dict[str, object] = {
        "kind": "engine",
        "model": "wheel:smollm2-135m-instruct",
        "accelerator": "cpu",
        "dtype": "float32",
    }
    backend |= {"max_model_len": 2048, "memory_gb": 4, "replicas": 2, "options": options}
    return {"name": "general", "generalist": True, "domains": {"general": 0.5}, "backend": backend}


@dataclass(frozen=True)
class Answer:
    """What a client got of a stream."""

    text: str
    chunks: int
    ids: int
    tokens: int
    done: bool
    error: str


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("continuation")
    pool = folder / "pool.yaml"
    pool.write_text(yaml.safe_dump([two_replicas()]))
    port, admin_port = free_ports(("public", "admin")).values()
    running = Serving(folder / "state", port, admin_port, dict(os.environ), str(pool))
    running.start()
    try:
        running.wait_ready(START_LIMIT)
        yield running
    finally:
        running.stop(120)
        RayCluster(StateFolder(running.folder)).stop()


def stream(serving: Serving, text: str, at: Callable[[], None] | None = None, tokens: int = TOKENS) -> Answer:
    """A greedy answer; `at` is called after a third of it."""
    body = {"model": "general", "temperature": 0, "max_tokens": tokens, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": text}]}
    said, chunks, ids, counted, last, error = "", 0, set(), 0, "", ""
    with serving.http.stream("POST", f"{serving.base}/v1/chat/completions", json=body, timeout=400) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            last = line
            if line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                error = chunk["error"]["code"]
                continue
            ids.add(chunk["id"])
            counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
            new = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            said, chunks = said + new, chunks + bool(new)
            if at is not None and chunks == tokens // 3:
                at()
                at = None
    return Answer(said, chunks, len(ids), counted, last == "data: [DONE]", error)


def whole(serving: Serving) -> bool:
    """Whether both replicas run and are known to the proxy."""
    record = serving.http.get(f"{serving.admin}/experts/general", headers=serving.admin_headers).json()
    return record["state"] == "ready" and not record["reason"] and len(victims(serving, "engine core")) == 2


def end_of(serving: Serving, request: int = -1) -> list[dict[str, object]]:
    """The attempts of the last request in the edge's log."""
    lines = (serving.folder / "logs" / "edge-1.log").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if line.get("route") == "chat/completions"]
    attempts: list[dict[str, object]] = found[request]["attempts"]
    return attempts


@pytest.mark.parametrize("kind", ["engine core", "Serve replica"])
def test_a_stream_goes_on_at_the_other_replica(serving: Serving, kind: str) -> None:
    until(lambda: whole(serving), START_LIMIT)
    undisturbed = stream(serving, STORY)
    assert undisturbed.done and undisturbed.tokens == TOKENS
    before = work(serving)
    disturbed = stream(serving, STORY, lambda: busiest(serving, before, kind).kill())
    assert [attempt["kind"] for attempt in end_of(serving)][:2] == ["request", "continuation"]
    assert disturbed.text == undisturbed.text
    assert (disturbed.ids, disturbed.tokens, disturbed.done) == (1, TOKENS, True)
    failed = []
    while not whole(serving):  # meanwhile the replica that is left answers everything
        answer = serving.chat("Hello", model="general")
        if answer.status_code != 200:
            failed.append(answer.text)
    assert not failed


def test_without_any_replica_streams_and_requests_wait_for_the_new_ones(serving: Serving) -> None:
    until(lambda: whole(serving), START_LIMIT)
    undisturbed = stream(serving, STORY)
    killed = threading.Event()

    def kill_all() -> None:
        for core in victims(serving, "engine core"):
            core.kill()
        killed.set()

    with ThreadPoolExecutor(1) as second:
        disturbed = second.submit(stream, serving, STORY, kill_all)
        assert killed.wait(300)
        asked = serving.http.post(
            f"{serving.base}/v1/chat/completions",
            json={"model": "general", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]},
            timeout=400,
        )
        assert asked.status_code == 200, asked.text
        assert disturbed.result().text == undisturbed.text
    assert (disturbed.result().ids, disturbed.result().tokens, disturbed.result().done) == (1, TOKENS, True)


def test_prefill_of_the_tokens_sent_says_the_same_as_decoding(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a continuation rests on. Every answer is cut at four places, and begun again there by its token ids."""
    until(lambda: whole(serving), START_LIMIT)
    same, cuts = 0, 0
    for prompt in PROMPTS:
        body = {"model": "general", "temperature": 0, "max_tokens": 64, "return_token_ids": True}
        body |= {"messages": [{"role": "user", "content": prompt}]}
        answer = serving.http.post(f"{serving.base}/v1/chat/completions", json=body).json()
        prompt_ids, ids = answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
        for cut in (1, len(ids) // 3, len(ids) // 2, len(ids) - 2):
            rest = {"model": "general", "temperature": 0, "max_tokens": 64 - cut, "return_token_ids": True}
            rest |= {"prompt": [*prompt_ids, *ids[:cut]]}
            again = serving.http.post(f"{serving.base}/v1/completions", json=rest).json()
            cuts += 1
            same += again["choices"][0]["token_ids"] == ids[cut:]
    with capsys.disabled():
        print(f"\n{same} of {cuts} continuations have the very tokens of the undisturbed answer")
    assert same == cuts
