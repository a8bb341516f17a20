"""The event parser: the same events whatever the split, and streams told whole from cut."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from collegium.serve.errors import ApiError
from collegium.serve.failure import Fault, UpstreamError
from collegium.serve.requests import Api
from collegium.serve.sse import DONE, Event, EventTooLongError, Parser, encode
from collegium.serve.streams import Stream, error_event, whole_answer
from collegium.serve.usage import Usage
from hypothesis import given
from hypothesis import strategies as st

LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), max_size=12)


def parse(raw: bytes, *cuts: int) -> list[Event]:
    parser = Parser(100_000)
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [event for start, end in pairwise(edges) for event in parser.feed(raw[start:end])]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A stream in any line ends, with comments and fields to ignore, and the events that it holds."""
    raw, events = "", []
    for lines in draw(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=5)):
        end = draw(LINE_ENDS)
        raw += draw(st.sampled_from(["", ": note" + end, "id: 7" + end, "retry: 1" + end, "event" + end]))
        raw += "".join(f"data: {line}{end}" for line in lines) + end
        events.append(Event("\n".join(lines)))
    return raw.encode(), events


@given(streams(), st.lists(st.integers(0, 10_000), max_size=6))
def test_any_split_gives_the_same_events(stream: tuple[bytes, list[Event]], cuts: list[int]) -> None:
    raw, events = stream
    assert parse(raw, *cuts) == events


def test_split_at_every_byte() -> None:
    raw = '\ufeffevent: a\r\ndata: {"é": "日本\u2028"}\r\n\r\n:x\rdata:1\rdata:2\r\rdata: [DONE]\n\ndata: cut'.encode()
    wanted = [Event('{"é": "日本\u2028"}', "a"), Event("1\n2"), Event("[DONE]")]
    assert parse(raw) == wanted
    for at in range(len(raw)):
        assert parse(raw, at) == wanted
    assert parse(raw, *range(len(raw))) == wanted


def test_an_event_without_an_end_is_bounded() -> None:
    parser = Parser(100)
    with pytest.raises(EventTooLongError):
        for _ in range(20):
            parser.feed(b"data: xxxxxxxxxx")
    with pytest.raises(EventTooLongError):
        Parser(100).feed(b"data: 0123456789\n" * 20)


def test_the_bound_is_of_one_line_and_of_one_events_data() -> None:
    fits = Parser(20)
    for _ in range(5):
        assert fits.feed(b"data:0123456789\ndata:01234567\n\n") == [
            Event("0123456789\n01234567")
        ]  # with their line ends 20
        assert fits.feed(b":0123456789012345678\na") == [] and fits.feed(b"\n") == []
    with pytest.raises(EventTooLongError, match="longer than 20"):
        fits.feed(b"data:0123456789\ndata:012345678\n\n")
    halves = Parser(20)
    assert halves.feed(b"data:0123") == halves.feed(b"45678901234") == []
    with pytest.raises(EventTooLongError):
        halves.feed(b"5")
    with pytest.raises(EventTooLongError):
        Parser(20).feed(b"a\n:01234567890123456789")


def test_a_mark_of_byte_order_is_dropped_at_the_beginning_only() -> None:
    parser = Parser(100)
    marked = "\ufeffdata: 1\n\n".encode()
    assert parser.feed(marked) == [Event("1")] and parser.feed(marked) == []


