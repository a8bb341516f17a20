"""Continuation, event by event: whatever the cut, the client's text is that of an unbroken stream."""

from __future__ import annotations

import random

import orjson
import pytest
from collegium.serve.failure import Fault, UpstreamError
from collegium.serve.requests import Api
from collegium.serve.snapshot import Target
from collegium.serve.sse import DONE, Event
from collegium.serve.streams import Stream
from collegium.serve.transcript import Transcript, continuable
from faults.engine import Generation, decode, greedy

ENGINE = Target("me", "http://127.0.0.1:1/v1", "m", None, vouched=True, retry_safe=True, continues=True)


def asked(api: Api, text: str, **more: object) -> dict[str, object]:
    prompt = {"messages": [{"role": "user", "content": text}]} if api is Api.CHAT else {"prompt": text}
    return {"model": "m", "stream": True, "temperature": 0, "max_tokens": 500, **prompt, **more}


class Client:
    """Takes what a stream forwards."""

    def __init__(self) -> None:
        self.text = ""
        self.finish: str | None = None
        self.usage: object = None
        self.ids: set[object] = set()

    def take(self, data: bytes | None) -> None:
        if data is None or data == DONE:
            return
        chunk = orjson.loads(data.removeprefix(b"data: "))
        assert b"token_ids" not in data
        self.ids.add((chunk["id"], chunk["object"], chunk["model"]))
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            chat = chunk["object"] == "chat.completion.chunk"
            assert self.finish is None and ("delta" in choice, "text" in choice) == (chat, not chat)
            self.text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            self.finish = choice["finish_reason"]


def fed(stream: Stream, client: Client, chunks: list[dict[str, object]]) -> None:
    for chunk in chunks:
        client.take(stream.take(Event(orjson.dumps(chunk).decode())))


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS])
@pytest.mark.parametrize("limit", [500, 37])
def test_any_cut_and_any_second_cut_is_continued_exactly(api: Api, limit: int, seed: int) -> None:
    body = asked(api, f"p{seed} 40 tokens", max_tokens=limit, stream_options={"include_usage": True})
    asked_for = {**body, "return_token_ids": True}
    first = Generation(asked_for, api is Api.CHAT, "a", seed)
    chunks, chance = first.chunks(), random.Random(seed)
    for cut in range(2, len(chunks) - 1):  # all but the finish and the usage
        transcript = Transcript(body)
        stream, client = Stream(api, "me", 1, transcript), Client()
        fed(stream, client, chunks[:cut])
        stream.continued()
        for turn in range(3):
            if stream.complete:
                break
            transcript.rewind()
            rest = Generation(transcript.request("m", None), False, f"b{turn}", chance.randrange(99))
            again = rest.chunks()
            fed(stream, client, again if turn == 2 or len(again) < 9 else again[: chance.randrange(6)])
        assert (client.text, client.finish) == (greedy(body), first.finish)
        assert stream.complete and client.usage == first.usage
        assert client.ids == {("a", "chat.completion.chunk" if api is Api.CHAT else "text_completion", "me")}


def test_an_engine_that_says_something_else_is_not_spliced_in() -> None:
    body = asked(Api.CHAT, "p 40 tokens")
    chunks = Generation({**body, "return_token_ids": True}, True, "a").chunks()
    for turn in range(3):
        transcript = Transcript(body)
        stream, client = Stream(Api.CHAT, "me", 1, transcript), Client()
        fed(stream, client, chunks[:20])
        transcript.rewind()
        stream.continued()
        before = client.text
        with pytest.raises(UpstreamError) as caught:
            other = {**transcript.request("m", None), "temperature": 1}
            fed(stream, client, Generation(other, False, f"b{turn}", turn).chunks())
        assert (caught.value.fault, client.text) == (Fault.INVALID, before)


