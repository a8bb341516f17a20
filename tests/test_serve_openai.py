"""The official OpenAI client, unmodified, against a real edge on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serve_kit import Running, card, running

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("edge"))) as started:
        yield started


def test_chat_goes_to_the_specialist_and_says_who_answered(edge: Running) -> None:
    answer = edge.client().chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "what is the sum of primes"}]
    )
    parsed = answer.parse()
    assert parsed.model == "math"
    assert parsed.choices[0].message.content == "what is the sum of primes"
    assert answer.headers["x-collegium-expert"] == "math"
    assert answer.headers["x-collegium-domain"] == "math"
    assert float(answer.headers["x-collegium-confidence"]) == pytest.approx(4.1 / 4.3, abs=1e-4)
    assert answer.headers["x-collegium-router"] == "keywords-1"
    assert "over" in answer.headers["x-collegium-reason"]
    assert edge.echo.last.body["model"] == "echo"
    assert edge.echo.last.headers["x-request-id"] == answer.headers["x-request-id"]


def test_chat_streams_with_one_id_one_model_and_usage_once(edge: Running) -> None:
    chunks = list(
        edge.client().chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "fix my python bug"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "fix my python bug"
    assert {chunk.model for chunk in chunks} == {"coding"}
    assert {chunk.id for chunk in chunks} == {"up-0"}
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [5]


def test_named_expert_skips_the_classifier(edge: Running) -> None:
    answer = edge.client().chat.completions.with_raw_response.create(
        model="coding", messages=[{"role": "user", "content": "what is the sum of primes"}]
    )
    assert answer.parse().model == "coding"
    assert answer.headers["x-collegium-reason"] == "asked for by name"


def test_tools_and_unknown_fields_pass_through(edge: Running) -> None:
    answer = edge.client().chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "hello"}],
        tools=[WEATHER],  # type: ignore[list-item]
        extra_body={"min_p": 0.1},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "weather"  # type: ignore[union-attr]
    assert edge.echo.last.body["tools"] == [WEATHER]
    assert edge.echo.last.body["min_p"] == 0.1


def test_logprobs_pass_through(edge: Running) -> None:
    answer = edge.client().chat.completions.create(
        model="math", messages=[{"role": "user", "content": "one"}], logprobs=True, top_logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].logprob == -0.25


def test_completions_with_echo_and_as_a_stream(edge: Running) -> None:
    client = edge.client()
    answer = client.completions.create(model="auto", prompt="an equation", echo=True, max_tokens=0)
    assert answer.model == "math"
    assert answer.choices[0].text == "an equationan equation"
    stream = client.completions.create(model="general", prompt="abc", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "abc"


def test_token_ids_go_to_the_generalist(edge: Running) -> None:
    answer = edge.client().completions.with_raw_response.create(model="auto", prompt=[1, 2, 3])
    assert answer.parse().model == "general"
    assert answer.headers["x-collegium-reason"].startswith("low_confidence")


def test_responses_whole_and_streamed(edge: Running) -> None:
    client = edge.client()
    answer = client.responses.create(model="auto", input="compile my function")
    assert (answer.model, answer.output_text) == ("coding", "compile my function")
    events = list(client.responses.create(model="auto", input="compile my function", stream=True))
    assert events[-1].type == "response.completed"
    assert events[-1].response.model == "coding"
    assert events[0].type == "response.created" and events[0].response.model == "coding"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "compile my function"


def test_models_lists_auto_and_what_can_be_asked(edge: Running) -> None:
    client = edge.client()
    edge.pool.registry.add(card("asleep", edge.echo.url))
    assert [model.id for model in client.models.list()] == ["auto", "coding", "general", "math"]
    assert client.models.retrieve("math").id == "math"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("model", "text", "raised", "code"),
    [
        ("nobody", "hi", openai.NotFoundError, "model_not_found"),
        ("../admin", "hi", openai.NotFoundError, "model_not_found"),
        ("general", "!status 429 2", openai.RateLimitError, "rate_limit_exceeded"),
        ("general", "!status 503", openai.InternalServerError, "server_is_overloaded"),
        ("general", "!context", openai.BadRequestError, "context_length_exceeded"),
        ("general", "!status 401", openai.InternalServerError, "upstream_invalid_response"),
    ],
)
def test_errors_arrive_as_the_clients_own_classes(
    edge: Running, model: str, text: str, raised: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(raised) as caught:
        edge.client().chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    assert caught.value.code == code
    assert "10.0.0.1" not in str(caught.value)


def test_a_stream_cut_under_way_raises_in_the_client(edge: Running) -> None:
    stream = edge.client().chat.completions.create(
        model="general", messages=[{"role": "user", "content": "!cut after two"}], stream=True
    )
    seen: list[str | None] = []
    with pytest.raises(openai.APIError) as caught:
        seen.extend(chunk.choices[0].delta.content for chunk in stream)
    assert seen == ["!", "c"]
    assert caught.value.code == "upstream_stream_truncated"


def test_anthropic_messages_whole_and_streamed(edge: Running) -> None:
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "a prime"}]}
    answer = edge.post("/v1/messages", json=body)
    assert answer.status_code == 200
    assert answer.json()["model"] == "math"
    assert answer.json()["content"][0]["text"] == "a prime"
    assert edge.echo.last.headers["anthropic-version"]
    streamed = edge.post("/v1/messages", json={**body, "stream": True}).text
    assert streamed.startswith("event: message_start\ndata: ")
    assert '"model":"math"' in streamed.split("\n\n")[0]
    assert streamed.endswith('event: message_stop\ndata: {"sequence_number":9,"type":"message_stop"}\n\n')
    broken = {**body, "messages": [{"role": "user", "content": "!silent end"}], "stream": True}
    unanswered = edge.post("/v1/messages", json=broken)
    assert (unanswered.status_code, unanswered.json()["error"]["code"]) == (502, "upstream_stream_truncated")