JSON = st.recursive(
    st.none() | st.booleans() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(JSON)
def test_what_is_written_parses_to_itself(value: object) -> None:
    raw = encode({"value": value}, "a.b")
    (event,) = parse(raw)
    assert (orjson.loads(event.data), event.name) == ({"value": value}, "a.b")


def chunk(index: int = 0, finish: str | None = None, **more: object) -> Event:
    return Event(orjson.dumps({"id": "x", "choices": [{"index": index, "finish_reason": finish}], **more}).decode())


def test_a_stream_is_complete_when_every_choice_has_finished() -> None:
    stream = Stream(Api.CHAT, "me", choices=2)
    stream.take(chunk(0, "stop"))
    assert not stream.complete
    stream.take(chunk(1))
    assert not stream.complete
    stream.take(chunk(1, "stop"))
    assert stream.complete and not stream.ended
    assert stream.closing() == DONE
    stream.take(chunk(2, "stop"))  # one more than was asked for
    assert stream.complete


def test_a_foreign_event_cannot_pose_as_the_end_or_change_the_id() -> None:
    stream = Stream(Api.CHAT, "me")
    assert b'"id":"x"' in (stream.take(chunk()) or b"")
    assert b'"id":"x"' in (stream.take(chunk(id="y", model="z")) or b"")
    forged = chunk(text="\n\ndata: [DONE]\n\n")
    out = stream.take(forged) or b""
    assert out.count(b"\n\n") == 1 and not stream.ended
    assert Stream(Api.MESSAGES, "me").take(Event("[DONE]")) is None


def test_a_few_broken_events_are_dropped_and_many_end_the_stream() -> None:
    stream = Stream(Api.CHAT, "me")
    assert [stream.take(Event(bad)) for bad in ("{", "[]", "1")] == [None, None, None]
    with pytest.raises(ApiError) as caught:
        stream.take(Event("{"))
    assert caught.value.code == "upstream_invalid_response"


def test_an_end_without_an_answer_is_no_end() -> None:
    with pytest.raises(UpstreamError) as caught:
        Stream(Api.CHAT, "me").take(Event("[DONE]"))
    assert caught.value.fault is Fault.INVALID
    stream = Stream(Api.CHAT, "me")
    stream.take(chunk())
    with pytest.raises(UpstreamError) as caught:
        stream.take(Event("[DONE]"))
    assert caught.value.fault is Fault.BROKEN and not stream.complete
    stream.take(chunk(0, "stop"))
    assert stream.take(Event("[DONE]")) == DONE
    assert stream.ended and stream.closing() == b""


def event(**data: object) -> Event:
    return Event(orjson.dumps(data).decode())


def said(**delta: object) -> Event:
    return event(id="x", choices=[{"index": 0, "delta": delta, "finish_reason": None}])


@pytest.mark.parametrize("first", [{"content": "a"}, {"tool_calls": [{"index": 0}]}])
def test_an_answer_has_begun_with_its_first_text_or_call_or_its_finish(first: dict[str, object]) -> None:
    stream = Stream(Api.CHAT, "me")
    stream.take(said(role="assistant", content=""))
    assert not stream.real
    stream.take(said(role="assistant", **first))
    assert stream.real
    stream.take(said(content=""))
    assert stream.real
    finished = Stream(Api.CHAT, "me")
    finished.take(chunk(0, "stop"))
    assert finished.real


def test_a_completion_has_begun_with_its_first_text() -> None:
    stream = Stream(Api.COMPLETIONS, "me")
    stream.take(event(choices=[{"index": 0, "text": ""}]))
    assert not stream.real
    stream.take(event(choices=[{"index": 0, "text": "a"}]))
    assert stream.real


@pytest.mark.parametrize(
    ("api", "first", "second", "third", "last"),
    [
        (Api.MESSAGES, "message_start", "ping", "content_block_delta", "message_stop"),
        (Api.RESPONSES, "response.created", "response.in_progress", "response.output_text.delta", "response.completed"),
    ],
)
def test_a_stream_of_named_events_begins_ends_and_is_renamed(
    api: Api, first: str, second: str, third: str, last: str
) -> None:
    used = Usage()
    stream = Stream(api, "me", used=used)
    holder = "message" if api is Api.MESSAGES else "response"
    sent: list[tuple[str, dict[str, object]]] = [
        (first, {holder: {"model": "m", "usage": {"input_tokens": 3}}}),
        (second, {"model": "m"}),
        (third, {"delta": "a", holder: None}),
        (last, {}),
    ]
    seen = []
    for kind, more in sent:
        out = stream.take(event(type=kind, **more)) or b""
        name, data = out.split(b"\n", 1)
        assert name == b"event: " + kind.encode()
        seen.append((stream.real, stream.complete, b'"model":"me"' in data, b"model" in data))
    assert seen == [
        (False, False, True, True), (False, False, True, True), (True, False, False, False), (True, True, False, False),
    ]  # fmt: skip
    assert stream.closing() == b"" and (used.prompt, used.pieces) == (3, 4)
    stream.take(event(type=third))
    assert stream.complete
    assert Stream(api, "me").closing() == b""


@pytest.mark.parametrize(
    ("api", "data"),
    [
        (Api.CHAT, {"error": {"message": "out of memory"}}),
        (Api.MESSAGES, {"type": "error"}),
        (Api.RESPONSES, {"type": "response.failed"}),
    ],
)
def test_an_error_that_an_expert_reports_ends_its_stream(api: Api, data: dict[str, object]) -> None:
    with pytest.raises(UpstreamError) as caught:
        Stream(api, "me").take(event(**data))
    assert caught.value.fault is Fault.ERROR and "memory" not in caught.value.message


def test_choices_that_are_none_are_not_counted() -> None:
    used = Usage()
    stream = Stream(Api.CHAT, "me", used=used)
    odd = [None, {"index": "0", "finish_reason": "stop", "delta": {"content": "a"}}]
    out = stream.take(event(id="x", choices=odd, usage={"prompt_tokens": 3}))
    assert out is not None and orjson.loads(out.removeprefix(b"data: "))["choices"] == odd
    assert not stream.complete and not stream.real and used.prompt == 3
    assert stream.take(event(id="x", choices=None)) is None and stream.malformed == 1


def test_a_stream_that_fails_under_way_ends_in_an_error_of_its_api() -> None:
    error = ApiError("upstream_stream_truncated", "It broke off.")
    assert error_event(Api.CHAT, error) == encode({"error": error.as_dict()})
    assert error_event(Api.MESSAGES, error) == encode({"type": "error", "error": error.as_dict()}, "error")


@pytest.mark.parametrize(
    ("api", "answer"),
    [
        (Api.CHAT, b"{"),
        (Api.CHAT, b"[]"),
        (Api.CHAT, b'{"choices": []}'),
        (Api.CHAT, b'{"choices": {"index": 0}}'),
        (Api.CHAT, b'{"choices": [{}], "error": {"message": "no"}}'),
        (Api.RESPONSES, b"{}"),
        (Api.MESSAGES, b'{"content": "text"}'),
    ],
)
def test_what_is_no_answer_of_its_api_is_refused(api: Api, answer: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        whole_answer(api, "me", answer)
    assert caught.value.fault is Fault.INVALID


@pytest.mark.parametrize(
    ("api", "result"), [(Api.CHAT, "choices"), (Api.RESPONSES, "output"), (Api.MESSAGES, "content")]
)
def test_an_answer_is_renamed_and_what_it_counts_is_noted(api: Api, result: str) -> None:
    used = Usage()
    content: list[object] = [{}] if api is Api.CHAT else []
    silent = orjson.dumps({result: content, "model": "m", "usage": None})
    assert orjson.loads(whole_answer(api, "me", silent, used)) == {result: content, "model": "me", "usage": None}
    assert used == Usage()
    counted = orjson.dumps({result: content, "usage": {"prompt_tokens": 3}})
    assert b'"model":"me"' in whole_answer(api, "me", counted)
    whole_answer(api, "me", counted, used)
    assert used.prompt == 3