def test_the_continuation_asks_for_what_is_left() -> None:
    body = asked(Api.CHAT, "p 40 tokens", seed=3, cache_salt="s", user="u")
    generation = Generation({**body, "return_token_ids": True}, True, "a")
    transcript = Transcript(body)
    stream = Stream(Api.CHAT, "me", 1, transcript)
    fed(stream, Client(), generation.chunks()[:12])
    known = list(transcript.tokens)
    transcript.rewind()
    request = transcript.request("m", None)
    prompt = request["prompt"]
    assert isinstance(prompt, list) and prompt[: len(generation.prompt.ids)] == list(generation.prompt.ids)
    kept = prompt[len(generation.prompt.ids) :]
    assert kept == known[: len(kept)] and 0 < len(known) - len(kept) <= 6
    assert request["max_tokens"] == 500 - len(kept)
    assert (request["seed"], request["cache_salt"], request["temperature"]) == (3, "s", 0)
    assert request["stream"] is request["return_token_ids"] is True
    assert "user" not in request and "messages" not in request
    del body["max_tokens"]
    assert Transcript(body, prompt=[1, 2, 3], tokens=[4]).request("m", 100)["max_tokens"] == 96
    assert decode(generation.tokens).startswith(transcript.text)


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True),
        ({"n": 1, "stop": None, "presence_penalty": 0, "tools": [], "top_p": 0.9, "logprobs": False}, True),
        ({"parallel_tool_calls": True}, True),
        ({"parallel_tool_calls": False}, True),
        ({"echo": True}, False),
        ({"temperature": 0.1}, False),
        ({"temperature": None}, False),
        ({"stream": False}, False),
        ({"n": 2}, False),
        ({"stop": ["x"]}, False),
        ({"presence_penalty": 0.5}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"logprobs": True}, False),
        ({"tools": [{"type": "function"}]}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"structured_outputs": {"regex": "x"}}, False),
        ({"min_tokens": 5}, False),
        ({"return_token_ids": True}, False),
    ],
)
def test_what_can_be_continued(changes: dict[str, object], can: bool) -> None:
    assert continuable(Api.CHAT, asked(Api.CHAT, "p", **changes), ENGINE, 100) == can


def test_only_our_engines_plain_streams_of_bounded_prompts_are_continued() -> None:
    body = asked(Api.CHAT, "p")
    remote = Target("me", "http://h/v1", "m", None, vouched=False)
    assert not continuable(Api.CHAT, body, remote, 100)
    assert not continuable(Api.RESPONSES, body, ENGINE, 100)
    assert continuable(Api.CHAT, body, ENGINE, 32_768) and not continuable(Api.CHAT, body, ENGINE, 32_769)
    for prompt, can in (("a", True), ([1, 2], True), (["a", "b"], False), ([[1], [2]], False)):
        assert continuable(Api.COMPLETIONS, {**asked(Api.COMPLETIONS, "p"), "prompt": prompt}, ENGINE, 10) == can


def test_a_stream_with_more_than_text_is_not_continued() -> None:
    transcript = Transcript(asked(Api.CHAT, "p"))
    stream = Stream(Api.CHAT, "me", 1, transcript)
    choice: dict[str, object] = {"index": 0, "delta": {"content": "a"}, "token_ids": [5], "finish_reason": None}
    chunk = {"id": "x", "object": "chat.completion.chunk", "model": "m"}
    fed(stream, Client(), [{**chunk, "prompt_token_ids": [1], "choices": [choice]}])
    assert transcript.usable
    thought = {**choice, "delta": {"reasoning": "hm"}, "token_ids": [6]}
    fed(stream, Client(), [{**chunk, "choices": [thought]}])
    assert not transcript.usable


def test_a_chunk_keeps_its_usage_until_the_stream_is_continued_and_loses_what_is_no_choice() -> None:
    def taken(*choices: object, **more: object) -> dict[str, object] | None:
        out = stream.take(Event(orjson.dumps({"id": "x", "object": "o", "choices": choices, **more}).decode()))
        return None if out is None else dict(orjson.loads(out.removeprefix(b"data: ")))

    said = transcript(([10], "a"), ([11], "b"))
    stream = Stream(Api.COMPLETIONS, "me", 1, said)
    common = {"id": "x", "object": "o", "model": "me"}
    given = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    assert taken(usage=given) == {**common, "choices": [], "usage": given}
    stream.continued()
    choice = {"index": 0, "text": "c", "finish_reason": None}
    assert taken(None, {**choice, "token_ids": [12]}) == {**common, "choices": [choice]}
    silent = {**choice, "text": ""}
    assert taken({**silent, "token_ids": [13]}) is None
    end = {**silent, "finish_reason": "stop"}
    assert taken({**end, "token_ids": []}) == {**common, "choices": [end]} and stream.complete
    counted = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert taken(usage=given) == {**common, "choices": [], "usage": counted}


def transcript(*chunks: tuple[list[int], str]) -> Transcript:
    """What an engine said to the prompt of ids 1 and 2, chunk by chunk."""
    found = Transcript({"max_tokens": 50})
    found.start([1, 2])
    for ids, text in chunks:
        found.note(ids, text, others=False)
    return found


@pytest.mark.parametrize(
    ("chunks", "kept", "owed"),
    [
        ([([10], "a"), ([11, 12], "bc"), ([13], "d"), ([14], "e")], ([10, 11, 12, 13], "abcd"), ([14], "e")),
        ([([10], "a"), ([11], ""), ([12, 13], "é")], ([10], "a"), ([11, 12, 13], "é")),  # a character of several tokens
        ([([10], "a"), ([11], "")], ([], ""), ([10, 11], "a")),
        ([([10], "a")], ([], ""), ([10], "a")),
        ([([10], "")], ([], ""), ([10], "")),
        ([([10], "a"), ([11, 12], "bc"), ([13, 14], "de")], ([10], "a"), ([11, 12, 13, 14], "bcde")),
        ([([10], "a"), ([], "b"), ([11, 12], "cd")], ([10], "a"), ([11, 12], "bcd")),  # text that came with no token
    ],
)
def test_a_continuation_begins_where_an_engine_can_and_says_the_last_portion_again(
    chunks: list[tuple[list[int], str]], kept: tuple[list[int], str], owed: tuple[list[int], str]
) -> None:
    cut = transcript(*chunks)
    for _ in range(2):  # a second engine that says nothing changes nothing
        cut.rewind()
        assert ((cut.tokens, cut.text), (cut.owed_tokens, cut.owed)) == (kept, owed)
    asked_for = cut.request("m", None)
    assert (asked_for["prompt"], asked_for["max_tokens"]) == ([1, 2, *kept[0]], 50 - len(kept[0]))


def test_a_continuation_that_breaks_off_itself_begins_after_what_it_said_again() -> None:
    cut = transcript(([10], "a"), ([11, 12], "bc"))
    cut.rewind()
    assert cut.accept([11], "b", finished=False) == ""
    cut.rewind()
    assert (cut.tokens, cut.text, cut.owed_tokens, cut.owed) == ([10, 11], "ab", [12], "c")
    assert cut.accept([12], "cd", finished=False) == "d" and cut.accept([13], "e", finished=True) == "e"
    assert (cut.tokens, cut.text, cut.owed) == ([10, 11, 12, 13], "abcde", "")


def test_a_continuation_that_breaks_off_between_two_marks_is_said_again_from_the_first() -> None:
    cut = transcript(([10], "a"), ([11, 12], "bc"), ([13, 14], "de"))
    cut.rewind()
    assert cut.accept([11, 12], "bc", finished=False) == ""
    cut.rewind()
    assert (cut.tokens, cut.text, cut.owed_tokens, cut.owed) == ([10], "a", [11, 12, 13, 14], "bcde")


@pytest.mark.parametrize(("ids", "text"), [(None, "b"), ([11, "12"], "b"), (["11"], "b")])
def test_a_chunk_whose_tokens_are_not_known_cannot_be_continued(ids: object, text: str) -> None:
    said = transcript(([10], "a"))
    said.note(None, "", others=False)
    assert said.usable
    said.note(ids, text, others=False)
    assert not said.usable and (said.tokens, said.text) == ([10], "a")


@pytest.mark.parametrize(
    ("ids", "text", "finished"),
    [
        ([99], "b", False),
        ([5], "b", False),
        ([11], "x", False),
        ([11, 99], "b", False),
        ([11], "b", True),
        ([], "", True),
    ],
)
def test_other_tokens_other_text_or_an_early_end_is_no_continuation(ids: list[int], text: str, finished: bool) -> None:
    cut = transcript(([10], "a"), ([11, 12], "bc"))
    cut.rewind()
    with pytest.raises(UpstreamError) as caught:
        cut.accept(ids, text, finished)
    assert caught.value.fault is Fault.INVALID and (cut.tokens, cut.text, cut.owed) == ([10], "a", "bc")
